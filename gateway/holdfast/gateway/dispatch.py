"""Where streams run: each is given a replica at once, from its deployment's queue, or anew when it lost one.

A stream that finds no replica with room waits in its deployment's queue, which is bounded in length and in
time. A stream that lost its replica, or that a replica turned away, goes to the head of that queue, and is never
refused for its length. One that was held back, as its client read slowly, waits behind those of its priority, until the
request's deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

from holdfast.actors.metric_families import QUEUE_WAIT, RESUMPTIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.admission import Reason
from holdfast.core.budget import RetryBudget
from holdfast.core.errors import NoReplica, RequestRefused, StreamLost, UnknownModel
from holdfast.core.events import Fact, StreamsMigrated
from holdfast.core.stream import StreamStatus
from holdfast.gateway.handover import DRAINED, Handovers
from holdfast.gateway.holding import Holding
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.moves import CANCELLED, LOST_AGAIN, Move
from holdfast.gateway.pool import Pool
from holdfast.gateway.search import Search
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun
from holdfast.gateway.standing import stopping
from holdfast.gateway.suspicions import Suspicions
from holdfast.gateway.tracing import ENDED, LOST, POSTPONED


class Dispatch:
    """The open streams of a gateway. `pool_of` are their pools, `migrations` how many moved, by model and cause.

    `retries` is spent by streams that begin again; `comeback_s(model)` says when a replica may be there again, in
    seconds, if anybody knows; `rejected(model, reason)` is told of those that waited in vain.
    """

    def __init__(
        self,
        gateway: str,
        settings: ServingSettings,
        rng: random.Random,
        ledger: Ledger,
        report: Callable[[Fact, str | None], str | None],
        suspicions: Suspicions,
        retries: RetryBudget,
        comeback_s: Callable[[str], float | None],
        rejected: Callable[[str, str], None],
    ) -> None:
        self.pool_of: dict[StreamRun, Pool] = {}
        self.migrations: Counter[tuple[str, str]] = Counter()
        self.handovers = Handovers(self._may_go_to, self._choose, self._handed_over, self._handed_over_all)
        self.holding = Holding(self._may_go_to, self._go_on)
        self._gateway = gateway
        self._settings = settings
        self._rng = rng
        self._ledger = ledger
        self._report = report
        self._suspicions = suspicions
        self._retries = retries
        self._comeback_s = comeback_s
        self._rejected = rejected
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no stream is open."""
        await self._idle.wait()

    def turn_away(self) -> int:
        """End all open streams; how many there were. The replicas keep them for another gateway."""
        open_ones = [run for run in self.pool_of if not run.stream.ended]
        for run in open_ones:
            run.release(stopping())
        return len(open_ones)

    # --- a stream begins, or waits ----------------------------------------------------------------------

    def submit(self, run: StreamRun, pool: Pool) -> None:
        """A stream is open: let it begin where it can, or wait."""
        self.pool_of[run] = pool
        pool.took(run)
        self._idle.clear()
        if run.resumed_at is not None:
            self._look_for(run, run.resumed_at if run.stream.delivered else 0, pool)
        else:
            self._place(run, pool)

    def _place(self, run: StreamRun, pool: Pool) -> None:
        if pool.queue or not self._begin(run, pool):
            # What began elsewhere goes on before what is new.
            self._enqueue(run, pool, first=run.resumed_at is not None)

    def _look_for(self, run: StreamRun, base_max: int, pool: Pool) -> None:
        """Attach to the replica that still holds the stream; where there is none, have it drawn again."""

        def done(run: StreamRun, found: tuple[int, ReplicaLink] | None) -> None:
            run.search = None
            if pool.closed:
                run.fail(UnknownModel(pool.config.name))
            elif found is not None:
                self._ledger.add(RESUMPTIONS, pool.config.name, "attached")
                ordinal, link = found
                link.attach(run, ordinal)
            else:
                self._ledger.add(RESUMPTIONS, pool.config.name, "refused" if pool.erratic else "redrawn")
                self._place(run, pool)

        run.search = Search(run, base_max, pool.searches, done)
        run.search.begin(pool.links)

    def _begin(self, run: StreamRun, pool: Pool, among: Sequence[ReplicaLink] | None = None) -> bool:
        """Begin the run's next attempt on one of these links (all, if not told); False where none has room."""
        if (run.resumed_at or 0) > len(run.stream.accepted) and pool.erratic:
            run.fail(_cannot_resume(pool.config.name))
            return True
        link = pool.choose(run, self._rng.randrange, among)
        if link is None:
            return False
        link.begin(run)
        return True

    def turned_away(self, run: StreamRun) -> None:
        """A replica had no room for it just now, which is no failure: it waits on, or begins where there is room."""
        run.link = None
        run.trace.ended(POSTPONED)
        pool, now_s = self.pool_of[run], asyncio.get_running_loop().time()
        if run.waiting_since_s is None:
            run.waiting_since_s = now_s
            run.patience_s = pool.admission.patience_s(run.claim.priority)
        if pool.closed:
            run.fail(UnknownModel(pool.config.name))
        elif not run.was_held and now_s - run.waiting_since_s > self._settings.replica_wait_s:
            self._give_up(run, pool)
        elif pool.admission.stale(run):
            run.fail(pool.admission.rejection(Reason.QUEUE_AGE))
        elif not self._begin(run, pool):
            self._enqueue(run, pool, first=True)

    def _go_on(self, run: StreamRun) -> None:
        """Its client took what there was."""
        pool = self.pool_of[run]
        run.waiting_since_s = None
        if pool.closed:
            run.fail(UnknownModel(pool.config.name))
        else:
            self._place(run, pool)

    def _enqueue(self, run: StreamRun, pool: Pool, *, first: bool) -> None:
        loop = asyncio.get_running_loop()
        if run.waiting_since_s is None:
            run.waiting_since_s = loop.time()
        if not run.was_held:  # such a one waits until its request's deadline
            run.waiting = loop.call_at(run.waiting_since_s + self._settings.replica_wait_s, self._give_up, run, pool)
        run.queue = pool.queue
        if first and not run.was_held:
            pool.queue.appendleft(run)
        else:
            run.patience_s = pool.admission.patience_s(run.claim.priority)
            pool.queue.append(run)

    def pump(self, pool: Pool, link: ReplicaLink | None = None) -> None:
        """Let queued streams begin while there is room. `link` is where there is more."""
        if pool.searches and link is not None:
            for search in list(pool.searches):
                search.reached(link)
        among = [link] if pool.exhausted and link is not None else None
        pool.has_room()
        while pool.queue:
            run = pool.queue.head()
            if pool.admission.stale(run):
                run.fail(pool.admission.rejection(Reason.QUEUE_AGE))
            elif self._begin(run, pool, among):
                if run.waiting_since_s is not None:
                    waited_s = asyncio.get_running_loop().time() - run.waiting_since_s
                    self._ledger.observe(QUEUE_WAIT, waited_s, pool.config.name, run.claim.priority.name.lower())
                pool.queue.begun(run)
            else:
                return

    # --- a stream leaves its replica --------------------------------------------------------------------

    def orphaned(self, link: ReplicaLink, runs: list[StreamRun], cause: StreamLost) -> None:
        """These lost their replica: tell of it, and let them go on elsewhere."""
        replica = link.replica
        begun = sum(run.stream.status is StreamStatus.RUNNING for run in runs)
        link.record.broke(begun)
        if begun and replica not in self._suspicions:
            self._report(StreamsMigrated(self._gateway, replica, begun, str(cause)), None)
        self._migrate(runs, cause)

    def _migrate(self, runs: list[StreamRun], cause: StreamLost) -> None:
        """These lost their replica: on to another."""
        for run in runs:
            link, run.link = run.link, None
            had_begun = run.stream.status is StreamStatus.RUNNING
            run.trace.ended(LOST if had_begun else POSTPONED, cause.kind if had_begun else "")
            pool = self.pool_of.get(run)
            if pool is not None and not pool.reachable:
                cause.retry_after_s = self._comeback_s(pool.config.name)
            run.stream.lost(cause)
            if had_begun and pool is not None and link is not None:
                run.end_move(LOST_AGAIN)
                run.move = Move(self._ledger, pool.config.name, cause.kind, max(link.stepped_s, run.began_s))
            if run.stream.status is not StreamStatus.WAITING or pool is None or pool.closed:
                run.fail(cause)
                continue
            if had_begun and self._too_long(run):
                message = f"{cause}; the stream is longer than migration_max_seq_len allows"
                run.fail(StreamLost(message, cause.kind, cause.retry_after_s))
                continue
            if not run.has_tokens and not self._may_retry():
                run.fail(pool.admission.rejection(Reason.RETRY_BUDGET))
                continue
            if had_begun:
                self.migrations[pool.config.name, cause.kind] += 1
            if not self._begin(run, pool):
                self._enqueue(run, pool, first=True)

    def _may_retry(self) -> bool:
        """Whether a stream that has brought nothing may begin again. One that has goes on in any case, within its own
        limit: nobody else could take up what its client has."""
        return self._retries.spend(len(self.pool_of), asyncio.get_running_loop().time())

    def _may_go_to(self, run: StreamRun) -> Pool | None:
        """The pool among whose replicas a stream may move that runs; None where its length forbids it."""
        pool = self.pool_of.get(run)
        return None if pool is None or pool.closed or self._too_long(run) else pool

    def _choose(self, run: StreamRun, pool: Pool) -> ReplicaLink | None:
        return pool.choose(run, self._rng.randrange)

    def _handed_over(self, run: StreamRun, source: ReplicaLink) -> None:
        """A stream left a replica that asked for it."""
        model = self.pool_of[run].config.name
        run.trace.ended(LOST, DRAINED)
        run.end_move(LOST_AGAIN)
        run.move = Move(self._ledger, model, DRAINED, source.stepped_s)
        self.migrations[model, DRAINED] += 1

    def _handed_over_all(self, source: ReplicaLink, streams: int) -> None:
        self._report(StreamsMigrated(self._gateway, source.replica, streams, f"replica {source.replica} drained"), None)

    def _too_long(self, run: StreamRun) -> bool:
        limit = self._settings.migration_max_seq_len
        return 0 < limit < (run.stream.prompt_tokens or 0) + len(run.stream.accepted)

    def _give_up(self, run: StreamRun, pool: Pool) -> None:
        self._rejected(pool.config.name, Reason.NO_REPLICA)
        waited_s = self._settings.replica_wait_s
        message = f"No replica of `{pool.config.name}` could take the request within {waited_s:g} seconds."
        after_s = pool.admission.retry_after_s(asyncio.get_running_loop().time())
        run.fail(NoReplica(message, after_s, Reason.NO_REPLICA))

    def withdraw(self, run: StreamRun) -> None:
        """The client is done with it, or gone."""
        pool = self.pool_of.pop(run, None)
        run.end_move(CANCELLED)
        self.holding.forget(run)
        if pool is not None:
            pool.gave_up(run)
        if not self.pool_of:
            self._idle.set()
        if run.link is not None:
            link, run.link = run.link, None
            link.end(run)
        run.trace.ended(ENDED)
        run.leave_queue()


def _cannot_resume(model: str) -> RequestRefused:
    message = f"No replica holds the stream any more, and `{model}`'s engines would not draw the same tokens again."
    return RequestRefused(message, code="cannot_resume", param="Last-Event-ID")
