"""Which replica gets a stream: the power of two choices on load.

Of two candidates drawn at random the less loaded one wins, which keeps the fullest replica near the average
at the cost of two look-ups (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """A replica that may be chosen.

    `in_flight` are this gateway's own streams on it, known at once; `reported` is the last load it told, which
    other gateways' streams are part of, and which is older.
    """

    replica: str
    in_flight: int
    in_flight_max: int
    reported: int

    @property
    def load(self) -> int:
        """Streams on the replica, as well as this gateway can know."""
        return max(self.in_flight, self.reported)


def choose(candidates: Sequence[Candidate], below: Callable[[int], int]) -> Candidate | None:
    """The candidate to use, or None when none has room. `below(n)` draws an integer in [0, n)."""
    room = [candidate for candidate in candidates if candidate.in_flight < candidate.in_flight_max]
    if len(room) < 2:
        return room[0] if room else None
    first = below(len(room))
    second = (first + 1 + below(len(room) - 1)) % len(room)
    return min(room[first], room[second], key=lambda candidate: candidate.load)
