"""Serves models over the replicas that the log says are running: a pool for each deployment, a link to each replica.

Pools and links follow the log. Which replica a stream runs on is the dispatch's to say (`dispatch.py`).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from holdfast.actors.follower import Follower
from holdfast.actors.metric_families import GATEWAY, REJECTIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.barren import NO_TOKEN
from holdfast.core.budget import RetryBudget
from holdfast.core.cluster import ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.config import DeploymentConfig
from holdfast.core.drains import better_elsewhere
from holdfast.core.errors import UnknownModel
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
)
from holdfast.core.liveness import Suspicion
from holdfast.core.requests import EngineRequest
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.gateway.admission_settings import AdmissionSettings
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Health, ModelInfo, Resumption
from holdfast.gateway.busy_threshold import Asked
from holdfast.gateway.comeback import Comeback
from holdfast.gateway.dispatch import Dispatch
from holdfast.gateway.ejecting import Ejector
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_record import LinkRecord
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.overview import info_of, standing_of, why_unserved
from holdfast.gateway.pool import Pool, PoolReport
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.gateway.session import StreamSession
from holdfast.gateway.spells import Spells
from holdfast.gateway.standing import Standing, stopping
from holdfast.gateway.suspicions import Suspicions
from holdfast.gateway.tracing import UNTRACED, RequestTrace

_ABOUT_MANY = (
    *(ApplicationDeployed, ApplicationDeleted, BusyThresholdSet),
    *(NodeJoined, NodeStopping, NodeLeft, NodeLost, DrainOrdered, DrainLifted),
)
_ABOUT_ONE = (ReplicaReady, ReplicaUnhealthy, ReplicaHealthy, ReplicaExited, ReplicaStopOrdered)
"""What may change which replicas run, or which are the better ones."""


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
        self._retries = RetryBudget(
            self._admission.retry_budget_ratio,
            self._admission.retry_budget_min_per_s,
            burst=self._admission.retry_budget_burst,
        )
        self._dispatch = Dispatch(
            gateway,
            settings,
            rng,
            self.ledger,
            report,
            self._suspicions,
            self._retries,
            self._comeback_s,
            self._rejected,
        )
        self.migrations = self._dispatch.migrations
        pump = self._dispatch.pump
        self._ejector = Ejector(gateway, self._admission, lambda: self._pools.values(), report, pump, self.ledger)
        self._link_settings = _link_settings(cluster, gateway, settings, heartbeat_interval_s)
        self._pools: dict[str, Pool] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._touched: dict[str, None] | None = None
        self._comeback = Comeback()
        self._asked = Asked()
        self._changed = asyncio.Event()
        follower.observe(self._on_record)
        self.standing = Standing()

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
            lambda run: self._dispatch.submit(run, pool),
            self._dispatch.withdraw,
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
        return self._dispatch.holding.counts()

    async def idle(self) -> None:
        """Wait until no request is open."""
        await self._dispatch.idle()

    def turn_away(self) -> int:
        """End all open streams; how many there were. Their clients get what was given so far, and are told to go on at
        another gateway, for which the replicas keep them."""
        return self._dispatch.turn_away()

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
        self._dispatch.pump(pool)

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
            on_capacity=lambda link: self._dispatch.pump(pool, link),
            on_orphans=lambda runs, cause: self._dispatch.orphaned(link, runs, cause),
            on_turned_away=self._dispatch.turned_away,
            on_suspicion=self._suspected,
            on_trust=self._suspicions.trusted,
            on_dismissed=self._dispatch.handovers.dismissed,
            on_behind=self._dispatch.holding.hold,
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

    def _suspected(self, link: ReplicaLink, reason: Suspicion, silence_s: float, streams: int) -> None:
        self._suspicions.suspected(link, reason, silence_s, streams)
        for pool in self._pools.values():
            pool.stop_searching(link)

    def _deployment_of(self, replica_id: str) -> str | None:
        replica = self._follower.state.replicas.get(replica_id)
        return None if replica is None else replica.deployment


def _link_settings(cluster: str, gateway: str, settings: ServingSettings, heartbeat_interval_s: float) -> LinkSettings:
    return LinkSettings(
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
