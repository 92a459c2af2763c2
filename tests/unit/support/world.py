"""A cluster of real actors over the in-memory log and leases, with replica processes that are only played."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import msgspec

from holdfast.actors.follower import Follower
from holdfast.actors.identity import Identity
from holdfast.actors.node import Node, NodeSettings
from holdfast.actors.operator import Operator
from holdfast.actors.specification import (
    Ready,
    ReplicaSpecification,
    Report,
    StopOrder,
    decode_order,
    encode_report,
)
from holdfast.core.cluster import ClusterState, ReplicaStatus
from holdfast.core.config import ApplicationConfig, DrainMode
from holdfast.core.entries import decode_record
from holdfast.core.errors import WorldFailure
from holdfast.core.events import DrainTarget, Payload, Record
from holdfast.core.ports import Process
from holdfast.store.memory import MemoryLog, MemoryLogServer
from holdfast.store.memory_leases import MemoryLeases, MemoryLeasesServer
from tests.unit.support.history import INFO
from tests.unit.support.virtual_time import VirtualClock, now_s

TTL_S = 5.0
CUT_OFF_TIMEOUT_S = 30.0


def identity_of(name: str, incarnation: str = "1", role: str = "node") -> Identity:
    """An actor's identity in the test cluster."""
    return Identity("test", role, name, incarnation, "host", 7)


class FakeProcess:
    """A replica's process, played by the test. `stops_after_s`: how long it takes to obey an order; None: never."""

    def __init__(self, pid: int, specification: ReplicaSpecification, stops_after_s: float | None) -> None:
        self._pid = pid
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stops_after_s = stops_after_s
        self.specification = specification
        self.launched_s = now_s()
        self.signals: list[str] = []
        self.orders: list[StopOrder] = []

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        return self._status.result() if self._status.done() else None

    async def messages(self) -> AsyncIterator[bytes]:
        while (line := await self._lines.get()) is not None:
            yield line

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    def tell(self, line: bytes) -> None:
        if self.status is not None:
            return
        self.signals.append("STOP")
        self.orders.append(decode_order.decode(line))
        if self._stops_after_s is not None:
            asyncio.get_running_loop().call_later(self._stops_after_s, self.ends, 0)

    def kill(self) -> None:
        if self.status is None:
            self.signals.append("KILL")
            self.ends(-9)

    def says(self, report: Report | bytes) -> None:
        """Report to the node."""
        self._lines.put_nowait(report if isinstance(report, bytes) else encode_report(report))

    def ends(self, status: int) -> None:
        """Exit, unless it has."""
        if not self._status.done():
            self._status.set_result(status)
            self._lines.put_nowait(None)


class FakeLauncher:
    """Plays processes: each does `script` when it starts; with `failure` none can be started."""

    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []
        self.launches: Counter[str] = Counter()
        self.launch_times_s: list[float] = []
        self.failure: str | None = None
        self.stops_after_s: float | None = 0.0
        self.script: Callable[[FakeProcess], None] = lambda process: process.says(Ready("127.0.0.1:9", INFO))

    async def launch(self, replica: str, specification: bytes) -> Process:
        await asyncio.sleep(0)
        self.launches[replica] += 1
        self.launch_times_s.append(now_s())
        if self.failure is not None:
            raise WorldFailure(self.failure)
        decoded = msgspec.json.decode(specification, type=ReplicaSpecification)
        process = FakeProcess(1000 + len(self.processes), decoded, self.stops_after_s)
        self.processes.append(process)
        self.script(process)
        return process

    @property
    def running(self) -> list[FakeProcess]:
        """Processes that have not ended."""
        return [process for process in self.processes if process.status is None]


class RunningNode:
    """A node that runs, with its own connections, so that they can be cut."""

    def __init__(self, world: World, name: str, incarnation: str, slots: int, latency_s: float) -> None:
        self.log: MemoryLog = world.log.client(name, latency=lambda: latency_s)
        self.leases: MemoryLeases = world.leases.client(name, latency=lambda: latency_s)
        self.launcher = FakeLauncher()
        self._stop = asyncio.Event()
        self._node = Node(
            identity_of(name, incarnation),
            NodeSettings("0", world.ttl_s, slots, cut_off_timeout_s=CUT_OFF_TIMEOUT_S),
            log=self.log,
            leases=self.leases,
            clock=VirtualClock(),
            launcher=self.launcher,
            rng=random.Random(name),
        )
        self.task = asyncio.create_task(self._node.run(self._stop))

    def cut(self) -> None:
        """Cut it off from the log and the leases."""
        self.log.link.cut()
        self.leases.link.cut()

    def heal(self) -> None:
        self.log.link.heal()
        self.leases.link.heal()

    async def leave(self) -> None:
        """Tell it to stop, and wait until it has."""
        self._stop.set()
        await self.task

    async def crash(self) -> None:
        """As `kill -9`: it can say nothing to anybody any more."""
        self.cut()
        self.task.cancel()
        with contextlib.suppress(BaseException):
            await self.task


class World:
    """A log, leases and nodes; use with `async with`. `state` is what a bystander reads in the log."""

    def __init__(self, ttl_s: float = TTL_S) -> None:
        self.log = MemoryLogServer()
        self.leases = MemoryLeasesServer()
        self.ttl_s = ttl_s
        self.follower = Follower(self.log.client("bystander"))
        self.nodes: list[RunningNode] = []
        self._following: asyncio.Task[None] | None = None
        self._operator = Operator(
            self.log.client("o"), VirtualClock(), identity_of("o", role="operator"), self.follower
        )

    async def __aenter__(self) -> World:
        self._following = asyncio.create_task(self.follower.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        for node in self.nodes:
            await node.crash()
        assert self._following is not None
        self._following.cancel()

    @property
    def state(self) -> ClusterState:
        return self.follower.state

    def node(self, name: str, incarnation: str = "1", *, slots: int = 8, latency_s: float = 0.0) -> RunningNode:
        """Start a node."""
        node = RunningNode(self, name, incarnation, slots, latency_s)
        self.nodes.append(node)
        return node

    async def deploy(self, application: ApplicationConfig) -> None:
        await self._operator.deploy(application)

    async def delete(self, application: str) -> bool:
        """Whether it had to be asked for."""
        return await self._operator.delete(application)

    async def drain(
        self, kind: DrainTarget, name: str, mode: DrainMode | None = None, deadline_s: float | None = None
    ) -> bool:
        """Whether it had to be asked for."""
        return await self._operator.drain(kind, name, mode, deadline_s)

    async def undrain(self, kind: DrainTarget, name: str) -> bool:
        """Whether it had to be asked for."""
        return await self._operator.undrain(kind, name)

    async def until(self, predicate: Callable[[ClusterState], bool], within_s: float = 60.0) -> float:
        """Wait until the state is so; the (virtual) time then."""
        async with asyncio.timeout(within_s):
            await self.follower.until(predicate)
        return now_s()

    async def running(self, replicas: int, within_s: float = 60.0) -> float:
        """Wait until so many replicas run, and none is on its way in or out."""
        return await self.until(
            lambda state: [replica.status for replica in state.replicas.values()] == [ReplicaStatus.RUNNING] * replicas,
            within_s,
        )

    def records(self) -> list[Record]:
        """The whole log."""
        entries = map(self.log.entry, range(1, self.log.last_sequence + 1))
        return [decode_record(entry) for entry in entries if entry is not None]

    def happened(self, *kinds: type[Payload]) -> list[Payload]:
        """The log's payloads of these kinds, in order."""
        return [record.event.payload for record in self.records() if isinstance(record.event.payload, kinds)]
