"""How a cluster does that is a thousand times larger than the one that faults are drawn for.

The production nodes, controllers, replicas and gateways, each with an event loop of its own, over servers that cost
little (`scale.servers`) and with one fold for all (`scale.folding`). Everything is started, an application is deployed,
nothing happens for a while, and then a tenth of the hosts lose power at once.

What takes virtual time: messages, the log's disk, the loading of engines. The processes' own work takes none, and is
measured apart, in seconds of this machine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

import msgspec

from holdfast.actors import controller
from holdfast.actors.follower import Follower
from holdfast.actors.identity import Identity
from holdfast.actors.operator import Operator
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, ReplicaStatus
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.entries import decode_record
from holdfast.core.frames import Heartbeat, encode
from holdfast.core.ports import LogEntry
from holdfast.core.reconcile import Evidence, Plan, reconcile
from holdfast.core.requests import EngineLoad
from holdfast.gateway.app import App
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.machine import Machine
from holdfast.gateway.processes import Stores, be_node
from holdfast.gateway.reporting import WatchedLog
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.settings import GatewayProcessSettings, NodeProcessSettings, Settings
from holdfast.simulations.cluster.replicas import RunningReplica, SimLauncher
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, NODE, REPLICA
from holdfast.simulations.scale.folding import shared_folding, state_bytes
from holdfast.simulations.scale.servers import ScaleLeasesServer, ScaleLogServer
from holdfast.simulations.world.process import SimClock, SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.settings import JetStreamSettings

LOAD_S = 1.0
"""A replica's engine takes so long to load, plus or minus half of it (seconds)."""

SPARE = 1.5
"""So many slots per replica, so that the replicas of lost nodes find room."""

BEATS_PER_S = 5_000
"""Heartbeats of all replicas together, per virtual second, that the simulation is to carry: the interval follows."""

BEATS_TIMED = 20_000

QUIET_S = 20.0
"""How long nothing happens, and what happens all the same is counted (seconds)."""

LOST_PART = 0.1
"""The part of the nodes that vanishes."""

STEP_S = 0.25
LIMIT_S = 600.0
"""The cluster is looked at so often, and is given up after so long (virtual seconds)."""


class ScaleReport(msgspec.Struct, frozen=True):
    """What was measured at one size. Times are virtual seconds, but for `cpu`, which is this machine's.

    `start` is from the wish for the application until all its replicas run, `loss` what follows the loss of the nodes:
    `known_after_s` until the last of them is given up, `decided_after_s` until the last replica is replaced,
    `running_after_s` until the last of those runs, and `linked_after_s` until every gateway reaches all of them.
    `decision_cpu_s` is what the controller's looks at the state took for each decision, those that found nothing to
    decide included. `follower_bytes` is what the folded state takes in each member. `leader_loss` is the loss of the
    leader's host alone, after that: until all replicas run again, and what the election asks of the lease servers.
    `beat_cpu_s` is what a gateway does with one heartbeat, without the kernel's part.
    """

    nodes: int
    replicas: int
    gateways: int
    heartbeat_interval_s: float
    start_s: float
    start_events: int
    event_bytes: float
    events_per_s_max: int
    decisions_per_s_max: int
    decision_cpu_s: float
    look_cpu_max_s: float
    quiet_events_per_s: float
    quiet_lease_requests_per_s: float
    quiet_listed_bytes_per_s: float
    lost_nodes: int
    lost_replicas: int
    loss_events: int
    known_after_s: float
    decided_after_s: float
    running_after_s: float
    linked_after_s: float
    leader_loss_running_after_s: float
    leader_loss_lease_requests: int
    follower_bytes: int
    beat_cpu_s: float
    cpu_s: float = 0.0
    memory_bytes: int = 0


class _NoDoor:
    """As `Door`: no client comes."""

    def __init__(self, _app: App, _settings: GatewayProcessSettings) -> None:
        pass

    def bind(self) -> None:
        """Every address can be had."""

    async def run(self) -> None:
        """Serve nobody."""
        await asyncio.Event().wait()

    async def listening(self) -> None:
        """At once."""


class _Looks:
    """Times the controller's looks at the state."""

    def __init__(self) -> None:
        self.decisions = 0
        self.cpu_s = 0.0
        self.cpu_max_s = 0.0
        self._reconcile = reconcile

    def __enter__(self) -> _Looks:
        controller.__dict__["reconcile"] = self._look
        return self

    def __exit__(self, *error: object) -> None:
        controller.__dict__["reconcile"] = self._reconcile

    def _look(self, state: ClusterState, evidence: Evidence, now: datetime) -> Plan:
        began_s = time.process_time()
        plan = self._reconcile(state, evidence, now)
        took_s = time.process_time() - began_s
        self.decisions += len(plan.proposals)
        self.cpu_s += took_s
        self.cpu_max_s = max(self.cpu_max_s, took_s)
        return plan


class ScaleCluster:
    """The members and their servers in one world."""

    def __init__(self, nodes: int, replicas: int, gateways: int) -> None:
        self.world = World(f"scale {nodes} {replicas} {gateways}")
        self.log = ScaleLogServer(self.world)
        self.leases = ScaleLeasesServer(self.world)
        self.replicas = replicas
        self.interval_s = min(max(0.1, replicas * gateways / BEATS_PER_S), 60.0)
        self.settings = Settings(
            cluster="scale",
            node=NodeProcessSettings(slots=math.ceil(SPARE * replicas / nodes), heartbeat_interval_s=self.interval_s),
            serving=ServingSettings(heartbeat_timeout_s=max(2.0, 4 * self.interval_s)),
        )
        self.gateways: list[GatewayProcess] = []
        self.errors: list[str] = []
        self._history = History()
        self.world.on_unhandled = lambda process, text: self.errors.append(f"{process.name}: {text}")
        self.operator = self._spawn("operator", "o", self._operate)
        self.state: Callable[[], ClusterState] = ClusterState
        self.nodes = [self._spawn(NODE, f"n{number}", self._be_node) for number in range(nodes)]
        for number in range(gateways):
            self._spawn(GATEWAY, f"g{number}", self._be_gateway)

    def running(self) -> bool:
        """Whether all replicas run, by the log."""
        found = self.state().replicas.values()
        return len(found) == self.replicas and all(one.status is ReplicaStatus.RUNNING for one in found)

    def linked(self) -> bool:
        """Whether all gateways can send streams to all replicas."""
        return all(_ready(gateway) == self.replicas for gateway in self.gateways)

    def until(self, reached: Callable[[], bool], what: str) -> float:
        """Let time pass until it is so; the virtual time then. Raises `TimeoutError`."""
        began_s = self.world.now_s
        while not reached():
            if self.world.now_s > began_s + LIMIT_S or self.errors:
                raise TimeoutError(f"{what}: not within {LIMIT_S:g} s; {self.errors[:3]}")
            self.run(STEP_S)
        return self.world.now_s

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        scheduler = self.world.scheduler
        scheduler.turns = 0
        scheduler.run(scheduler.now_s + seconds)

    def vanish(self, part: float) -> int:
        """This part of the nodes' hosts loses power, not the leader's; how many that are."""
        leader = self.state().leader
        hosts = [node.host.name for node in self.nodes if node.name != leader]
        return self._power_off(hosts[:: round(1 / part)])

    def lose_leader(self) -> int:
        """The leader's host loses power; what is asked of the lease servers until another one leads."""
        leader = self.state().leader
        assert leader is not None
        self.leases.requests.clear()
        self._power_off([leader])
        self.until(lambda: self.state().leader != leader, "another one leads")
        return self.leases.requests.total()

    def _power_off(self, hosts: Sequence[str]) -> int:
        left: dict[object, list[asyncio.Task[Any]]] = {}
        for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined]  # once for all, not once for each
            left.setdefault(task.get_loop(), []).append(task)
        self.world.tasks_of = left.get
        for host in hosts:
            self.world.power_off(host)
        self.world.tasks_of = asyncio.all_tasks
        return len(hosts)

    # --- processes --------------------------------------------------------------------------------------

    def _spawn(
        self, role: str, name: str, main: Callable[[SimProcess, Identity], Coroutine[Any, Any, None]]
    ) -> SimProcess:
        async def run(process: SimProcess) -> None:
            incarnation = f"{process.rng.getrandbits(32):08x}"
            identity = Identity("scale", role, name, incarnation, name, process.pid, name)
            await main(process, identity)

        return self.world.spawn(name, name, run)

    async def _be_node(self, process: SimProcess, identity: Identity) -> None:
        async def open_log(_settings: JetStreamSettings) -> WatchedLog:
            return self.log.client(process)

        stores = Stores(open_log=open_log, leases=lambda _settings: self.leases.connect(process))
        launcher = SimLauncher(process, self._start_replica, lambda: False)
        node = self.settings.node.model_copy(update={"host": identity.host})
        settings = self.settings.model_copy(update={"node": node})
        await be_node(settings, identity, launcher, asyncio.Event(), stores, self._machine(process))

    async def _be_gateway(self, process: SimProcess, identity: Identity) -> None:
        log, leases = self.log.client(process), self.leases.connect(process)
        gateway = GatewayProcess(self.settings, identity, log, leases, self._machine(process), _NoDoor)
        self.gateways.append(gateway)
        await gateway.run(asyncio.Event())

    def _machine(self, process: SimProcess) -> Machine:
        return Machine(
            clock=SimClock(process),
            monotonic_s=process.loop.time,
            entropy=process.rng.randbytes,
            rng=process.rng,
            cut_client=lambda _scope: None,
        )

    def _start_replica(self, node: SimProcess, name: str, specification: bytes) -> RunningReplica:
        running = RunningReplica(name, node, LOAD_S, self._history)
        process = self.world.spawn(name, node.host.name, lambda process: running.main(process, specification))
        life = self._history.process_began(
            self.world.now_s, name, REPLICA, process.host.name, process.pid, replica=name, parent=node.pid
        )
        running.started(process, life)
        return running

    async def _operate(self, process: SimProcess, identity: Identity) -> None:
        """Deploy once all nodes have joined, and read on."""
        log = self.log.client(process)
        follower = Follower(log)
        self.state = lambda: follower.state
        following = asyncio.create_task(follower.run())
        await follower.until(lambda state: len(state.nodes) == len(self.nodes))
        engine = EngineConfig("mock")
        deployment = DeploymentConfig("mock", engine, self.replicas, engine_stall_timeout_s=60.0)
        operator = Operator(log, SimClock(process), identity, follower)
        await operator.deploy(ApplicationConfig("default", [deployment]))
        await following


def _ready(gateway: GatewayProcess) -> int:
    return sum(link.ready for link in gateway._serving._links.values())


def measure(nodes: int, replicas: int, gateways: int, progress: Callable[[str], object]) -> ScaleReport:
    """As `scale.apart.run_scale`, in this process, which is of no use afterwards. Raises `TimeoutError`."""
    began_s = time.process_time()
    logging.disable(logging.CRITICAL)
    gc.disable()  # millions of objects that all live: looking through them again and again would take most of the time
    with _Looks() as looks, shared_folding():
        report = _measure(ScaleCluster(nodes, replicas, gateways), looks, progress)
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return msgspec.structs.replace(report, cpu_s=time.process_time() - began_s, memory_bytes=memory_bytes)


class _Life(msgspec.Struct, frozen=True):
    """What befell a cluster, and when (virtual seconds); the log's length in between."""

    started: int
    quiet_events: int
    quiet_requests: int
    quiet_listed_bytes: int
    lost_nodes: int
    lost_s: float
    linked_s: float
    recovered: int
    leader_lost_s: float
    election_requests: int


def _live(cluster: ScaleCluster, progress: Callable[[str], object]) -> _Life:
    log, leases, world = cluster.log, cluster.leases, cluster.world
    progress("starting")
    cluster.until(cluster.running, "all replicas run")
    cluster.until(cluster.linked, "all gateways reach all replicas")
    started = log.told
    progress("standing")
    leases.requests.clear()
    leases.listed_bytes = 0
    cluster.run(QUIET_S)
    quiet = (log.told - started, leases.requests.total(), leases.listed_bytes)
    progress("losing nodes")
    lost_s, lost_nodes = world.now_s, cluster.vanish(LOST_PART)
    cluster.until(lambda: not cluster.running(), "the loss is noticed")
    cluster.until(cluster.running, "all replicas run again")
    linked_s = cluster.until(cluster.linked, "all gateways reach all replicas again")
    progress("losing the leader")
    recovered, leader_lost_s = log.told, world.now_s
    election_requests = cluster.lose_leader()
    cluster.until(lambda: not cluster.running(), "the leader's loss is noticed")
    cluster.until(cluster.running, "all replicas run once more")
    return _Life(started, *quiet, lost_nodes, lost_s, linked_s, recovered, leader_lost_s, election_requests)


def _measure(cluster: ScaleCluster, looks: _Looks, progress: Callable[[str], object]) -> ScaleReport:
    life = _live(cluster, progress)
    progress("folding")
    log, entries = cluster.log, cluster.log.entries()
    start = _Times(log, entries[: life.started])
    loss = _Times(log, entries[life.started + life.quiet_events : life.recovered])
    leader_loss = _Times(log, entries[life.recovered :])
    return ScaleReport(
        nodes=len(cluster.nodes),
        replicas=cluster.replicas,
        gateways=len(cluster.gateways),
        heartbeat_interval_s=cluster.interval_s,
        start_s=start.last(ev.ReplicaReady) - start.last(ev.DeployRequested),
        start_events=life.started,
        event_bytes=log.bytes / len(entries),
        events_per_s_max=_most_within(log.appended_s, 1.0),
        decisions_per_s_max=_most_within(start.decided_s, 1.0),
        decision_cpu_s=looks.cpu_s / looks.decisions,
        look_cpu_max_s=looks.cpu_max_s,
        quiet_events_per_s=life.quiet_events / QUIET_S,
        quiet_lease_requests_per_s=life.quiet_requests / QUIET_S,
        quiet_listed_bytes_per_s=life.quiet_listed_bytes / QUIET_S,
        lost_nodes=life.lost_nodes,
        lost_replicas=loss.count(ev.ReplicaReplaced),
        loss_events=loss.events,
        known_after_s=loss.last(ev.NodeLost) - life.lost_s,
        decided_after_s=loss.last(ev.ReplicaReplaced) - life.lost_s,
        running_after_s=loss.last(ev.ReplicaReady) - life.lost_s,
        linked_after_s=life.linked_s - life.lost_s,
        leader_loss_running_after_s=leader_loss.last(ev.ReplicaReady) - life.leader_lost_s,
        leader_loss_lease_requests=life.election_requests,
        follower_bytes=state_bytes(entries),
        beat_cpu_s=_beat_cpu_s(cluster.gateways[0]),
    )


def _beat_cpu_s(gateway: GatewayProcess) -> float:
    """What one heartbeat costs a gateway, from its bytes on."""
    link = next(iter(gateway._serving._links.values()))
    connection = link._contact.connection
    assert connection is not None
    beats = [encode(Heartbeat(EngineLoad(0, 0, 0, 1, 0), False, 0))] * BEATS_TIMED
    began_s = time.process_time()
    for beat in beats:
        connection.data_received(beat)
    return (time.process_time() - began_s) / BEATS_TIMED


class _Times:
    """When what happened was on the log's disk."""

    def __init__(self, log: ScaleLogServer, entries: Sequence[LogEntry]) -> None:
        self.events = len(entries)
        self._at_s: dict[type[ev.Payload], list[float]] = {}
        self.decided_s: list[float] = []
        for entry in entries:
            at_s, payload = log.appended_s[entry.sequence - 1], decode_record(entry).event.payload
            self._at_s.setdefault(type(payload), []).append(at_s)
            if isinstance(payload, ev.Decision):
                self.decided_s.append(at_s)

    def count(self, kind: type[ev.Payload]) -> int:
        """How often this happened."""
        return len(self._at_s.get(kind, ()))

    def last(self, kind: type[ev.Payload]) -> float:
        """When this happened last. Raises `KeyError` if it did not."""
        return self._at_s[kind][-1]


def _most_within(times_s: Sequence[float], seconds: float) -> int:
    """The most of these times, which rise, that lie within so long."""
    most, first = 0, 0
    for last, at_s in enumerate(times_s):
        while at_s - times_s[first] > seconds:
            first += 1
        most = max(most, last + 1 - first)
    return most
