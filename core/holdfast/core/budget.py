"""A bound on what is tried again, so that an outage does not multiply the load (a token bucket, as in Finagle)."""

from __future__ import annotations

BURST_MIN = 100
"""So many may be tried again at once, whatever the load is, unless it is said otherwise."""


class RetryBudget:
    """Holds what may be tried again. Begins full. It holds as much as is open at a time, so that the loss of any one
    replica, and even of all of them once, is covered; what is lost again and again is not.
    """

    __slots__ = ("_at_s", "_burst", "_held", "_per_s", "_ratio")

    def __init__(self, ratio: float, per_s: float, now_s: float = 0.0, burst: int = BURST_MIN) -> None:
        """`ratio` is earned by each request, `per_s` by each second. It holds `burst` at least."""
        self._burst = burst
        self._ratio = ratio
        self._per_s = per_s
        self._held = float("inf")
        self._at_s = now_s

    def earn(self) -> None:
        """A request came."""
        self._held += self._ratio

    def spend(self, open_streams: int, now_s: float) -> bool:
        """Whether one of so many open streams may be tried again. Takes it from what is held if so."""
        earned = max(0.0, now_s - self._at_s) * self._per_s
        self._held, self._at_s = min(self._held + earned, float(max(self._burst, open_streams))), now_s
        if self._held < 1:
            return False
        self._held -= 1
        return True
