"""asyncio's event loop for one simulated process.

Each simulated process has a loop of its own, as it has in production: a process that is killed loses all that it was
about to do, one that is frozen finds it when it goes on, and each has a clock of its own, which began at another time
than its neighbours'. The loops share one scheduler. What would leave the simulation (threads, real sockets, child
processes) raises `NotImplementedError`, as `AbstractEventLoop` does for all that is not written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, NoReturn

from holdfast.simulations.world.scheduler import Handle, Lane, Scheduler

if TYPE_CHECKING:
    from holdfast.simulations.world.process import SimProcess
    from holdfast.simulations.world.transport import SimServer


LATE_S = 1e-9
"""Timers come so much late (seconds), as real ones do at least: who sleeps for what is left of a time finds it over.
Else what rounding leaves of it is slept for again and again, and no time passes."""


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory: task groups cancel theirs in that order.

    The group's own set is filled in the order in which tasks are made. `number` is unlike that of other processes'
    tasks, since asyncio keeps a set of all: with equal hashes it would be searched from end to end for each new task.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **told: Any) -> None:
        self._number = number  # asyncio asks for the hash while it makes the task
        super().__init__(coro, **told)

    def __hash__(self) -> int:
        return self._number


class ProcessLoop(asyncio.AbstractEventLoop):
    """One process's loop. Its time is `scheduler.now_s` plus what its clock showed when the world began."""

    def __init__(self, scheduler: Scheduler, lane: Lane, clock_offset_s: float) -> None:
        self._scheduler = scheduler
        self._lane = lane
        self._runnable = scheduler.runnable
        self._offset_s = clock_offset_s
        self._tasks = lane.number << 16
        self._signals: dict[int, Callable[[], object]] = {}
        self.process: SimProcess | None = None
        self.on_exception: Callable[[dict[str, Any]], None] | None = None
        lane.loop = self

    # Callbacks without a context of their own run in the scheduler's: tasks bring theirs, and nobody else needs one.

    # --- time and callbacks -----------------------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.now_s + self._offset_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        lane = self._lane
        handle = Handle(callback, args, context, lane)
        if lane.alive:  # as `Scheduler.enqueue`, without calling it: nothing is asked for as often
            lane.ready.append(handle)
            if not lane.queued and not lane.frozen:
                lane.queued = True
                self._runnable.append(lane)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        at_s = self._scheduler.now_s + delay + LATE_S
        return self._scheduler.push(at_s, Handle(callback, args, context, self._lane, at_s + self._offset_s))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, context, self._lane, when)
        return self._scheduler.push(when - self._offset_s + LATE_S, handle)

    def call_from_world(self, callback: Callable[..., object], *args: Any) -> None:
        """Let something happen to the process from outside: a message, a signal."""
        self._scheduler.enqueue(self._lane, Handle(callback, args, None, self._lane))

    # --- futures and tasks ------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        self._tasks += 1
        # Without a name asyncio would count tasks over all runs of this interpreter.
        return SimTask(self._tasks, coro, loop=self, name=str(name or "task"), context=context)

    # --- what else actors ask of a loop -----------------------------------------------------------------

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> SimServer:
        """Listen on this process's host."""
        from holdfast.simulations.world.transport import serve  # it is made of what is made of loops

        return serve(self._process, protocol_factory, port)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect. Raises `ConnectionRefusedError`; waits while nothing gets through."""
        from holdfast.simulations.world.transport import connect

        return await connect(self._process, protocol_factory, host, port)

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        self._signals[int(sig)] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self._signals.pop(int(sig), None) is not None

    def signal_handler(self, sig: int) -> Callable[[], object] | None:
        """What the process does at a signal; None: what the kernel does."""
        return self._signals.get(int(sig))

    @property
    def _process(self) -> SimProcess:
        assert self.process is not None
        return self.process

    # --- errors and introspection -----------------------------------------------------------------------

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._lane.alive and self.on_exception is not None:
            self.on_exception(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._lane.alive

    def is_closed(self) -> bool:
        return not self._lane.alive

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> NoReturn:
        raise NotImplementedError("there are no threads in a simulation")
