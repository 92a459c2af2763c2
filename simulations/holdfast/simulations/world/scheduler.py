"""Virtual time, and whose turn it is.

All processes of a simulated cluster share one scheduler. Within a process callbacks run in the order in which they
were asked for, as asyncio promises; between processes the order is drawn. Time passes only when nobody has anything
to do: it jumps to the next timer.
"""

from __future__ import annotations

import heapq
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.simulations.world.loop import ProcessLoop

CALLBACKS_MAX = 5_000_000
"""A run that takes more turns than this stands still in a loop that lets no time pass, or is far too large."""

CANCELLED_MIN = 256
"""Cancelled timers are swept out of the heap when they are more than this, and more than the others."""


class TooManyTurns(Exception):
    """Something goes round and round, and virtual time hardly passes."""


class Handle:
    """A callback that was asked for, as `asyncio.Handle` and `asyncio.TimerHandle`. `lane` None: the world's own."""

    __slots__ = ("_at_s", "_cancelled", "args", "callback", "context", "lane", "waiting")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
        lane: Lane | None,
        at_s: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.lane = lane
        self.waiting: Scheduler | None = None
        self._at_s = at_s
        self._cancelled = False

    def cancel(self) -> None:
        """See that it does not run."""
        if not self._cancelled:
            self._cancelled = True
            self.args = ()
            if self.waiting is not None:
                self.waiting.cancelled += 1

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        """The time that it was asked for, by its process's clock."""
        return self._at_s


class Lane:
    """One process's queue. `number` names it in the trace; `cost_s` is the time that each callback takes there."""

    __slots__ = ("alive", "cost_s", "frozen", "loop", "number", "queued", "ready")

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready: deque[Handle] = deque()
        self.loop: ProcessLoop | None = None
        self.alive = True
        self.frozen = False
        self.queued = False
        self.cost_s = 0.0


class Scheduler:
    """Runs callbacks, one at a time. `now_s` is the true virtual time; `trace` tells two runs apart.

    `runnable` are the lanes of which one has the next turn.
    """

    def __init__(self, rng: Random) -> None:
        self.now_s = 0.0
        self.trace = 0
        self.turns = 0
        self.cancelled = 0
        self._random = rng.random
        self._heap: list[tuple[float, float, int, Handle]] = []
        self._timers = 0
        self._lanes = 0
        self.runnable: list[Lane] = []

    # --- asking -----------------------------------------------------------------------------------------

    def lane(self) -> Lane:
        """A queue for one more process."""
        self._lanes += 1
        return Lane(self._lanes)

    def call_at(self, at_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Let the world itself do something at a true time."""
        return self.push(at_s, Handle(callback, args, None, None, at_s))

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """As `call_at`, so much later than now."""
        return self.call_at(self.now_s + delay_s, callback, *args)

    def push(self, at_s: float, handle: Handle) -> Handle:
        """Take in a timer, at a true time. Which of two comes first that are due at once is drawn."""
        if self.cancelled > CANCELLED_MIN and self.cancelled * 2 > len(self._heap):
            self._sweep()
        self._timers += 1
        handle.waiting = self
        heapq.heappush(self._heap, (at_s, self._random(), self._timers, handle))
        return handle

    def enqueue(self, lane: Lane, handle: Handle) -> None:
        """Put a callback at the end of a process's queue."""
        if not lane.alive:
            return
        lane.ready.append(handle)
        if not lane.queued and not lane.frozen:
            lane.queued = True
            self.runnable.append(lane)

    def freeze(self, lane: Lane) -> None:
        """Give the process no more turns until `thaw`."""
        lane.frozen = True
        self._unqueue(lane)

    def thaw(self, lane: Lane) -> None:
        lane.frozen = False
        self._requeue(lane)

    def drop(self, lane: Lane) -> None:
        """The process is gone, and with it all that it had still to do."""
        lane.alive = False
        lane.ready.clear()
        self._unqueue(lane)

    def close(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self.runnable.clear()

    # --- running ----------------------------------------------------------------------------------------

    def run(self, until_s: float) -> None:
        """Let everything happen up to a time. Raises `TooManyTurns`."""
        before = events._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_finalize)
        try:
            self._run(until_s)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(before)

    def _run(self, until_s: float) -> None:
        # Most of a run's time is spent in here and in what it calls: what is short stands here, not in functions.
        random, heap, runnable, pop = self._random, self._heap, self.runnable, heapq.heappop
        current: Lane | None = None
        while self.turns <= CALLBACKS_MAX:
            if runnable:
                count = len(runnable)
                at = int(random() * count) if count > 1 else 0
                lane = runnable[at]
                ready = lane.ready
                handle = ready.popleft()
                if lane.cost_s:
                    self._pause(lane)
                elif not ready:
                    lane.queued = False
                    last = runnable.pop()
                    if last is not lane:
                        runnable[at] = last
            else:
                count = 0
                if not heap or heap[0][0] > until_s:
                    self.now_s = max(self.now_s, until_s)
                    return
                at_s, _, _, handle = pop(heap)
                handle.waiting = None
                if handle._cancelled:
                    self.cancelled -= 1
                    continue
                if at_s > self.now_s:
                    self.now_s = at_s
                if handle.lane is None:
                    if current is not None:
                        current = None
                        events._set_running_loop(None)
                    self.trace = hash((self.trace, at_s))
                    handle.callback(*handle.args)
                    continue
                lane = handle.lane
                if not lane.alive or lane.frozen or lane.queued or lane.cost_s:
                    self.enqueue(lane, handle)
                    continue
            if handle._cancelled:
                continue
            self.turns += 1
            self.trace = hash((self.trace, lane.number, count, self.now_s))
            if lane is not current:
                current = lane
                events._set_running_loop(lane.loop)
            try:
                if handle.context is None:
                    handle.callback(*handle.args)
                else:
                    handle.context.run(handle.callback, *handle.args)
            except BaseException as error:
                _raised(lane, handle, error)
        raise TooManyTurns(f"{self.turns} turns in {self.now_s:.3f} s of virtual time")

    def _pause(self, lane: Lane) -> None:
        """It is too slow to go on at once. It stays queued, and has turns again by this timer only."""
        self.runnable.remove(lane)
        self.call_at(self.now_s + lane.cost_s, self._go_on, lane)

    def _go_on(self, lane: Lane) -> None:
        lane.queued = False
        self._requeue(lane)

    def _requeue(self, lane: Lane) -> None:
        if lane.ready and lane.alive and not lane.frozen and not lane.queued:
            lane.queued = True
            self.runnable.append(lane)

    def _unqueue(self, lane: Lane) -> None:
        if lane.queued and lane in self.runnable:
            self.runnable.remove(lane)
            lane.queued = False

    def _sweep(self) -> None:
        self._heap[:] = [item for item in self._heap if not item[3]._cancelled]
        heapq.heapify(self._heap)
        self.cancelled = 0


def _finalize(generator: AsyncGenerator[Any, Any]) -> None:
    """An asynchronous generator was dropped: its process closes it, as asyncio does."""
    loop = events._get_running_loop()
    if loop is not None:
        loop.create_task(generator.aclose())


def _raised(lane: Lane, handle: Handle, error: BaseException) -> None:
    """A callback raised: its loop is told, as asyncio's are."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        raise error
    assert lane.loop is not None
    message = f"exception in callback {handle.callback!r}"
    lane.loop.call_exception_handler({"message": message, "exception": error})
