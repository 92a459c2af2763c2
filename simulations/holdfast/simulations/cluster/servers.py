"""The cluster's servers: simulated NATS with JetStream and simulated etcd, under the production adapters."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.actors.identity import lease_prefix, stream_name, subject_prefix
from holdfast.gateway.reporting import WatchedLeases
from holdfast.simulations.etcd.client import EtcdTransport
from holdfast.simulations.etcd.faults import EtcdFaults
from holdfast.simulations.etcd.group import draw_etcd_knobs
from holdfast.simulations.etcd.servers import EtcdServers
from holdfast.simulations.history import History
from holdfast.simulations.nats.client import dialler
from holdfast.simulations.nats.jetstream import JetStream
from holdfast.simulations.plan import Knobs
from holdfast.simulations.records import SERVER
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.settings import EtcdSettings, JetStreamSettings

SYNC_INTERVAL_S = 2.0
"""How often a log server that does not sync always does so, in seconds."""

Began = Callable[[SimProcess, str], object]


class Servers:
    """The servers of both kinds, by their hosts. `began(process, role)` hears of each process.

    By `healed_s` (true time) all that faults do to the leases' servers is over.
    """

    def __init__(
        self, world: World, cluster: str, knobs: Knobs, history: History, began: Began, healed_s: float
    ) -> None:
        self.log_hosts = [f"nats{number + 1}" for number in range(knobs.log_servers)]
        self.lease_hosts = [f"etcd{number + 1}" for number in range(knobs.lease_servers)]
        self.jetstream = JetStream(
            world,
            self.log_hosts,
            sync_interval_s=0.0 if knobs.sync_always else SYNC_INTERVAL_S,
            history=history,
            subject_prefix=subject_prefix(cluster),
        )
        self.etcd = EtcdServers(world, history, self.lease_hosts, draw_etcd_knobs(world.rng("etcd knobs")))
        self.etcd_faults = EtcdFaults(self.etcd, healed_s)
        self.processes: dict[str, SimProcess] = {}
        self.log_settings = JetStreamSettings(
            urls=self.jetstream.urls,
            stream=stream_name(cluster),
            subject_prefix=subject_prefix(cluster),
            replicas=3 if knobs.log_servers == 3 else 1,
            append_timeout_s=knobs.append_timeout_s,
            publish_timeout_s=1.0,
            read_timeout_s=5.0,
            ping_interval_s=4.0,
            follow_heartbeat_s=knobs.follow_heartbeat_s,
        )
        self.lease_settings = EtcdSettings(
            endpoints=self.etcd.endpoints,
            prefix=lease_prefix(cluster),
            request_timeout_s=knobs.lease_request_timeout_s,
            try_timeout_s=1.0,
            watch_silence_s=knobs.watch_silence_s,
        )
        self._world = world
        self._began = began

    @property
    def hosts(self) -> list[str]:
        """The hosts of all servers."""
        return [*self.log_hosts, *self.lease_hosts]

    def start(self) -> None:
        """Start all of them."""
        for host in self.hosts:
            self.start_one(host)

    def start_one(self, host: str) -> None:
        """Start the server of a host on the disk that is there, unless it runs or has no power."""
        process = self.processes.get(host)
        if (process is not None and process.alive) or not self._world.host(host).up:
            return
        is_log = host in self.log_hosts
        process = self.jetstream.start(self.log_hosts.index(host)) if is_log else self.etcd.start(host)
        self.processes[host] = process
        self._began(process, SERVER)

    async def open_log(self, process: SimProcess, settings: JetStreamSettings) -> JetStreamLog:
        """As `JetStreamLog.open`, for a process."""
        return await JetStreamLog.open(settings, dial=dialler(process, process.rng), chance=process.rng)

    def leases(self, process: SimProcess, settings: EtcdSettings) -> WatchedLeases:
        """Leases for a process."""
        gateway = EtcdGateway(settings, transport=EtcdTransport(process), chance=process.rng)
        return EtcdLeases(gateway)
