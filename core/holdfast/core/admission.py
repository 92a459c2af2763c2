"""Whether a request is taken, waits, or is turned away, and when to come again.

Load is shed where it costs least: before any work, and so early that what is taken still gets its first token in
time. Two questions are asked. Is there a replica that is not too busy (`busy`)? If there is none, how long would the
request wait (`decide`)? A queue that is longer than what drains in about the time to a first token makes every answer
late and none more (Nichols and Jacobson, "Controlling Queue Delay", 2012), so that time is the bound where none is set.

Everything that is not set follows from what replicas report and from what was measured (`Service`). Pure: who asks
brings the time.
"""

from __future__ import annotations

import math
from enum import IntEnum, StrEnum

import msgspec

from holdfast.core.pace import Measured
from holdfast.core.requests import EngineInfo, EngineLoad
from holdfast.core.thresholds import Thresholds

DECODE_BLOCKS_DEFAULT = 0.95
"""A replica with more of its KV blocks in use than this part gets nothing new: what runs there still grows."""

PREFILL_FRACTION_DEFAULT = 1.0
"""Nor does one that has more prompt tokens to read than its longest context has."""

AGE_FACTOR = 0.5
AGE_MIN_S = 0.02
"""Without a threshold a request may wait for so many times the time to a first token of an unloaded replica, and for
so long (seconds) at least. With that time itself, first tokens come after twice of it, and not after three times."""

CRITICAL_FACTOR = 10.0
"""Critical requests may wait so many times as long before they are rejected. They go first, so they hardly ever do."""

STALE_FACTOR = 10.0
"""What has waited for so many times what it should have at most makes room for what is fresh."""

RATE_FADES_S = 1.0
"""Rates are of about so long a time (seconds)."""

RETRY_AFTER_MIN_S = 1.0
RETRY_AFTER_MAX_S = 60.0
RETRY_JITTER = 0.5
"""A rejected client is told to come again after a time between these (seconds), times 1 to 1.5 by chance."""


class Priority(IntEnum):
    """What a client says of a request, as `x-holdfast-priority`. The lowest is shed first."""

    BATCH = 0
    DEFAULT = 1
    CRITICAL = 2


class Reason(StrEnum):
    """Why a request is rejected; metrics, facts and answers use these words."""

    KV_BLOCKS = "kv_blocks"
    PREFILL_TOKENS = "prefill_tokens"
    IN_FLIGHT = "requests_in_flight"
    QUEUE_AGE = "queue_age"
    QUEUE_FULL = "queue_full"
    DISPLACED = "displaced"
    PRIORITY = "priority"
    RETRY_BUDGET = "retry_budget"
    NO_REPLICA = "no_replica"
    GATEWAY_FULL = "gateway_full"


TEXTS = {
    Reason.KV_BLOCKS: "its replicas' KV caches are full",
    Reason.PREFILL_TOKENS: "its replicas have too much prompt to read",
    Reason.IN_FLIGHT: "its replicas have all the requests that they can take",
    Reason.QUEUE_AGE: "it would wait too long for a replica",
    Reason.QUEUE_FULL: "as many requests wait for a replica as may",
    Reason.DISPLACED: "a request that goes first took its place in the queue",
    Reason.PRIORITY: "requests that go first are rejected already",
    Reason.RETRY_BUDGET: "its replica was lost, and too many requests begin again already",
    Reason.NO_REPLICA: "no replica could take it in time",
}
"""What people are told, after "The request to `model` was rejected:"."""


def busy(load: EngineLoad, info: EngineInfo, thresholds: Thresholds) -> Reason | None:
    """Why the replica gets no new requests by what it reports, or None. How many it has is asked apart."""
    blocks = thresholds.active_decode_blocks_threshold
    if load.kv_blocks_used > (DECODE_BLOCKS_DEFAULT if blocks is None else blocks) * max(1, load.kv_blocks):
        return Reason.KV_BLOCKS
    if load.prefill_tokens_waiting > prefill_limit(info, thresholds):
        return Reason.PREFILL_TOKENS
    return None


def prefill_limit(info: EngineInfo, thresholds: Thresholds) -> float:
    """With more prompt tokens to read than this the replica is too busy: the lower of both thresholds."""
    fraction = thresholds.active_prefill_tokens_threshold_frac
    tokens = thresholds.active_prefill_tokens_threshold
    if fraction is None:
        fraction = PREFILL_FRACTION_DEFAULT if tokens is None else math.inf
    return min(fraction * info.context_tokens_max, math.inf if tokens is None else tokens)


def in_flight_limit(info: EngineInfo, thresholds: Thresholds) -> int:
    """How many streams the replica should have: as many as its engine runs at once, if none is set."""
    limit = thresholds.requests_in_flight_threshold
    return info.streams_max if limit is None else limit


class _Rate:
    """How often something happens, per second, of late: older events fade away."""

    __slots__ = ("_at_s", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at_s = 0.0

    def add(self, now_s: float) -> None:
        self._count = self.count(now_s) + 1.0
        self._at_s = now_s

    def count(self, now_s: float) -> float:
        """How many there were, about, in the last `RATE_FADES_S`."""
        return self._count * math.exp((self._at_s - now_s) / RATE_FADES_S) if self._count else 0.0


class Service(Measured):
    """What one deployment's replicas were measured to do for one gateway, and what they tell of others' streams."""

    __slots__ = ("_begun", "_first_began_s", "_rejected", "_told_first_s", "_told_per_s")

    def __init__(self) -> None:
        super().__init__()
        self._first_began_s: float | None = None
        self._told_first_s: float | None = None
        self._told_per_s = 0.0
        self._begun = {priority: _Rate() for priority in Priority}
        self._rejected = _Rate()

    def began(self, priority: Priority, now_s: float) -> None:
        """A stream left for a replica."""
        self._begun[priority].add(now_s)
        if self._first_began_s is None:
            self._first_began_s = now_s

    def rejected(self, now_s: float) -> None:
        """A request was turned away."""
        self._rejected.add(now_s)

    def told(self, per_s: float, first_s: float | None) -> None:
        """What replicas tell: so many places per second come free there that may be had by a gateway without streams,
        and so long (seconds) takes a first token, if that is known. What was measured here goes before both."""
        self._told_per_s, self._told_first_s = per_s, first_s

    def drain_per_s(self, in_flight: int, priority: Priority, now_s: float) -> float | None:
        """How many waiting streams of this priority and lower ones begin per second; None while nothing is known.

        As many streams end as are in flight, divided by how long they stay (Little's law). What goes first takes its
        part of their places. Until the first one has ended, they stay for as long as it has by now, at least. With
        none in flight it is the part of others' places that replicas tell of.
        """
        stay_s = self.stay_s
        if stay_s is None and self._first_began_s is not None:
            stay_s = now_s - self._first_began_s
        if stay_s is None or not in_flight:
            return self._told_per_s or None
        higher = sum(rate.count(now_s) for other, rate in self._begun.items() if other > priority) / RATE_FADES_S
        return max(in_flight / max(stay_s, 1e-6) - higher, 0.0)

    def age_max_s(self, thresholds: Thresholds, priority: Priority) -> float | None:
        """How long a request may wait; None while nothing is set or known."""
        age_s = thresholds.queue_age_threshold_s
        if age_s is None:
            first_s = self._told_first_s if self.first_s is None else self.first_s
            if first_s is None:
                return None
            age_s = max(AGE_FACTOR * first_s, AGE_MIN_S)
        return CRITICAL_FACTOR * age_s if priority is Priority.CRITICAL else age_s

    def retry_after_s(self, waiting: int, in_flight: int, now_s: float, chance: float) -> float:
        """When to come again: once what waits and what was just rejected will have drained. `chance` is in [0, 1)."""
        rate = self.drain_per_s(in_flight, Priority.CRITICAL, now_s)
        due_s = (waiting + self._rejected.count(now_s)) / rate if rate else RETRY_AFTER_MIN_S
        return told_s(due_s, chance)


def told_s(due_s: float, chance: float) -> float:
    """What clients are told that should come again in so many seconds. `chance` is in [0, 1)."""
    return min(max(due_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S) * (1 + RETRY_JITTER * chance)


class Line(msgspec.Struct, frozen=True):
    """The queue, as a request finds it that would join it.

    `waiting`: all that wait. `ahead`: those that go first, of its priority and higher ones. `waiting_max`: how many may
    wait. `drain_per_s` and `age_max_s` are as `Service` has them, None where there is nothing to go by. `patient`: one
    request may wait whatever its age would be, as a short burst is no overload, and tenants with less than their share
    have something to wait for; none where `age_max_s` is 0.
    """

    waiting: int
    ahead: int
    waiting_max: int
    drain_per_s: float | None
    age_max_s: float | None
    patient: bool


def decide(asked: int, places: int, line: Line) -> Reason | None:
    """Whether a request for so many streams is rejected, and why; None where it is taken, or may wait.

    `places`: how many streams replicas can take now, beside those that wait.
    """
    if asked <= places and not line.waiting:
        return None
    waits = asked if line.waiting else asked - places
    if line.waiting + waits > line.waiting_max:
        return Reason.QUEUE_FULL
    if line.drain_per_s is None or line.age_max_s is None:
        return None
    if not line.ahead and line.patient and line.age_max_s > 0:
        return None
    if line.ahead + waits > line.drain_per_s * line.age_max_s:
        return Reason.QUEUE_AGE if line.ahead or line.age_max_s * line.drain_per_s >= 1 else Reason.IN_FLIGHT
    return None
