"""Which replica gets a stream: the power of two choices on load.

Of two candidates drawn at random the less loaded one wins, which keeps the fullest replica near the average
at the cost of two look-ups (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
When neither has room the others are looked at, from a place drawn at random, until two are found that have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """A replica that may be chosen."""

    @property
    def room(self) -> bool:
        """Whether it may be given one more stream."""
        ...

    @property
    def load(self) -> int:
        """Streams on it, as well as the chooser can know."""
        ...


C = TypeVar("C", bound=Candidate)


def choose(candidates: Sequence[C], below: Callable[[int], int]) -> C | None:
    """The candidate to use, or None when none has room. `below(n)` draws an integer in [0, n)."""
    count = len(candidates)
    if count < 2:
        return candidates[0] if count and candidates[0].room else None
    at = below(count)
    first = candidates[at]
    second = candidates[(at + 1 + below(count - 1)) % count]
    if first.room and second.room:
        return first if first.load <= second.load else second
    if first.room or second.room:
        return first if first.room else second
    return _next_with_room(candidates, below(count))


def _next_with_room(candidates: Sequence[C], start: int) -> C | None:
    """The less loaded of the next two that have room."""
    found: C | None = None
    for at in itertools.chain(range(start, len(candidates)), range(start)):
        candidate = candidates[at]
        if candidate.room:
            if found is not None:
                return found if found.load <= candidate.load else candidate
            found = candidate
    return found
