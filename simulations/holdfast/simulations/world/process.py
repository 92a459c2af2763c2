"""A simulated process: an event loop, what runs on it, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from holdfast.simulations.world.loop import ProcessLoop

if TYPE_CHECKING:
    from holdfast.simulations.world.world import Host, World

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""What wall clocks show at the beginning, where they are right."""

CLOCK_OFFSET_MAX_S = 100_000.0
"""Monotonic clocks begin anywhere up to here, in seconds: nobody can do anything with another process's time."""

KILLED = -int(signal.SIGKILL)
TERMINATED = -int(signal.SIGTERM)

Main = Callable[["SimProcess"], Coroutine[Any, Any, int | None]]


class SimProcess:
    """One process of a host. Runs `main(process)`, whose result is the exit status (None: 0)."""

    def __init__(self, world: World, name: str, host: Host, pid: int, main: Main) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.pid = pid
        self.rng = world.rng(f"process {name} {pid}")
        self.alive = True
        self.frozen = False
        self.on_write: Callable[[bytes], object] | None = None
        self.status: int | None = None
        self.lane = world.scheduler.lane()
        offset_s = self.rng.random() * CLOCK_OFFSET_MAX_S
        self.loop = ProcessLoop(world.scheduler, self.lane, offset_s)  # type: ignore[abstract]  # as its docstring says
        self.loop.process = self
        self.loop.on_exception = self._on_exception
        self._on_exit: list[Callable[[int], object]] = []
        self._left: object = None
        self._main: asyncio.Task[int] | None = None
        self.call(self._begin, main)

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Let something happen in this process when its turn comes. Nothing does once it has ended."""
        self.loop.call_from_world(callback, *args)

    def on_exit(self, callback: Callable[[int], object]) -> None:
        """Call `callback(status)` when the process ends, from nowhere: use `call` to tell another process."""
        self._on_exit.append(callback)

    # --- what befalls it --------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more, not even a `finally`."""
        self._end(KILLED)

    def exit(self, status: int) -> None:
        """It ends itself, at once."""
        self._end(status)

    def terminate(self) -> None:
        """SIGTERM: its handler runs when its turn comes; without one it ends."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Any signal that a process may handle."""
        handler = self.loop.signal_handler(number)
        if handler is not None:
            self.call(handler)
        elif self.alive:
            self._end(-number)

    def freeze(self) -> None:
        """SIGSTOP. Its kernel goes on taking in what comes for it."""
        if self.alive and not self.frozen:
            self.frozen = True
            self.world.scheduler.freeze(self.lane)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.frozen:
            self.frozen = False
            if self.alive:
                self.world.scheduler.thaw(self.lane)

    def slow(self, cost_s: float) -> None:
        """Let each callback take so long (seconds, 0: none), as on a machine that has too much to do."""
        self.lane.cost_s = cost_s

    @property
    def slowed(self) -> bool:
        """Whether its callbacks take time."""
        return self.lane.cost_s > 0

    def forget(self) -> None:
        """The world ends: nobody is told, and nothing is kept."""
        self._on_exit.clear()
        if self.alive:
            self.alive = False
            self._closed()
        self._left = self._main = None

    # --- its life ---------------------------------------------------------------------------------------

    def _begin(self, main: Main) -> None:
        # Kept, as `asyncio.run` does: a task that waits for something which nobody else holds is garbage else.
        self._main = self.loop.create_task(self._live(main), name=self.name)
        self._main.add_done_callback(self._done)

    async def _live(self, main: Main) -> int:
        return await main(self) or 0

    def _done(self, task: asyncio.Task[int]) -> None:
        if task.cancelled():
            self._on_exception({"message": "its main task was cancelled"})
            self._end(1)
        elif (error := task.exception()) is not None:
            self._on_exception({"message": "it ended by an exception", "exception": error})
            self._end(1)
        else:
            self._end(task.result())

    def _end(self, status: int) -> None:
        if not self.alive:
            return
        self.alive = False
        self.status = status
        # What it held is kept until the run is over: collected earlier, its `finally` clauses would run.
        self._left, self._main = self.world.tasks_of(self.loop), None
        self._closed()
        self.world.process_ended(self)
        for callback in self._on_exit:
            callback(status)

    def _closed(self) -> None:
        self.world.scheduler.drop(self.lane)
        self.world.network.process_ended(self)

    def _on_exception(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = str(context.get("message", ""))
        if isinstance(error, BaseException):
            text += ": " + "".join(traceback.format_exception(error)).strip()
        self.world.unhandled(self, text)


class SimClock:
    """As `Clock`: what the host's wall clock shows."""

    def __init__(self, process: SimProcess) -> None:
        self._world = process.world
        self._host = process.host

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._world.now_s + self._host.skew_s)


if sys.implementation.name != "cpython":
    raise ImportError("the order in which objects are freed is part of a run: CPython is needed")
