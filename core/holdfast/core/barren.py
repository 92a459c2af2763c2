"""Engines that step and step while nothing comes of it: what a replica tells of its own, beside its load.

A prompt that is read is something: its tokens that wait become fewer, or its KV blocks more. An engine that queues
streams is not barren as long as anybody gets tokens. One that has never shown that it reads a prompt may be at it for
all that anybody can tell: nobody hears of its steps but its node, and that late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from holdfast.core.requests import EngineLoad

NO_TOKEN: Final = "canary"
"""The `kind` of `ReplicaUnhealthy` that is said of a replica which answers, and whose engine makes nothing."""

UNSHOWN_S: Final = 120.0
"""An engine that has never shown that it reads a prompt may step for so long for nobody (seconds)."""


class Barren(msgspec.Struct, frozen=True, array_like=True):
    """For how long (seconds), and over how many steps, an engine with work has made nothing and read no prompt."""

    for_s: float = 0.0
    steps: int = 0


class BarrenMeter:
    """Counts one engine's steps that nothing came of. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._shows = False
        self._before: EngineLoad | None = None
        self._began_s = 0.0
        self._came = self._left = self._left_before = False
        self.rest()

    def rest(self) -> None:
        """It has nothing to do, or something came of a step."""
        self._since_s: float | None = None
        self._steps = 0
        self._quiet = True

    def admitted(self, load: Callable[[], EngineLoad]) -> None:
        """It took a stream in. If that was while it stepped, the tokens that wait may hide what it read."""
        self._came = True
        if not self._shows:
            self._see(load())

    def dropped(self) -> None:
        """It forgot a stream: that fewer tokens wait after the next step than before shows nothing."""
        self._left = True

    def begins(self, began_s: float, load: Callable[[], EngineLoad]) -> None:
        """A step does. The load is asked for only while the last one brought nobody anything."""
        self._began_s, self._came = began_s, False
        self._left_before, self._left = self._left, False
        self._before = load() if self._quiet else None

    def bore(self) -> None:
        """Something came of the step."""
        self.rest()
        self._quiet = False

    def bore_nothing(self, load: EngineLoad) -> None:
        """The step brought nobody anything; `load` is the engine's after it."""
        self._quiet = True
        self._see(load)
        if self._before is not None:
            self._see(self._before)
        if self._left_before:
            return
        if self._before is not None and _read(self._before, load):
            # Blocks that come as a stream begins to run its prompt has not filled.
            self._shows = self._shows or load.running <= self._before.running
            self.rest()
        elif not self._came:
            self._since_s = self._began_s if self._since_s is None else self._since_s
            self._steps += 1

    def tell(self, now_s: float) -> Barren:
        """How it is by now, for gateways: nothing of an engine that has never shown that it reads a prompt."""
        return self._tell(now_s) if self._shows else Barren()

    def tell_node(self, now_s: float) -> Barren:
        """How it is by now; of an engine that has never shown that it reads a prompt only after `UNSHOWN_S`."""
        barren = self._tell(now_s)
        return barren if self._shows or barren.for_s >= UNSHOWN_S else Barren()

    def _tell(self, now_s: float) -> Barren:
        return Barren() if self._since_s is None else Barren(now_s - self._since_s, self._steps)

    def _see(self, load: EngineLoad) -> None:
        self._shows = self._shows or load.prefill_tokens_waiting > 0


def _read(before: EngineLoad, after: EngineLoad) -> bool:
    """Whether the engine read of a prompt meanwhile. Blocks that came with a stream are not yet filled."""
    as_many = after.running + after.waiting <= before.running + before.waiting
    more_blocks = as_many and after.kv_blocks_used > before.kv_blocks_used
    return after.prefill_tokens_waiting < before.prefill_tokens_waiting or more_blocks
