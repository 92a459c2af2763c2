"""Replica processes in a simulation: what a node's launcher starts, and the pipes between the two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from holdfast.actors import replica_main
from holdfast.actors.engines.base import Engine
from holdfast.actors.engines.mock import MockEngine, parse_settings
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification, Report, decode_order, encode_report
from holdfast.core.errors import WorldFailure
from holdfast.core.ports import Process
from holdfast.simulations.cluster.engines import BreakableEngine
from holdfast.simulations.history import History
from holdfast.simulations.records import Process as Life
from holdfast.simulations.world.process import SimProcess

PIPE_LINES_MAX = 500
"""Reports that a pipe holds for a node which stands still: about 64 KiB."""

FORK_S = (0.001, 0.02)
"""Starting a process takes between so long and so long (seconds)."""

LOAD_SPREAD = 0.5
"""An engine takes its time to load, plus or minus this part."""


class RunningReplica:
    """A replica's process, for its node and for faults. `engine` and `replica` are None until it is loaded.

    To its node it is a `Process`; to the replica it is a `replica_main.Channel`.
    """

    def __init__(self, name: str, node: SimProcess, load_s: float, history: History) -> None:
        self.name = name
        self.node = node
        self.engine: BreakableEngine | None = None
        self.replica: Replica | None = None
        self.fails_to_load = False
        self.flaps = False
        self._load_s = load_s
        self._history = history
        self._process: SimProcess | None = None
        self._life: Life | None = None
        self._grace_s = 0.0
        self._stdin: asyncio.StreamReader | None = None
        self._unread = b""
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._status: asyncio.Future[int] = node.loop.create_future()

    def started(self, process: SimProcess, life: Life) -> None:
        """Its process is there. `life` is its record."""
        self._process, self._life = process, life
        process.on_exit(lambda status: self.node.call(self._ended, status))
        self.node.on_exit(lambda _status: process.call(self._hang_up))

    @property
    def streams(self) -> int:
        """How many streams its engine has."""
        if self.engine is None:
            return 0
        load = self.engine.load()
        return load.running + load.waiting

    @property
    def process(self) -> SimProcess:
        """Its process, from `started` on."""
        assert self._process is not None
        return self._process

    # --- as the node sees it ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """As `Process.pid`."""
        return self.process.pid

    async def messages(self) -> AsyncIterator[bytes]:
        """As `Process.messages`."""
        while (line := await self._lines.get()) is not None:
            yield line

    async def wait(self) -> int:
        """As `Process.wait`."""
        return await asyncio.shield(self._status)

    def tell(self, line: bytes) -> None:
        """As `Process.tell`."""
        self._told(decode_order.decode(line).deadline_s)
        self.process.call(self._feed, line + b"\n")

    def terminate(self) -> None:
        """A fault: somebody else than its node tells it to stop."""
        self._told(self._grace_s)
        self.process.terminate()

    def _told(self, grace_s: float) -> None:
        if self._life is not None:
            self._life.told(self.process.world.now_s, grace_s)

    def _feed(self, data: bytes) -> None:
        if self._stdin is not None:
            self._stdin.feed_data(data)
        else:
            self._unread += data  # the pipe keeps what comes before anybody reads

    def kill(self) -> None:
        """As `Process.kill`."""
        self.process.kill()

    def _ended(self, status: int) -> None:
        self._lines.put_nowait(None)
        self._status.set_result(status)

    # --- as the replica sees its node -------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """As `Channel.report`."""
        self.node.call(self._lines.put_nowait, encode_report(report))

    def note(self, report: Report) -> None:
        """As `Channel.note`."""
        if self._lines.qsize() < PIPE_LINES_MAX:
            self.report(report)

    # --- the process itself -----------------------------------------------------------------------------

    async def main(self, process: SimProcess, specification: bytes) -> int:
        """What the process runs: the production replica."""
        self._grace_s = msgspec.json.decode(specification, type=ReplicaSpecification).graceful_shutdown_timeout_s
        self._stdin = asyncio.StreamReader(loop=process.loop)
        self._stdin.feed_data(specification + b"\n" + self._unread)
        return await replica_main.run(self, self._stdin, self._load, process.exit, self._serves)

    def _serves(self, replica: Replica) -> None:
        self.replica = replica

    def _hang_up(self) -> None:
        if self._stdin is not None:
            self._stdin.feed_eof()

    async def _load(self, specification: ReplicaSpecification) -> Engine:
        process = self.process
        await asyncio.sleep(self._load_s * process.rng.uniform(1 - LOAD_SPREAD, 1 + LOAD_SPREAD))
        if self.fails_to_load:
            raise RuntimeError("the weights can't be read")
        mock = MockEngine(parse_settings(specification.engine.arguments), specification.model, process.rng)
        self.engine = BreakableEngine(mock, process, self.name, self._history)
        return self.engine


class SimLauncher:
    """As `Launcher`. `start(node, replica, specification)` starts the process; `fails()` tells whether none can be."""

    def __init__(
        self,
        node: SimProcess,
        start: Callable[[SimProcess, str, bytes], RunningReplica],
        fails: Callable[[], bool],
    ) -> None:
        self._node = node
        self._start = start
        self._fails = fails

    async def launch(self, replica: str, specification: bytes) -> Process:
        """As `Launcher.launch`."""
        await asyncio.sleep(self._node.rng.uniform(*FORK_S))
        if self._fails():
            raise WorldFailure(f"replica {replica} could not be started: [Errno 11] Resource temporarily unavailable")
        return self._start(self._node, replica, specification)
