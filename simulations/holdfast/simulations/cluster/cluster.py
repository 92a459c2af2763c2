"""A whole cluster in one world: servers, nodes, gateways, and those who use it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from functools import cached_property

import msgspec

from holdfast.actors.node import Node
from holdfast.core.events import Event, LeaderDeposed, LeaderElected
from holdfast.core.ports import LogEntry, LogStatus
from holdfast.gateway.admission_settings import AdmissionSettings
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.machine import Machine
from holdfast.gateway.processes import Stores, be_gateway, be_node
from holdfast.gateway.reporting import WatchedLeases, WatchedLog
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.settings import GatewayProcessSettings, NodeProcessSettings, Settings
from holdfast.simulations.cluster.asking import asks_from
from holdfast.simulations.cluster.budgets import NotedBudget
from holdfast.simulations.cluster.door import SimDoor, cut_client
from holdfast.simulations.cluster.members import Member
from holdfast.simulations.cluster.replicas import RunningReplica, SimLauncher
from holdfast.simulations.cluster.servers import Servers
from holdfast.simulations.cluster.starts import SentStarts
from holdfast.simulations.history import History
from holdfast.simulations.nats.client import SimConnection
from holdfast.simulations.plan import Plan
from holdfast.simulations.records import GATEWAY, NODE, REPLICA, Exchange, Term
from holdfast.simulations.records import Process as Life
from holdfast.simulations.world.process import SimClock, SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.settings import JetStreamSettings

NAME = "sim"
ELECTED, DEPOSED = b'"LeaderElected"', b'"LeaderDeposed"'
GATEWAY_PORT = 8000


class NotedLog:
    """A log whose acknowledged appends are noted. As `WatchedLog`."""

    def __init__(self, log: JetStreamLog, process: SimProcess, history: History) -> None:
        self._log = log
        self._process = process
        self._history = history
        self.term: Term | None = None
        process.on_exit(lambda _status: self.end_term(process.world.now_s))

    @property
    def connected(self) -> bool:
        return self._log.connected

    @property
    def down_since(self) -> float | None:
        return self._log.down_since

    @property
    def connection(self) -> SimConnection | None:
        """The connection that it has now, if it has one."""
        connection = self._log._session._connection
        return connection if isinstance(connection, SimConnection) else None

    async def append(self, subject: str, data: bytes, *, message_id: str, expected_last: int) -> int:
        """As `Log.append`."""
        sequence = await self._log.append(subject, data, message_id=message_id, expected_last=expected_last)
        now_s = self._process.world.now_s
        self._history.log_acknowledged(now_s, self._process.name, message_id, sequence)
        if ELECTED in data or DEPOSED in data:
            self._note_term(now_s, msgspec.json.decode(data, type=Event))
        return sequence

    def _note_term(self, now_s: float, event: Event) -> None:
        """Its node leads from now on, or has found out that it does no longer."""
        if isinstance(event.payload, LeaderElected):
            self.term = self._history.term_began(now_s, event.writer, event.incarnation, event.epoch)
        elif isinstance(event.payload, LeaderDeposed):
            self.end_term(now_s)

    def end_term(self, now_s: float) -> None:
        """Its node leads no more."""
        if self.term is not None:
            self.term.ended_s = now_s
            self.term = None

    def follow(self, after: int = 0) -> AsyncGenerator[LogEntry, None]:
        """As `Log.follow`."""
        return self._log.follow(after)

    async def last_on(self, subject: str) -> LogEntry | None:
        """As `Log.last_on`."""
        return await self._log.last_on(subject)

    async def status(self) -> LogStatus:
        """As `Log.status`."""
        return await self._log.status()

    async def close(self) -> None:
        """As `Log.close`."""
        await self._log.close()


class Cluster:
    """Everybody in it, by name."""

    def __init__(self, world: World, plan: Plan, history: History) -> None:
        self.world = world
        self.plan = plan
        self.knobs = plan.knobs
        self.history = history
        self.name = NAME
        self.over = False
        self.restarts = world.rng("restarts")
        self._lives: dict[SimProcess, Life] = {}
        self.servers = Servers(world, NAME, plan.knobs, history, self.began, plan.scenario.healed_s)
        scenario = plan.scenario
        self.nodes = [Member(self, NODE, f"n{number + 1}", self._be_node) for number in range(scenario.nodes)]
        self.gateways = [
            Member(self, GATEWAY, f"g{number + 1}", self._be_gateway) for number in range(scenario.gateways)
        ]
        self.replicas: dict[str, RunningReplica] = {}
        self.launch_failures: set[str] = set()
        self.load_failures: set[str] = set()
        self.failed_starts: Counter[str] = Counter()
        self.inside: dict[str, Node | GatewayProcess] = {}
        self._settings: dict[str, Settings] = {}
        world.on_end = self._process_ended
        world.on_unhandled = lambda process, text: history.not_handled(world.now_s, process.name, text)

    @property
    def core(self) -> tuple[str, ...]:
        """The members to which nothing happens, where what befalls the others is never over."""
        scenario = self.plan.scenario
        if scenario.heals:
            return ()
        return (*(node.name for node in self.nodes[: scenario.core_nodes]), self.gateways[0].name)

    def start(self) -> None:
        """Start the servers and all members."""
        self.servers.start()
        for member in self.members:
            member.start()

    @property
    def members(self) -> list[Member]:
        """All nodes and gateways."""
        return [*self.nodes, *self.gateways]

    @property
    def hosts(self) -> list[str]:
        """All hosts, those of clients and operators included."""
        return list(self.world.hosts)

    def gateway_urls(self) -> dict[str, str]:
        """Where clients find the gateways: their names by their URLs."""
        return {f"http://{member.host}:{GATEWAY_PORT}": member.name for member in self.gateways}

    def member(self, name: str) -> Member:
        """The member of this name."""
        return next(member for member in self.members if member.name == name)

    # --- what processes are given -----------------------------------------------------------------------

    def stores(self, process: SimProcess) -> Stores:
        """How a process gets to the log and the leases."""

        async def open_log(settings: JetStreamSettings) -> WatchedLog:
            return NotedLog(await self.servers.open_log(process, settings), process, self.history)

        return Stores(open_log=open_log, leases=lambda settings: self.servers.leases(process, settings))

    def leases(self, process: SimProcess) -> WatchedLeases:
        """The leases alone."""
        return self.servers.leases(process, self.settings_for(process.host.name).lease_settings())

    def machine(self, process: SimProcess) -> Machine:
        """A machine of the world."""
        return Machine(
            clock=SimClock(process),
            monotonic_s=process.loop.time,
            entropy=process.rng.randbytes,
            rng=process.rng,
            cut_client=cut_client,
            ask=asks_from(process),
        )

    def settings_for(self, host: str) -> Settings:
        """The settings of a process on this host."""
        if host not in self._settings:
            common, named = self._common, {"host": host}
            node, gateway = common.node.model_copy(update=named), common.gateway.model_copy(update=named)
            self._settings[host] = common.model_copy(update={"node": node, "gateway": gateway})
        return self._settings[host]

    @cached_property
    def _common(self) -> Settings:
        """What the settings of all hosts have in common. Checking all of them for each host takes too long."""
        knobs = self.knobs
        return Settings(
            cluster=self.name,
            lease_ttl_s=knobs.lease_ttl_s,
            nats=self.servers.log_settings,
            etcd=self.servers.lease_settings,
            node=NodeProcessSettings(
                slots=knobs.slots,
                heartbeat_interval_s=knobs.heartbeat_interval_s,
                cut_off_timeout_s=knobs.cut_off_timeout_s,
                drain_timeout_s=knobs.node_drain_timeout_s,
            ),
            gateway=GatewayProcessSettings(port=GATEWAY_PORT, drain_timeout_s=knobs.drain_timeout_s),
            http=HttpSettings(write_timeout_s=knobs.write_timeout_s),
            serving=ServingSettings(
                request_timeout_s=knobs.request_timeout_s,
                replica_wait_s=knobs.replica_wait_s,
                migration_limit=knobs.migration_limit,
                suspicion_phi=knobs.suspicion_phi,
                heartbeat_timeout_s=knobs.heartbeat_timeout_s,
                stream_stall_timeout_s=knobs.stream_stall_timeout_s,
            ),
            admission=AdmissionSettings(
                retry_budget_ratio=knobs.retry_budget_ratio,
                retry_budget_min_per_s=knobs.retry_budget_min_per_s,
                retry_budget_burst=knobs.retry_budget_burst,
                outlier_interval_s=knobs.outlier_interval_s,
                outlier_requests_min=knobs.outlier_requests_min,
                outlier_window_s=knobs.outlier_window_s,
                outlier_ejection_s=knobs.outlier_ejection_s,
                outlier_ejection_max_s=knobs.outlier_ejection_max_s,
            ),
        )

    # --- processes --------------------------------------------------------------------------------------

    async def _be_node(self, member: Member) -> None:
        process = member.process
        assert process is not None
        stop = asyncio.Event()
        member.on_stop(stop)
        launcher = SimLauncher(process, self._start_replica, lambda: self._launch_fails(member.host))
        await be_node(
            self.settings_for(member.host),
            member.identity(),
            launcher,
            stop,
            self.stores(process),
            self.machine(process),
            lambda node: self.inside.update({member.name: node}),
        )

    async def _be_gateway(self, member: Member) -> None:
        process = member.process
        assert process is not None
        stop = asyncio.Event()
        member.on_stop(stop, self.knobs.drain_timeout_s)
        process.on_write = SentStarts(process, self.history).sent
        await be_gateway(
            self.settings_for(member.host),
            member.identity(),
            lambda app, settings: SimDoor(process, app, settings, lambda: self._exchange(process)),
            stop,
            self.stores(process),
            self.machine(process),
            lambda gateway: self._made(process, gateway),
        )

    def _made(self, process: SimProcess, gateway: GatewayProcess) -> None:
        self.inside[process.name] = gateway
        serving = gateway._serving
        serving._retries = serving._dispatch._retries = NotedBudget(serving._retries, process, self.history)

    def _exchange(self, process: SimProcess) -> Exchange:
        """A gateway begins to serve a request: it must be done by its time limit, and a last write's."""
        settings = self.settings_for(process.host.name)
        due_s = self.world.now_s + settings.serving.request_timeout_s + settings.http.write_timeout_s
        return self.history.exchange(self.world.now_s, process.pid, due_s)

    def _launch_fails(self, host: str) -> bool:
        fails = host in self.launch_failures
        self.failed_starts[host] += fails
        return fails

    def _start_replica(self, node: SimProcess, name: str, specification: bytes) -> RunningReplica:
        replica = RunningReplica(name, node, self.knobs.load_s, self.history)
        replica.fails_to_load = node.host.name in self.load_failures
        self.failed_starts[node.host.name] += replica.fails_to_load
        process = self.world.spawn(name, node.host.name, lambda process: replica.main(process, specification))
        life = self.began(process, REPLICA, replica=name, parent=node.pid)
        replica.started(process, life)
        self.replicas[name] = replica
        return replica

    def began(self, process: SimProcess, role: str, *, replica: str = "", parent: int = 0) -> Life:
        """Note that a process starts; its record."""
        life = self._lives[process] = self.history.process_began(
            self.world.now_s, process.name, role, process.host.name, process.pid, replica=replica, parent=parent
        )
        return life

    def life(self, process: SimProcess) -> Life:
        """The record of a process of the cluster."""
        return self._lives[process]

    def froze(self, process: SimProcess) -> None:
        """A fault: the process stands still."""
        process.freeze()
        if (life := self._lives.get(process)) is not None:
            life.froze(self.world.now_s)

    def thawed(self, process: SimProcess) -> None:
        """It goes on."""
        process.thaw()
        if (life := self._lives.get(process)) is not None:
            life.thawed(self.world.now_s)

    def killed(self, process: SimProcess, by: str) -> None:
        """A fault: SIGKILL."""
        if (life := self._lives.get(process)) is not None:
            life.by = by
        process.kill()

    def power_off(self, host: str, by: str) -> None:
        """A fault: the host has no power."""
        for process, life in self._lives.items():
            if process.host.name == host and process.alive:
                life.by = by
        self.world.power_off(host)

    def _process_ended(self, process: SimProcess) -> None:
        life = self._lives.get(process)
        if life is not None and not self.over:
            replica = self.replicas.pop(life.replica, None)
            streams = replica.streams if replica is not None else 0
            life.ended(self.world.now_s, process.status or 0, life.by, streams_left=streams)
            inside = self.inside.pop(process.name, None)
            if inside is not None:
                self.history.state_folded(self.world.now_s, process.name, inside._follower.state)
