"""Serves models over the replicas that the log says are running: links, routing, queues, migration.

A stream that finds no replica with room waits in its deployment's queue, which is bounded in length and in
time. A stream that lost its replica, or that a replica turned away, goes to the head of that queue, and is never
refused for its length. One that was held back, as its client read slowly, waits behind those of its priority, until the
request's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from holdfast.actors.follower import Follower
from holdfast.actors.metric_families import GATEWAY, QUEUE_WAIT, REJECTIONS, RESUMPTIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.admission import Reason
from holdfast.core.barren import NO_TOKEN
from holdfast.core.budget import RetryBudget
from holdfast.core.cluster import ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.config import DeploymentConfig
from holdfast.core.drains import better_elsewhere
from holdfast.core.errors import NoReplica, RequestRefused, StreamLost, UnknownModel
from holdfast.core.events import (
    ApplicationDeleted,
    ApplicationDeployed,
    BusyThresholdRequested,
    BusyThresholdSet,
    DrainLifted,
    DrainOrdered,
    Fact,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeStopping,
    Record,
    ReplicaExited,
    ReplicaHealthy,
    ReplicaReady,
    ReplicaStopOrdered,
    ReplicaUnhealthy,
    StreamsMigrated,
)
from holdfast.core.liveness import Suspicion
from holdfast.core.requests import EngineRequest
from holdfast.core.stream import StreamStatus
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.gateway.admission_settings import AdmissionSettings
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Health, ModelInfo, Resumption
from holdfast.gateway.busy_threshold import Asked
from holdfast.gateway.comeback import Comeback
from holdfast.gateway.ejecting import Ejector
from holdfast.gateway.handover import DRAINED, Handovers
from holdfast.gateway.holding import Holding
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_record import LinkRecord
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.moves import CANCELLED, LOST_AGAIN, Move
from holdfast.gateway.overview import info_of, standing_of, why_unserved
from holdfast.gateway.pool import Pool, PoolReport
from holdfast.gateway.search import Search
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamRun, StreamSession
from holdfast.gateway.spells import Spells
from holdfast.gateway.standing import Standing, stopping
from holdfast.gateway.suspicions import Suspicions
from holdfast.gateway.tracing import ENDED, LOST, POSTPONED, UNTRACED, RequestTrace

_ABOUT_MANY = (
    *(ApplicationDeployed, ApplicationDeleted, BusyThresholdSet),
    *(NodeJoined, NodeStopping, NodeLeft, NodeLost, DrainOrdered, DrainLifted),
)
_ABOUT_ONE = (ReplicaReady, ReplicaUnhealthy, ReplicaHealthy, ReplicaExited, ReplicaStopOrdered)
"""What may change which replicas run, or which are the better ones."""

logger = logging.getLogger(__name__)


class Serving:
    """As `Backend`, over replicas' sockets."""

    def __init__(
        self,
        follower: Follower,
        cluster: str,
        gateway: str,
        settings: ServingSettings,
        rng: random.Random,
        report: Callable[[Fact, str | None], str | None] = lambda _fact, _cause: None,
        heartbeat_interval_s: float = 0.1,
        admission: AdmissionSettings | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._admission = admission or AdmissionSettings()
        self.ledger = ledger or Ledger(GATEWAY)
        self._follower = follower
        self._settings = settings
        self._rng = rng
        self._gateway = gateway
        self._report = report
        self._suspicions = Suspicions(gateway, report, self.ledger, self._deployment_of)
        self._spells = Spells(gateway, report)
        self._ejector = Ejector(gateway, self._admission, lambda: self._pools.values(), report, self._pump, self.ledger)
        self._retries = RetryBudget(self._admission.retry_budget_ratio, self._admission.retry_budget_min_per_s)
        self._link_settings = LinkSettings(
            cluster,
            gateway,
            settings.dial_timeout_s,
            heartbeat_interval_s,
            settings.heartbeat_timeout_s,
            settings.suspicion_phi,
            settings.stream_stall_timeout_s,
            # Who doesn't want requests to wait for room still lets a replica read a prompt.
            max(settings.replica_wait_s, settings.stream_stall_timeout_s),
            settings.unsent_tokens_max,
        )
        self._pools: dict[str, Pool] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._pool_of: dict[StreamRun, Pool] = {}
        self._touched: dict[str, None] | None = None
        self._comeback = Comeback()
        self._asked = Asked()
        self._changed = asyncio.Event()
        follower.observe(self._on_record)
        self._idle = asyncio.Event()
        self._idle.set()
        self.standing = Standing()
        self.migrations: Counter[tuple[str, str]] = Counter()
        self._handovers = Handovers(self._may_go_to, self._choose, self._handed_over, self._handed_over_all)
        self._holding = Holding(self._may_go_to, self._go_on)

    async def run(self) -> None:
        """Keep links to all running replicas until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ejector.run())
            while True:
                touched, self._touched = self._touched, {}
                self._changed.clear()
                self._sync(self._follower.state, touched, group)
                await self._changed.wait()

    # --- Backend ----------------------------------------------------------------------------------------

    def models(self) -> Sequence[ModelInfo]:
        """As `Backend.models`."""
        state = self._follower.state
        return [
            info_of(state, application, deployment.config)
            for application in state.applications.values()
            for deployment in application.deployments.values()
        ]

    def open(
        self,
        model: str,
        choices: Sequence[EngineRequest],
        *,
        stops: Sequence[str],
        timeout_s: float | None = None,
        name: str = "",
        resumption: Resumption | None = None,
        trace: RequestTrace = UNTRACED,
        claim: Claim = DEFAULT_CLAIM,
    ) -> StreamSession:
        """As `Backend.open`."""
        pool = self._pool(model)
        self._retries.earn()
        if resumption is None:
            pool.admission.enter(len(choices), claim)
        else:
            pool.admission.enter_resumed(len(choices))
        limit_s = self._settings.request_timeout_s
        return StreamSession(
            choices,
            stops,
            self._settings.migration_limit,
            lambda run: self._submit(run, pool),
            self._withdraw,
            min(timeout_s or limit_s, limit_s),
            name,
            resumption,
            trace,
            claim,
        )

    def check_open(self, model: str, claim: Claim) -> None:
        """As `Backend.check_open`."""
        self._pool(model).admission.check(claim)

    def thresholds(self, model: str) -> Thresholds:
        """As `Backend.thresholds`."""
        pool = self._pools.get(model)
        if pool is None:
            raise UnknownModel(model)
        return pool.admission.thresholds

    async def set_thresholds(self, model: str, changes: ThresholdChanges) -> None:
        """As `Backend.set_thresholds`."""
        self.thresholds(model)
        await self._asked.decided(lambda: self._report(BusyThresholdRequested(self._gateway, model, changes), None))

    def crowded(self) -> bool:
        """As `Backend.crowded`."""
        return any(pool.admission.shedding for pool in self._pools.values())

    def _pool(self, model: str) -> Pool:
        pool = self._pools.get(model)
        if pool is None:
            raise UnknownModel(model)
        if self.standing.draining:
            raise stopping(model)
        return pool

    def health(self) -> Health:
        """As `Backend.health`."""
        reasons = self.standing.reasons
        if self._follower.unreadable is not None:
            reasons.append(str(self._follower.unreadable))
        details: dict[str, Any] = {"models": {}, "log_sequence": self._follower.state.sequence}
        for name, pool in self._pools.items():
            details["models"][name] = standing_of(pool)
            if why := why_unserved(pool, self._follower.state.replicas):
                reasons.append(why)
        if not self._pools:
            reasons.append("no application is deployed")
        return Health(not reasons, reasons, details, self.standing.state(healthy=not reasons))

    def pools(self) -> list[PoolReport]:
        """How each deployment stands at this gateway, for metrics."""
        return [pool.report() for pool in self._pools.values()]

    def held_back(self) -> Counter[str]:
        """How many streams wait for their clients to take what there is, by deployment."""
        return self._holding.counts()

    async def idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def turn_away(self) -> int:
        """End all open streams; how many there were. Their clients get what was given so far, and are told to go on at
        another gateway, for which the replicas keep them."""
        open_ones = [run for run in self._pool_of if not run.stream.ended]
        for run in open_ones:
            run.release(stopping())
        return len(open_ones)

    # --- links ------------------------------------------------------------------------------------------

    def _on_record(self, record: Record, state: ClusterState) -> None:
        """Note whose link may have to change. With thousands of replicas, most of what happens is about one of them."""
        payload = record.event.payload
        self._comeback.read(record, state)
        if isinstance(payload, _ABOUT_MANY):
            self._touched = None
            self._changed.set()
        elif isinstance(payload, _ABOUT_ONE):
            if self._touched is not None:
                self._touched[payload.replica] = None
            self._changed.set()
        self._asked.read(record, state)  # last: who waits for thresholds goes on once pools have them

    def _sync(self, state: ClusterState, touched: dict[str, None] | None, group: asyncio.TaskGroup) -> None:
        """Make these replicas' links agree with the log; without them, all pools and links."""
        if touched is None:
            self._sync_pools(state)
            touched = {**dict.fromkeys(state.replicas), **dict.fromkeys(self._links)}
        for replica_id in touched:
            replica, link = state.replicas.get(replica_id), self._links.get(replica_id)
            if replica is not None and replica.status is ReplicaStatus.RUNNING:
                link = link or self._open_link(replica, group)
                if link is not None:
                    link.found(sick=replica.unhealthy == NO_TOKEN)
                    self._prefer(link, replica, better_elsewhere(state, replica))
            elif link is not None:
                self._retire(link)

    def _prefer(self, link: ReplicaLink, replica: ReplicaState, others: bool) -> None:
        """Let streams rather begin on others, or not."""
        pool = self._pools.get(replica.deployment)
        if pool is not None:
            (pool.shunned.add if others else pool.shunned.discard)(link)

    def _sync_pools(self, state: ClusterState) -> None:
        goals = {
            deployment.config.name: deployment
            for application in state.applications.values()
            for deployment in application.deployments.values()
        }
        self._comeback.keep(state, set(goals))
        for name in [name for name in self._pools if name not in goals]:
            self._close_pool(name)
        for name, deployment in goals.items():
            config = deployment.config
            thresholds = deployment.thresholds.over(config.thresholds).over(self._admission.thresholds())
            pool = self._pools.get(name)
            if pool is None:
                self._pools[name] = Pool(config, thresholds, self._rng, self._rejected, partial(self._comeback_s, name))
            elif (pool.config, pool.admission.thresholds) != (config, thresholds):
                self._reconfigure(pool, config, thresholds)

    def _comeback_s(self, model: str) -> float | None:
        return self._comeback.due_s(self._follower.state, model)

    def _rejected(self, model: str, reason: str) -> None:
        self.ledger.add(REJECTIONS, model, reason)
        self._spells.rejected(model, reason)

    def _reconfigure(self, pool: Pool, config: DeploymentConfig, thresholds: Thresholds) -> None:
        pool.config, pool.admission.thresholds = config, thresholds
        for link in pool.links:
            link.in_flight_max = config.max_ongoing_requests
            link.pressure.set_thresholds(thresholds)
        self._pump(pool)

    def _open_link(self, replica: ReplicaState, group: asyncio.TaskGroup) -> ReplicaLink | None:
        pool = self._pools.get(replica.deployment)
        if pool is None:
            return None
        link = ReplicaLink(
            replica.id,
            replica.address,
            pool.config.max_ongoing_requests,
            self._link_settings,
            self._rng,
            on_capacity=lambda link: self._pump(pool, link),
            on_orphans=lambda runs, cause: self._orphaned(link, runs, cause),
            on_turned_away=self._turned_away,
            on_suspicion=self._suspected,
            on_trust=self._suspicions.trusted,
            on_dismissed=self._handovers.dismissed,
            on_behind=self._holding.hold,
            engine_stall_timeout_s=pool.config.engine_stall_timeout_s,
            record=LinkRecord(pool.service),
            thresholds=pool.admission.thresholds,
        )
        self._links[replica.id] = link
        pool.links.append(link)
        group.create_task(link.run(), name=f"link to {replica.id}")
        return link

    def _retire(self, link: ReplicaLink) -> None:
        self._forget(link)
        for pool in self._pools.values():
            if link in pool.links:
                pool.retire(link)
        link.retire()

    def _forget(self, link: ReplicaLink) -> None:
        """A replica that is gone is not linked to any more, nor suspected: nobody will hear of it again."""
        self._links.pop(link.replica, None)
        self._suspicions.forget(link.replica)

    def _close_pool(self, name: str) -> None:
        pool = self._pools.pop(name)
        pool.closed = True
        for link in list(pool.links):
            self._forget(link)
            link.retire()
        while pool.queue:
            pool.queue.head().fail(UnknownModel(name))

    # --- streams ----------------------------------------------------------------------------------------

    def _submit(self, run: StreamRun, pool: Pool) -> None:
        self._pool_of[run] = pool
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
                self.ledger.add(RESUMPTIONS, pool.config.name, "attached")
                ordinal, link = found
                link.attach(run, ordinal)
            else:
                self.ledger.add(RESUMPTIONS, pool.config.name, "refused" if pool.erratic else "redrawn")
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

    def _turned_away(self, run: StreamRun) -> None:
        """A replica had no room for it just now, which is no failure: it waits on, or begins where there is room."""
        run.link = None
        run.trace.ended(POSTPONED)
        pool, now_s = self._pool_of[run], asyncio.get_running_loop().time()
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
        pool = self._pool_of[run]
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

    def _pump(self, pool: Pool, link: ReplicaLink | None = None) -> None:
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
                    self.ledger.observe(QUEUE_WAIT, waited_s, pool.config.name, run.claim.priority.name.lower())
                pool.queue.begun(run)
            else:
                return

    def _suspected(self, link: ReplicaLink, reason: Suspicion, silence_s: float, streams: int) -> None:
        self._suspicions.suspected(link, reason, silence_s, streams)
        for pool in self._pools.values():
            pool.stop_searching(link)

    def _deployment_of(self, replica_id: str) -> str | None:
        replica = self._follower.state.replicas.get(replica_id)
        return None if replica is None else replica.deployment

    def _orphaned(self, link: ReplicaLink, runs: list[StreamRun], cause: StreamLost) -> None:
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
            pool = self._pool_of.get(run)
            if pool is not None and not pool.reachable:
                cause.retry_after_s = self._comeback_s(pool.config.name)
            run.stream.lost(cause)
            if had_begun and pool is not None and link is not None:
                run.end_move(LOST_AGAIN)
                run.move = Move(self.ledger, pool.config.name, cause.kind, max(link.stepped_s, run.began_s))
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
        return self._retries.spend(len(self._pool_of), asyncio.get_running_loop().time())

    def _may_go_to(self, run: StreamRun) -> Pool | None:
        """The pool among whose replicas a stream may move that runs; None where its length forbids it."""
        pool = self._pool_of.get(run)
        return None if pool is None or pool.closed or self._too_long(run) else pool

    def _choose(self, run: StreamRun, pool: Pool) -> ReplicaLink | None:
        return pool.choose(run, self._rng.randrange)

    def _handed_over(self, run: StreamRun, source: ReplicaLink) -> None:
        """A stream left a replica that asked for it."""
        model = self._pool_of[run].config.name
        run.trace.ended(LOST, DRAINED)
        run.end_move(LOST_AGAIN)
        run.move = Move(self.ledger, model, DRAINED, source.stepped_s)
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

    def _withdraw(self, run: StreamRun) -> None:
        """The client is done with it, or gone."""
        pool = self._pool_of.pop(run, None)
        run.end_move(CANCELLED)
        self._holding.forget(run)
        if pool is not None:
            pool.gave_up(run)
        if not self._pool_of:
            self._idle.set()
        if run.link is not None:
            link, run.link = run.link, None
            link.end(run)
        run.trace.ended(ENDED)
        run.leave_queue()


def _cannot_resume(model: str) -> RequestRefused:
    message = f"No replica holds the stream any more, and `{model}`'s engines would not draw the same tokens again."
    return RequestRefused(message, code="cannot_resume", param="Last-Event-ID")
