"""The door of a deployment at one gateway: asks `core.admission` with what it sees, and tells what was rejected."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.core.admission import STALE_FACTOR, TEXTS, Line, Priority, Reason, decide, told_s
from holdfast.core.errors import Overloaded
from holdfast.core.thresholds import Thresholds
from holdfast.gateway.backend import Claim

if TYPE_CHECKING:
    from holdfast.gateway.pool import Pool
    from holdfast.gateway.session import StreamRun

SHEDDING_S = 1.0
"""For so long after a rejection new requests get no benefit of the doubt (seconds)."""

DISPLACED_WITHIN_S = 0.04
"""Unless the queue is full, who has waited for longer (seconds) is not displaced: a rejection comes at once."""

FREE_FRACTION = 0.1
"""While requests of a priority are rejected, lower ones get none of the last free places: this part of what is in use,
and one at least."""

COUNTED_S = 0.05
"""The streams in flight are counted this often at most (seconds): there may be thousands of replicas."""


LOOKED_AT = 64
"""Of so many replicas at most it is asked why they are busy, to tell it: thousands are so for the same reason."""

SLOWEST_PER_S = 0.001
"""No queue is held for slower than this (streams per second)."""


class Admission:
    """Rejects requests for one deployment. `rejected(model, reason)` hears of each; `comeback_s()` says in how many
    seconds a replica should be ready, where none is and that is known."""

    def __init__(
        self,
        pool: Pool,
        thresholds: Thresholds,
        rng: random.Random,
        rejected: Callable[[str, str], None],
        comeback_s: Callable[[], float | None],
    ) -> None:
        self.thresholds = thresholds
        self._pool = pool
        self._rng = rng
        self._rejected = rejected
        self._comeback_s = comeback_s
        self._rejected_s = float("-inf")
        self._highest = Priority.BATCH
        self._highest_s = float("-inf")
        self._in_flight = 0
        self._counted_s = float("-inf")

    @property
    def shedding(self) -> bool:
        """Whether requests were rejected of late."""
        return asyncio.get_running_loop().time() - self._rejected_s < SHEDDING_S

    def check(self, claim: Claim) -> None:
        """Raise `Overloaded` if a request for one stream would be rejected now."""
        reason = self._reason(1, claim)
        if reason is not None and self._victims(reason, 1, claim) is None:
            raise self._refusal(reason, 1, claim)

    def enter(self, streams: int, claim: Claim) -> None:
        """Let so many streams begin or wait, and others give way where they must. Raises `Overloaded`."""
        reason = self._reason(streams, claim)
        victims = self._surplus(streams, claim) if reason is None else self._victims(reason, streams, claim)
        if victims is None:
            assert reason is not None
            raise self._refusal(reason, streams, claim)
        for run in victims:
            if run.queue is not None:
                self._pool.gave_up(run)
                run.fail(self.rejection(Reason.DISPLACED))

    def _refusal(self, reason: Reason, streams: int, claim: Claim) -> Overloaded:
        if streams == 1:
            self._turned_away(claim.priority)
        return self.rejection(self._why(reason))

    def enter_resumed(self, streams: int) -> None:
        """What has begun elsewhere is rejected only where no more may wait, for whatever reason."""
        waiting = self._waiting
        if streams > self._free(waiting) and (waiting or streams > self._free(waiting) + self._pool.places):
            raise self.rejection(Reason.QUEUE_FULL)

    def rejection(self, reason: Reason) -> Overloaded:
        """Count a rejection; the error for it."""
        pool, now_s = self._pool, asyncio.get_running_loop().time()
        pool.service.rejected(now_s)
        if reason is not Reason.DISPLACED:
            self._rejected_s = now_s
        self._rejected(pool.config.name, reason)
        message = f"The request to `{pool.config.name}` was rejected ({reason}): {TEXTS[reason]}."
        return Overloaded(message, self.retry_after_s(now_s), reason, pool.config.name)

    def retry_after_s(self, now_s: float) -> float:
        """When who is rejected now should come again (seconds): once what waits has drained, or there is a replica."""
        pool, chance = self._pool, self._rng.random()
        if not pool.reachable and (due_s := self._comeback_s()) is not None:
            return told_s(due_s, chance)
        in_flight = self._in_flight_at(now_s)
        return pool.service.retry_after_s(len(pool.queue), in_flight, now_s, chance)

    def patience_s(self, priority: Priority) -> float | None:
        """How long a stream that begins to wait now may do so if others wait behind it; None where nobody knows."""
        age_s, _drain = self._bounds(priority)
        _age, drain = self._bounds(Priority.CRITICAL)
        if age_s is None or drain is None:
            return None
        return STALE_FACTOR * max(age_s, (self._pool.queue.ahead(priority) + 1) / max(drain, SLOWEST_PER_S))

    def stale(self, run: StreamRun) -> bool:
        """Whether it has waited for so long that it gives way to those behind it."""
        if run.patience_s is None or run.waiting_since_s is None or len(self._pool.queue) < 2:
            return False
        if run.stream.attempts or run.has_tokens:
            return False
        return asyncio.get_running_loop().time() - run.waiting_since_s > run.patience_s

    @property
    def _waiting(self) -> int:
        """Streams that are looked for may have to wait as well, once nobody is found to hold them."""
        return len(self._pool.queue) + len(self._pool.searches)

    def _free(self, waiting: int) -> int:
        return self._pool.config.max_queued_requests - waiting

    def _reason(self, streams: int, claim: Claim) -> Reason | None:
        pool = self._pool
        places, waiting = pool.places, self._waiting
        if streams <= places and not waiting:
            return Reason.PRIORITY if self._yields(claim.priority, places) else None
        age_s, drain = self._bounds(claim.priority)
        ahead = pool.queue.ahead(claim.priority)
        owed = pool.usage[claim.tenant] + streams <= pool.usage.total() / (len(pool.usage) or 1)
        patient = owed or not self.shedding
        return decide(streams, places, Line(waiting, ahead, pool.config.max_queued_requests, drain, age_s, patient))

    def _bounds(self, priority: Priority) -> tuple[float | None, float | None]:
        """How long a request may wait, and how many that wait begin per second. None while no replica is there: then
        all wait for one to come."""
        pool = self._pool
        if not pool.reachable:
            return None, None
        now_s = asyncio.get_running_loop().time()
        drain = pool.service.drain_per_s(self._in_flight_at(now_s), priority, now_s)
        return pool.service.age_max_s(self.thresholds, priority), drain

    def _yields(self, priority: Priority, places: int) -> bool:
        """Whether the few places that are free are left to requests of a higher priority, as such were rejected."""
        now_s = asyncio.get_running_loop().time()
        if priority >= self._highest or now_s - self._highest_s >= SHEDDING_S:
            return False
        return places <= max(1.0, FREE_FRACTION * self._in_flight_at(now_s))

    def _turned_away(self, priority: Priority) -> None:
        now_s = asyncio.get_running_loop().time()
        if priority >= self._highest or now_s - self._highest_s >= SHEDDING_S:
            self._highest, self._highest_s = priority, now_s

    def _surplus(self, streams: int, claim: Claim) -> list[StreamRun]:
        """Those of lower priorities that would wait too long once these streams go before them."""
        pool = self._pool
        if not pool.queue:
            return []
        now_s = asyncio.get_running_loop().time()
        age_s = pool.service.age_max_s(self.thresholds, Priority.DEFAULT)
        drain = pool.service.drain_per_s(self._in_flight_at(now_s), Priority.CRITICAL, now_s)
        if age_s is None or drain is None:
            return []
        surplus = math.ceil(len(pool.queue) + streams - pool.places - max(1.0, age_s * drain))
        if surplus <= 0:
            return []
        lower = pool.queue.below(claim.priority, len(pool.queue))
        return [run for run in lower if now_s - (run.waiting_since_s or 0.0) < DISPLACED_WITHIN_S][:surplus]

    def _victims(self, reason: Reason, streams: int, claim: Claim) -> list[StreamRun] | None:
        """Who gives way to so many streams that are too many; None if nobody must."""
        queue, usage = self._pool.queue, self._pool.usage
        if reason is Reason.QUEUE_FULL:
            lower = queue.below(claim.priority, streams)
            if len(lower) == streams:
                return lower
        greedy = queue.greedy(claim.priority, usage[claim.tenant] + 2 * streams - 1, usage, streams)
        return greedy if len(greedy) == streams else None

    def _why(self, reason: Reason) -> Reason:
        """What keeps replicas from taking more, if they tell, rather than that a queue is long."""
        if reason in (Reason.QUEUE_FULL, Reason.PRIORITY):
            return reason
        busy = {link.pressure.why_busy(link.in_flight) for link in self._pool.links[:LOOKED_AT] if link.ready}
        return next((one for one in (Reason.KV_BLOCKS, Reason.PREFILL_TOKENS) if one in busy), reason)

    def _in_flight_at(self, now_s: float) -> int:
        if now_s - self._counted_s > COUNTED_S:
            self._counted_s = now_s
            links = [link for link in self._pool.links if link.reached]
            self._in_flight = sum(link.in_flight for link in links)
            firsts_s = [link.pressure.pace.first_s for link in links if link.pressure.pace.first_s > 0]
            mean_s = sum(firsts_s) / len(firsts_s) if firsts_s else None
            self._pool.service.told(sum(link.pressure.others_end_per_s for link in links), mean_s)
        return self._in_flight
