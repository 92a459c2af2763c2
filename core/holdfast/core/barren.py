"""Engines that step and step while nothing comes of it: what a replica tells of its own, beside its load.

A prompt that is read is something: its tokens that wait become fewer, or its KV blocks more. An engine that queues
streams is not barren as long as anybody gets tokens.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.core.requests import EngineLoad

NO_TOKEN: Final = "canary"
"""The `kind` of `ReplicaUnhealthy` that is said of a replica which answers, and whose engine makes nothing."""


class Barren(msgspec.Struct, frozen=True, array_like=True):
    """For how long (seconds), and over how many steps, an engine with work has made nothing and read no prompt."""

    for_s: float = 0.0
    steps: int = 0


class BarrenMeter:
    """Counts one engine's steps that nothing came of. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.rest()

    def rest(self) -> None:
        """It has nothing to do, or something came of a step."""
        self._since_s: float | None = None
        self._steps = 0
        self._load: EngineLoad | None = None

    def dropped(self) -> None:
        """It forgot a stream: that fewer tokens wait after this step than before shows nothing."""
        self._load = None

    def stepped(self, began_s: float, load: EngineLoad) -> None:
        """A step that began then brought nobody anything; `load` is the engine's after it."""
        before, self._load = self._load, load
        if before is not None and _read(before, load):
            self._since_s, self._steps = None, 0
            return
        if self._since_s is None:
            self._since_s = began_s
        self._steps += 1

    def tell(self, now_s: float) -> Barren:
        """How it is by now."""
        return Barren() if self._since_s is None else Barren(now_s - self._since_s, self._steps)


def _read(before: EngineLoad, after: EngineLoad) -> bool:
    """Whether the engine read of a prompt meanwhile. Blocks that came with a stream are not yet filled."""
    as_many = after.running + after.waiting <= before.running + before.waiting
    more_blocks = as_many and after.kv_blocks_used > before.kv_blocks_used
    return after.prefill_tokens_waiting < before.prefill_tokens_waiting or more_blocks
