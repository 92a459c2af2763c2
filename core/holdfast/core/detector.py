"""Who is gone: soon, by missing heartbeats (`PhiAccrual`), or for certain, by missing leases (`LeaseEvidence`).

Suspicion is cheap and can be taken back; it learns from each peer's own heartbeats how long a silence is unusual.

A member is held for expired when its lease key is missing although the lease servers answer: after a second look if
its key was seen before and they have answered all along for a TTL, else after a full TTL, which is the time that a
member has to come back after the servers were away or a new leader looks for the first time. Servers that froze
and thawed end the leases of everybody who could not renew meanwhile, a moment later, without ever having failed a
call: hence all along, and for a TTL. Of a time in which they did not answer only a part of a TTL counts.

A member whose process was seen to end needs no such inference, and is held for gone at once; so is a node that gave
its lease up and says that it can't reach the log.
"""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache

PHI_WINDOW = 100
"""Heartbeats that the distribution of intervals is learnt from."""

DEVIATIONS_MAX = 32.0
DEVIATIONS_STEP = 1e-6
"""Phi is 0 below, and 300, its largest, above so many deviations; and how exactly its inverse is known."""


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
        self._usual: tuple[float, float] | None = None

    def beat(self, now_s: float) -> None:
        """A heartbeat came."""
        if self._beat_s is not None:
            self._intervals_s.append(now_s - self._beat_s)
            self._usual = None
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
        if self._usual is None:
            self._usual = self._learn()
        mean_s, deviation_s = self._usual
        return _phi((now_s - self._heard_s - mean_s - self._pause_s) / deviation_s)

    def due_s(self, phi: float) -> float:
        """When the suspicion will have grown to `phi`, if nothing comes until then."""
        if self._usual is None:
            self._usual = self._learn()
        mean_s, deviation_s = self._usual
        return self._heard_s + mean_s + self._pause_s + _deviations(phi) * deviation_s

    def _learn(self) -> tuple[float, float]:
        """The intervals' mean and deviation."""
        intervals_s = self._intervals_s
        mean_s = sum(intervals_s) / len(intervals_s)
        variance = sum([(interval_s - mean_s) ** 2 for interval_s in intervals_s]) / len(intervals_s)
        return mean_s, max(math.sqrt(variance), self._deviation_min_s)


def _phi(deviations: float) -> float:
    """The suspicion that a silence arouses which is so many deviations longer than the mean."""
    exponent = min(-deviations * (1.5976 + 0.070566 * deviations * deviations), 700.0)
    e = math.exp(max(exponent, -700.0))
    later = e / (1.0 + e) if deviations > 0 else 1.0 - 1.0 / (1.0 + e)
    return -math.log10(max(later, 1e-300))


@lru_cache(maxsize=64)
def _deviations(phi: float) -> float:
    """The inverse of `_phi`, by bisection; just above rather than below."""
    low, high = -DEVIATIONS_MAX, DEVIATIONS_MAX
    while high - low > DEVIATIONS_STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if _phi(middle) >= phi else (middle, high)
    return high


Member = tuple[str, str]
"""A node or a gateway: (id, incarnation)."""


SILENCE_MAX = 3 / 8
"""Servers whose answers are further apart than this part of the TTL did not answer all along, and no more than this
counts of such a silence. A member has at least half of its TTL left while they do, so none runs out of it within it."""

SECOND_LOOK_S = 0.3
"""A key that goes from one listing to the next must stay away for so long: a cluster of lease servers may end a lease
before its time, whose holder sees that and comes back in milliseconds."""


class LeaseEvidence:
    """What listings of lease keys say about members. Times are monotonic seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._seen: frozenset[Member] = frozenset()
        self._ended: frozenset[Member] = frozenset()
        self._cut_off: frozenset[Member] = frozenset()
        self._absent_since: dict[Member, float] = {}
        self._listed_s: float | None = None
        self._steady_since_s = 0.0

    def listed(
        self,
        present: frozenset[Member],
        wanted: frozenset[Member],
        now_s: float,
        ended: frozenset[Member] = frozenset(),
        cut_off: frozenset[Member] = frozenset(),
    ) -> None:
        """The servers listed `present`; `ended` as those whose process was seen to end, and `cut_off` as those that say
        of themselves that they can't reach the log.

        `wanted` are the members that the log holds for alive.
        """
        self._pass_over_silence(now_s)
        steady = now_s - self._steady_since_s >= self._ttl_s
        for member in wanted - present:
            known = steady and member in self._seen
            self._absent_since.setdefault(member, now_s - self._ttl_s + SECOND_LOOK_S if known else now_s)
        absent = wanted - present
        self._absent_since = {member: since for member, since in self._absent_since.items() if member in absent}
        self._ended = ended & absent
        self._cut_off = cut_off & absent
        self._seen = present

    def forget(self, member: Member) -> None:
        """It has joined, for the first time or again: what was known of it says nothing any more."""
        self._absent_since.pop(member, None)
        self._seen -= {member}
        self._ended -= {member}
        self._cut_off -= {member}

    def unreachable(self) -> None:
        """The servers did not answer: absence proves nothing any more, and everybody gets a full TTL again."""
        self._listed_s = None
        self._seen = self._ended = self._cut_off = frozenset()
        self._absent_since.clear()

    def expired(self) -> frozenset[Member]:
        """The members whose time was over at the last listing."""
        if self._listed_s is None:
            return frozenset()
        limit_s = self._listed_s - self._ttl_s
        gone = self._ended | self._cut_off
        return gone.union(member for member, since in self._absent_since.items() if since <= limit_s)

    def next_look_s(self) -> float | None:
        """Seconds from the last listing until the time of somebody missing is over; None when none's will be."""
        if self._listed_s is None:
            return None
        left = (since + self._ttl_s - self._listed_s for since in self._absent_since.values())
        return min((left_s for left_s in left if left_s > 0), default=None)

    @property
    def ended(self) -> frozenset[Member]:
        """Of the expired, those whose process was seen to end."""
        return self._ended

    @property
    def cut_off(self) -> frozenset[Member]:
        """Of the expired, those that gave their lease up since they can't reach the log."""
        return self._cut_off

    def _pass_over_silence(self, now_s: float) -> None:
        """Take out of everybody's time what the servers let pass without an answer."""
        silence_max_s = self._ttl_s * SILENCE_MAX
        if self._listed_s is None:
            self._steady_since_s = now_s
        elif (excess_s := now_s - self._listed_s - silence_max_s) > 0:
            self._steady_since_s = now_s
            self._absent_since = {member: since + excess_s for member, since in self._absent_since.items()}
        self._listed_s = now_s
