"""Who is gone: soon, by missing heartbeats (`PhiAccrual`), or for certain, by missing leases (`LeaseEvidence`).

Suspicion is cheap and can be taken back; it learns from each peer's own heartbeats how long a silence is unusual.

A member is held for expired when its lease key is missing although the lease servers answer: at once if its
key was seen before and the answers never stopped in between, else after a full TTL, which is the time that a
member has to come back after the servers were away or a new leader looks for the first time.
"""

from __future__ import annotations

import math
from collections import deque

PHI_WINDOW = 100
"""Heartbeats that the distribution of intervals is learnt from."""


class PhiAccrual:
    """How suspicious a peer's silence is: phi, where a silence with phi = 8 is mistaken once in 10^8 times.

    After Hayashibara et al., "The Phi Accrual Failure Detector" (2004), with the logistic approximation of the
    normal distribution's tail that Akka and Cassandra use. Times are monotonic seconds. `interval_s` is what
    is expected before anything is learnt, `pause_s` is added to it for pauses that are nobody's failure, and
    `deviation_min_s` keeps a very regular peer from being suspected for a hiccup.
    """

    def __init__(self, interval_s: float, pause_s: float, deviation_min_s: float, now_s: float) -> None:
        self._intervals_s: deque[float] = deque([interval_s], maxlen=PHI_WINDOW)
        self._pause_s = pause_s
        self._deviation_min_s = deviation_min_s
        self._heard_s = now_s
        self._beat_s: float | None = None

    def beat(self, now_s: float) -> None:
        """A heartbeat came."""
        if self._beat_s is not None:
            self._intervals_s.append(now_s - self._beat_s)
        self._beat_s = now_s
        self._heard_s = now_s

    def heard(self, now_s: float) -> None:
        """Something else came: it is alive, but nothing is learnt of its heartbeats."""
        self._heard_s = now_s

    def restart(self, now_s: float) -> None:
        """Forget the silence until now, which was no interval: it was suspected, or we stood still ourselves."""
        self._beat_s = None
        self._heard_s = now_s

    def phi(self, now_s: float) -> float:
        """The suspicion: 0 for none, growing without bound with the silence."""
        count = len(self._intervals_s)
        mean_s = sum(self._intervals_s) / count
        variance = sum((interval_s - mean_s) ** 2 for interval_s in self._intervals_s) / count
        deviation_s = max(math.sqrt(variance), self._deviation_min_s)
        y = (now_s - self._heard_s - mean_s - self._pause_s) / deviation_s
        exponent = min(-y * (1.5976 + 0.070566 * y * y), 700.0)
        e = math.exp(max(exponent, -700.0))
        later = e / (1.0 + e) if y > 0 else 1.0 - 1.0 / (1.0 + e)
        return -math.log10(max(later, 1e-300))


Member = tuple[str, str]
"""A node or a gateway: (id, incarnation)."""


class LeaseEvidence:
    """What listings of lease keys say about members. Times are monotonic seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: set[Member] = set()
        self._absent_since: dict[Member, float] = {}

    def listed(self, present: frozenset[Member], wanted: frozenset[Member], now_s: float) -> None:
        """The servers listed `present`; `wanted` are the members that the log holds for alive."""
        for member in present:
            self._absent_since.pop(member, None)
        for member in wanted - present:
            grace_s = 0.0 if member in self._seen else self._ttl_s
            self._absent_since.setdefault(member, now_s - self._ttl_s + grace_s)
        self._seen = set(present)
        self._absent_since = {member: since for member, since in self._absent_since.items() if member in wanted}

    def unreachable(self) -> None:
        """The servers did not answer: absence proves nothing any more, and everybody gets a full TTL again."""
        self._seen.clear()
        self._absent_since.clear()

    def expired(self, now_s: float) -> frozenset[Member]:
        """The members whose time is over."""
        return frozenset(member for member, since in self._absent_since.items() if now_s - since >= self._ttl_s)
