"""The last attempts and first tokens of a replica, for where there are too few of them to judge it by parts of many.

A replica that gets a request now and then shows little within a minute, and what it showed long before may not be
so any more. So it is judged by a row: only where each of its last ones failed, or was slow, up to now.
"""

from __future__ import annotations

import statistics
from collections import deque

import msgspec

ATTEMPTS = 5
"""So many of the last attempts are looked at."""

FIRSTS = 10
"""So many of the last first tokens: that a prompt takes long is no fault, so it takes more of them."""

LASTS_S = 600.0
"""What was longer ago than this (seconds) is in no row."""


class Row(msgspec.Struct, frozen=True):
    """The last attempts, and how many of them failed; the last first tokens, the shortest time to one of them and the
    median (seconds; 0 where there were none).
    """

    attempts: int = 0
    failed: int = 0
    firsts: int = 0
    shortest_s: float = 0.0
    median_s: float = 0.0

    @property
    def all_failed(self) -> bool:
        """Whether there were enough attempts, and none went well."""
        return self.attempts == self.failed == ATTEMPTS


NO_ROW = Row()


class Last:
    """Keeps what is needed for a replica's row. Times are the caller's, in seconds."""

    __slots__ = ("_attempts", "_firsts")

    def __init__(self) -> None:
        self._attempts = deque[tuple[float, bool]](maxlen=ATTEMPTS)
        self._firsts = deque[tuple[float, float]](maxlen=FIRSTS)

    def ended(self, now_s: float, *, well: bool) -> None:
        """An attempt ended well; or some failed, which count as one if they failed at once: they had one cause."""
        self._attempts.append((now_s, well))

    def first_token(self, now_s: float, took_s: float) -> None:
        """A first token came, or nobody waited for it any more, after so long."""
        self._firsts.append((now_s, took_s))

    def forget(self) -> None:
        """Begin anew."""
        self._attempts.clear()
        self._firsts.clear()

    def row(self, now_s: float) -> Row:
        """What there is, but for what is too old."""
        attempts = [well for at_s, well in self._attempts if now_s - at_s <= LASTS_S]
        firsts_s = [took_s for at_s, took_s in self._firsts if now_s - at_s <= LASTS_S]
        if not firsts_s:
            return Row(len(attempts), attempts.count(False))
        return Row(len(attempts), attempts.count(False), len(firsts_s), min(firsts_s), statistics.median(firsts_s))
