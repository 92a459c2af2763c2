"""Streams whose clients take less than comes: no engine works ahead for them by more than a bound.

A handler that waits for its client's connection leaves a stream's tokens where they are. Once so many of them wait,
the stream leaves its replica, which frees its place and its KV blocks, and takes no turn of the engine. When the
client has taken them, it begins again behind them. It waits for a place like streams that have not begun: it left its
own by itself, and others may have been waiting for longer. No failure is counted. A client that takes nothing at all is
cut by `write_timeout_s`.

Streams run on whose engines would not draw the same tokens again: once its gateway is gone, such a stream can be taken
up only at the replica that has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.core.stream import StreamStatus
from holdfast.gateway.moves import CANCELLED
from holdfast.gateway.tracing import POSTPONED

if TYPE_CHECKING:
    from holdfast.gateway.link import ReplicaLink
    from holdfast.gateway.pool import Pool
    from holdfast.gateway.session import StreamRun

HELD_FRACTION = 0.25
"""A stream that is held back costs an engine its prompt and tokens anew: more must wait than this part of them."""


def is_behind(run: StreamRun, unsent_max: int) -> bool:
    """Whether more than so many of its tokens, and more than a part of all it has, wait for its client."""
    unsent, tokens = run.stream.unsent, (run.stream.prompt_tokens or 0) + len(run.stream.accepted)
    return unsent > max(unsent_max, HELD_FRACTION * tokens)


class Holding:
    """The streams of a gateway that are held back.

    `pool_of(run)` is among whose replicas a stream may begin again, None if it may not: such a stream runs on.
    `go_on(run)` begins it again.
    """

    def __init__(self, pool_of: Callable[[StreamRun], Pool | None], go_on: Callable[[StreamRun], None]) -> None:
        self._pool_of = pool_of
        self._go_on = go_on
        self._held: dict[StreamRun, str] = {}

    def hold(self, link: ReplicaLink, run: StreamRun) -> None:
        """Its client is behind: take it from its replica, until the client has what there is."""
        pool = self._pool_of(run)
        if pool is None or pool.erratic or run.link is not link or run.stream.status is not StreamStatus.RUNNING:
            return
        run.link = None
        run.stream.postponed()
        run.trace.ended(POSTPONED)
        run.end_move(CANCELLED)  # how long it is held back now is no pause of the move
        run.was_held = True
        run.taken = self._taken
        self._held[run] = pool.config.name
        link.end(run)

    def forget(self, run: StreamRun) -> None:
        """It has ended, held back or not."""
        run.taken = None
        self._held.pop(run, None)

    def counts(self) -> Counter[str]:
        """How many are held back, by deployment."""
        return Counter(self._held.values())

    def _taken(self, run: StreamRun) -> None:
        self.forget(run)
        if run.stream.status is StreamStatus.WAITING:
            self._go_on(run)
