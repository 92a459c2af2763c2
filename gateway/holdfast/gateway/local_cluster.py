"""A cluster on one machine: its servers, nodes and gateways as child processes of this one.

Everything is started in the order in which it is needed, supervised while it runs, and ended in the opposite
order: gateways first, so that no new request comes in, then nodes with their replicas, then the servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from holdfast.core.errors import Misuse
from holdfast.gateway.addresses import check_address, local_url
from holdfast.gateway.data_dir import ClusterFile, DataDirectory, Member, Service
from holdfast.gateway.ending import end_lease
from holdfast.gateway.goal import Wish
from holdfast.gateway.leftovers import MARK, kill_marked, sweep
from holdfast.gateway.processes import HURRY
from holdfast.gateway.reaching import await_leader, reach_leases, reach_log
from holdfast.gateway.settings import Settings
from holdfast.gateway.supervisor import Keeper, stop_all
from holdfast.gateway.version import VERSION
from holdfast.store.embedded import ChildProcess
from holdfast.store.embedded_cluster import THREE, Count, count_with_data, etcd_servers, nats_servers

STOP_S = 9.0
"""An orderly stop ends by then, in seconds: what has not ended is killed."""

STOP_AFTER_GATEWAYS_S = 3.5
STOP_AFTER_NODES_S = 1.0
"""Of that time, what is left for the nodes and the servers when the gateways take long, and for the servers."""

GIVEN_TIMEOUT_S = 5.0
"""Servers that were given by URL must answer within this time, in seconds, before anything is started."""

LEFTOVER_GRACE_S = 0.5
"""Replicas without a node end by themselves within this time, in seconds, unless they are stuck."""


class Plan(msgspec.Struct, frozen=True):
    """What to run. Gateway k listens on `port` + k. Servers without URLs are our own, so many of each kind as
    `servers` says; None for as many as there were, or one."""

    nodes: int
    gateways: int
    host: str
    port: int
    wish: Wish
    start_timeout_s: float
    servers: Count | None = None


class Progress(Protocol):
    """Whoever is told how far it is."""

    def done(self, text: str) -> None:
        """Something is accomplished."""
        ...

    def waiting(self, text: str) -> None:
        """What is waited for now."""
        ...

    def note(self, text: str) -> None:
        """Something went wrong, and is being dealt with."""
        ...


class LocalCluster:
    """The processes of one cluster on this machine."""

    def __init__(self, plan: Plan, settings: Settings, directory: DataDirectory, progress: Progress) -> None:
        self.plan = plan
        self.directory = directory
        self.settings = settings
        self._progress = progress
        self._started_at = datetime.now(UTC)
        self._earlier = directory.read_cluster()
        self._nats: list[ChildProcess] = []
        self._etcd: list[ChildProcess] = []
        self.nodes: list[ChildProcess] = []
        self.gateways: list[ChildProcess] = []
        self._keepers: dict[asyncio.Task[None], Keeper] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def check_ports(self) -> None:
        """Whether the gateways can listen. Raises `Misuse`."""
        last = self.plan.port + self.plan.gateways - 1
        if last > 65_535:
            raise Misuse(f"gateways would need ports up to {last}: choose a lower --port")
        for number in range(self.plan.gateways):
            check_address(self.plan.host, self.plan.port + number)

    def prepare(self) -> None:
        """Find binaries and ports. Raises `Misuse` for a missing binary, or another number of servers than before."""
        os.environ[MARK] = str(self.directory.path)  # all our descendants inherit it
        self._build_servers()

    async def start_servers(self, group: asyncio.TaskGroup) -> None:
        """Bring up our own servers, once those that were given have answered. Raises the store's errors."""
        await self._reach_given()
        await sweep(self.directory.path, grace_s=LEFTOVER_GRACE_S)
        for server in self._servers():
            self._keep(group, server)
        self._progress.waiting("log and lease servers")
        for keeper in self._keepers.values():
            await keeper.running.wait()
        for server in self._servers():
            self._progress.done(f"{server.name}: {server.url} (process {server.pid})")
        self._describe()
        if THREE in (len(self._nats), len(self._etcd)):
            self._progress.waiting("the servers to elect their leaders")
            await await_leader(self.settings, self.plan.start_timeout_s)
            self._progress.done("servers: a majority of each kind has a leader")

    async def start_members(self, group: asyncio.TaskGroup) -> None:
        """Start nodes and gateways; they join the cluster by themselves."""
        self.nodes = [self._node(f"node-{number + 1}") for number in range(self.plan.nodes)]
        self.gateways = [self._gateway(number) for number in range(self.plan.gateways)]
        for role, members in (("node", self.nodes), ("gateway", self.gateways)):
            for member in members:
                self._keep(group, member, role)
        self._describe()

    def settle(self) -> None:
        """It has come up once: from here on nothing that ends takes the rest with it."""
        for keeper in self._keepers.values():
            keeper.settled = True

    def stop_keeping(self) -> None:
        """Start nothing again from here on."""
        for task in (*self._keepers, *self._endings):
            task.cancel()

    async def stop(self) -> None:
        """End everything in order, within `STOP_S`, and leave no process behind."""
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + STOP_S
        await stop_all(self.gateways, deadline_s - STOP_AFTER_GATEWAYS_S - now_s())
        await stop_all(self.nodes, deadline_s - STOP_AFTER_NODES_S - now_s())
        await stop_all(self._servers(), max(0.1, deadline_s - now_s()))
        await sweep(self.directory.path, grace_s=LEFTOVER_GRACE_S)
        self._describe(running=False)

    def kill(self) -> None:
        """End everything now. For a second Ctrl-C: this process ends right after."""
        kill_marked(self.directory.path)
        self._describe(running=False)

    async def _reach_given(self) -> None:
        """Whether the servers that are not ours answer. Raises `LogUnavailable`, `LeasesUnavailable`, `Misuse`."""
        if not self._nats:
            self._progress.waiting(f"nats-server at {', '.join(self.settings.nats.urls)}")
            self._progress.done(f"nats-server: {await reach_log(self.settings, GIVEN_TIMEOUT_S)}")
        if not self._etcd:
            self._progress.waiting(f"etcd at {', '.join(self.settings.etcd.endpoints)}")
            self._progress.done(f"etcd: {await reach_leases(self.settings, GIVEN_TIMEOUT_S)}")

    # --- children ---------------------------------------------------------------------------------------

    def _build_servers(self) -> None:
        """Our own servers on the ports that they had, where these are free."""
        settings, folder, earlier = self.settings, self.directory, self._earlier
        own_log = "urls" not in settings.nats.model_fields_set
        own_leases = "endpoints" not in settings.etcd.model_fields_set
        log_count, lease_count = self._counts(own_log, own_leases)
        if own_log:
            self._nats = nats_servers(folder.nats, log_count, port=_port_of(earlier.nats if earlier else None))
            more = {} if "replicas" in settings.nats.model_fields_set else {"replicas": log_count}
            settings = _with(settings, "nats", urls=tuple(server.url for server in self._nats), **more)
        if own_leases:
            self._etcd = etcd_servers(folder.etcd, lease_count, port=_port_of(earlier.etcd if earlier else None))
            settings = _with(settings, "etcd", endpoints=tuple(server.url for server in self._etcd))
        for server in self._servers():
            server.log_path = folder.logs / f"{server.name}.log"
        self.settings = settings

    def _counts(self, own_log: bool, own_leases: bool) -> tuple[Count, Count]:
        """How many servers of each kind: as many as there is data of, else as asked. Raises `Misuse`."""
        asked, path = self.plan.servers, self.directory.path
        if asked is not None and not (own_log or own_leases):
            raise Misuse("--servers is about servers that `up` starts, and all are given by URL: leave it out")
        log = count_with_data(self.directory.nats) if own_log else None
        leases = count_with_data(self.directory.etcd) if own_leases else None
        for kind, found in (("nats-server", log), ("etcd", leases)):
            if None not in (asked, found) and asked != found:
                raise Misuse(
                    f"data directory {path} holds the data of {found} {kind}{'s' if found == THREE else ''} "
                    f"and can't go on with {asked}: "
                    f"leave --servers out to go on with {found}, or begin anew in another --data-dir"
                )
        otherwise = asked or log or leases or 1
        count = log or otherwise
        replicas = self.settings.nats.replicas
        if own_log and replicas > count:
            raise Misuse(f"HOLDFAST_NATS__REPLICAS is {replicas}, more than the {count} of --servers: leave it out")
        return count, leases or otherwise

    def _servers(self) -> list[ChildProcess]:
        return [*self._nats, *self._etcd]

    def _node(self, name: str) -> ChildProcess:
        return self._member(name, ["node", name, "--logs", str(self.directory.logs)], "", {}, signal.SIGTERM)

    def _gateway(self, number: int) -> ChildProcess:
        name, port = f"gateway-{number + 1}", self.plan.port + number
        environment = {"HOLDFAST_GATEWAY__HOST": self.plan.host, "HOLDFAST_GATEWAY__PORT": str(port)}
        return self._member(name, ["gateway", name], local_url(self.plan.host, port), environment, HURRY)

    def _member(
        self, name: str, command: list[str], url: str, more: dict[str, str], stop_signal: signal.Signals
    ) -> ChildProcess:
        return ChildProcess(
            name,
            [sys.executable, "-m", "holdfast.gateway.cli", *command],
            url=url,
            log_path=self.directory.logs / f"{name}.log",
            ready=_at_once,
            environment={**os.environ, **self._environment(), **more},
            stop_signal=stop_signal,
        )

    def _environment(self) -> dict[str, str]:
        """What tells a child which cluster it is of."""
        return {
            "HOLDFAST_CLUSTER": self.settings.cluster,
            "HOLDFAST_LEASE_TTL_S": f"{self.settings.lease_ttl_s:g}",
            "HOLDFAST_NATS__URLS": msgspec.json.encode(self.settings.nats.urls).decode(),
            "HOLDFAST_NATS__REPLICAS": str(self.settings.nats.replicas),
            "HOLDFAST_ETCD__ENDPOINTS": msgspec.json.encode(self.settings.etcd.endpoints).decode(),
        }

    def _keep(self, group: asyncio.TaskGroup, child: ChildProcess, role: str | None = None) -> None:
        """Keep it running. Of a member that ends, the lease ends as well: nobody waits for its time to live."""

        def ended(pid: int) -> None:
            if role is not None:
                ending = group.create_task(end_lease(self.settings, role, child.name, pid))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)

        keeper = Keeper(child, changed=self._changed, say=self._progress.note, ended=ended)
        self._keepers[group.create_task(keeper.run())] = keeper

    # --- cluster.json -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Write down what runs now. What runs goes on where that fails, as on a full disk."""
        try:
            self._describe()
        except OSError as error:
            self._progress.note(f"{self.directory.path / 'cluster.json'} is out of date, it can't be written: {error}")

    def _describe(self, *, running: bool = True) -> None:
        self.directory.write_cluster(
            ClusterFile(
                cluster=self.settings.cluster,
                version=VERSION,
                pid=os.getpid(),
                running=running,
                started_at=self._started_at,
                lease_ttl_s=self.settings.lease_ttl_s,
                nats=_service(self._nats, self.settings.nats.urls),
                etcd=_service(self._etcd, self.settings.etcd.endpoints),
                nodes=[Member(node.name, node.pid) for node in self.nodes],
                gateways=[Member(gateway.name, gateway.pid, gateway.url) for gateway in self.gateways],
            )
        )


def _service(servers: list[ChildProcess], urls: tuple[str, ...]) -> Service:
    return Service(list(urls), bool(servers), [Member(server.name, server.pid, server.url) for server in servers])


def _port_of(service: Service | None) -> int | None:
    """The port that our single server had when it ran last."""
    return urlsplit(service.urls[0]).port if service is not None and service.embedded else None


def _with(settings: Settings, part: str, **values: object) -> Settings:
    return settings.model_copy(update={part: getattr(settings, part).model_copy(update=values)})


async def _at_once() -> bool:
    """Members join by themselves; the log tells when they have."""
    return True
