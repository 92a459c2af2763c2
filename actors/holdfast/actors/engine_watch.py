"""Watches that an engine which has work makes its steps, and takes requests in. One that hangs can't be told to stop:
its process has to end.

How long a step may take follows from how long steps took, as engines differ by orders of magnitude. Time in which this
process itself stood still is not the engine's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

from holdfast.core.errors import HoldfastError

STALL_LOOK_S = 0.25
STALL_LOOK_MAX_S = 2.0
STALL_LOOKS = 8
"""The engine is looked at so often within `engine_stall_timeout_s`, within these bounds (seconds)."""

STOOD_STILL_S = 0.75
"""A look that comes this late means that this process stood still, not the engine (seconds)."""

STALL_STEPS = 64
STALL_FACTOR = 10
"""An engine hangs if a step takes over `engine_stall_timeout_s`, and over `STALL_FACTOR` times the longest of the
last `STALL_STEPS`."""

STALL_FIRST_STEPS = 3
"""So many steps, of an engine that has not warmed up, may take `engine_first_step_timeout_s`."""


class EngineHung(HoldfastError):
    """The engine has had work for long and did nothing of it: only a new process helps."""


class EngineWatch:
    """When the engine's steps begin and end, and whether one takes far longer than steps do.

    The two limits are the specification's, in seconds. `told` says of one that hangs, for people, what it does
    not do.
    """

    def __init__(
        self,
        stall_timeout_s: float,
        first_step_timeout_s: float,
        told: str = "the engine made no step for {:.1f} s while it had work",
    ) -> None:
        self.steps = 0
        self._told = told
        self._stall_timeout_s = stall_timeout_s
        self._first_step_timeout_s = first_step_timeout_s
        self._began_s: float | None = None
        self._took_s: deque[float] = deque(maxlen=STALL_STEPS)
        self._working = asyncio.Event()

    @property
    def stepping(self) -> bool:
        """Whether the engine is in the middle of a step."""
        return self._began_s is not None

    def warmed_up(self) -> None:
        """It has made its first steps, which take longest."""
        self.steps = STALL_FIRST_STEPS

    def rests(self) -> None:
        """It has nothing to do: no step is due."""
        self._working.clear()

    def begins(self, now_s: float) -> None:
        """A step begins."""
        self._working.set()
        self._began_s = now_s

    def ended(self, now_s: float) -> float:
        """The step ended; how long it took, in seconds."""
        assert self._began_s is not None
        took_s = now_s - self._began_s
        self._took_s.append(took_s)
        self._began_s = None
        self.steps += 1
        return took_s

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """What is done in the block is a step, after which none is due."""
        now_s = asyncio.get_running_loop().time
        self.begins(now_s())
        try:
            yield
        finally:
            self.ended(now_s())
            self.rests()

    async def run(self) -> None:
        """Watch until cancelled. Raises `EngineHung`."""
        loop = asyncio.get_running_loop()
        look_s = min(max(STALL_LOOK_S, self._stall_timeout_s / STALL_LOOKS), STALL_LOOK_MAX_S)
        while True:
            await self._working.wait()
            looked_s = loop.time()
            await asyncio.sleep(look_s)
            now_s = loop.time()
            if self._began_s is None:
                continue
            if now_s - looked_s > look_s + STOOD_STILL_S:
                # The step gets its time again.
                self._began_s = now_s
            elif now_s - self._began_s > self._may_take_s():
                took_s = now_s - self._began_s
                raise EngineHung(self._told.format(took_s))

    def _may_take_s(self) -> float:
        if self.steps < STALL_FIRST_STEPS:
            return self._first_step_timeout_s
        return max(self._stall_timeout_s, STALL_FACTOR * max(self._took_s, default=0.0))
