"""Serves models over the replicas that the log says are running: links, routing, queues, migration.

A stream that finds no replica with room waits in its deployment's queue, which is bounded in length and in
time. A stream that lost its replica goes to the head of that queue, and is never refused for its length.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from holdfast.actors.follower import Follower
from holdfast.core.cluster import ApplicationState, ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.config import DeploymentConfig
from holdfast.core.errors import NoReplica, Overloaded, RequestRefused, StreamLost, UnknownModel
from holdfast.core.events import Fact, ReplicaSuspected, ReplicaTrusted, StreamsMigrated
from holdfast.core.liveness import Suspicion
from holdfast.core.requests import EngineRequest
from holdfast.core.routing import choose
from holdfast.core.stream import StreamStatus
from holdfast.gateway.backend import Health, ModelInfo, Resumption
from holdfast.gateway.link import LinkSettings, ReplicaLink
from holdfast.gateway.search import Search
from holdfast.gateway.session import StreamRun, StreamSession

RETRY_AFTER_S = 1.0

logger = logging.getLogger(__name__)


class ServingSettings(BaseModel):
    """How a gateway serves streams."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="A request ends by then, whatever happens (seconds)."
    )
    replica_wait_s: float = Field(
        30.0, ge=0, le=3_600, description="A stream waits this long for a replica with room before it fails (seconds)."
    )
    migration_limit: int = Field(3, ge=0, le=100, description="A stream may change its replica this often.")
    migration_max_seq_len: int = Field(
        0, ge=0, description="Streams of more tokens than this, prompt included, don't migrate but fail. 0: no limit."
    )
    dial_timeout_s: float = Field(1.0, gt=0, le=60, description="Reaching a replica may take this long (seconds).")
    suspicion_phi: float = Field(
        8.0,
        gt=0,
        le=300,
        description="A replica whose silence is this unlikely (phi: once in 10^phi) loses its streams to others. "
        "8 is about half a second with regular heartbeats.",
    )
    heartbeat_timeout_s: float = Field(
        2.0, gt=0, le=600, description="A replica that sends nothing for this long is dialled again (seconds)."
    )
    stream_stall_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3_600,
        description="A stream without a token for this long, while its replica's engine goes on, migrates (seconds).",
    )


class PoolReport(msgspec.Struct, frozen=True):
    """One deployment at one gateway. `in_flight` and `kv_used` (a fraction) are by replica."""

    model: str
    replicas_ready: int
    replicas_wanted: int
    queued: int
    in_flight: dict[str, int]
    kv_used: dict[str, float]


class _Pool:
    """One deployment's links and queue."""

    def __init__(self, config: DeploymentConfig) -> None:
        self.config = config
        self.links: list[ReplicaLink] = []
        self.queue: deque[StreamRun] = deque()
        self.searches: dict[Search, None] = {}
        self.closed = False

    def stop_searching(self, link: ReplicaLink) -> None:
        """Nobody need wait for this replica's answer."""
        for search in list(self.searches):
            search.gone(link)

    @property
    def deterministic(self) -> bool:
        """Whether all engines that are known here draw the same tokens for the same request and seed."""
        known = [link.info.deterministic for link in self.links if link.info is not None]
        return bool(known) and all(known)

    @property
    def erratic(self) -> bool:
        """Whether an engine that is known here would not draw the same tokens again."""
        return any(link.info is not None and not link.info.deterministic for link in self.links)


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
    ) -> None:
        self._follower = follower
        self._settings = settings
        self._rng = rng
        self._gateway = gateway
        self._report = report
        self._suspicions: dict[str, str | None] = {}
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
        )
        self._pools: dict[str, _Pool] = {}
        self._links: dict[str, ReplicaLink] = {}
        self._pool_of: dict[StreamRun, _Pool] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.migrations: Counter[tuple[str, str]] = Counter()
        self.rejections: Counter[tuple[str, str]] = Counter()
        self.resumptions: Counter[tuple[str, str]] = Counter()

    async def run(self) -> None:
        """Keep links to all running replicas until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._sync(self._follower.state, group)
                await self._follower.change()

    # --- Backend ----------------------------------------------------------------------------------------

    def models(self) -> Sequence[ModelInfo]:
        """As `Backend.models`."""
        state = self._follower.state
        return [
            self._model(state, application, deployment.config)
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
    ) -> StreamSession:
        """As `Backend.open`."""
        pool = self._pools.get(model)
        if pool is None:
            raise UnknownModel(model)
        if self.draining:
            raise Overloaded("This gateway is shutting down; send the request to another.", RETRY_AFTER_S)
        free = pool.config.max_queued_requests - len(pool.queue)
        if len(choices) > free and len(choices) > free + sum(link.places for link in pool.links):
            self.rejections[model, "queue_full"] += 1
            raise Overloaded(
                f"{len(pool.queue)} requests wait for a replica of `{model}` already; at most "
                f"{pool.config.max_queued_requests} may.",
                RETRY_AFTER_S,
            )
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
        )

    def health(self) -> Health:
        """As `Backend.health`."""
        reasons = ["it is shutting down"] if self.draining else []
        if self._follower.unreadable is not None:
            reasons.append(str(self._follower.unreadable))
        details: dict[str, Any] = {"models": {}, "log_sequence": self._follower.state.sequence}
        for name, pool in self._pools.items():
            ready = sum(link.ready for link in pool.links)
            details["models"][name] = {
                "replicas_ready": ready,
                "replicas_wanted": pool.config.num_replicas,
                "queued": len(pool.queue),
                "in_flight": sum(link.in_flight for link in pool.links),
                "deterministic": pool.deterministic,
            }
            if not ready and pool.config.num_replicas:
                reasons.append(f"no replica of {name} is ready")
        if not self._pools:
            reasons.append("no application is deployed")
        return Health(not reasons, reasons, details)

    def pools(self) -> list[PoolReport]:
        """How each deployment stands at this gateway, for metrics."""
        return [
            PoolReport(
                name,
                sum(link.ready for link in pool.links),
                pool.config.num_replicas,
                len(pool.queue),
                {link.replica: link.in_flight for link in pool.links},
                {link.replica: link.kv_used for link in pool.links},
            )
            for name, pool in self._pools.items()
        ]

    async def idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def fail_all(self, cause: Exception) -> None:
        """End all open streams; their requests get what they have been given so far, and `cause`."""
        for run in list(self._pool_of):
            if not run.stream.ended:
                run.fail(cause)

    # --- links ------------------------------------------------------------------------------------------

    def _sync(self, state: ClusterState, group: asyncio.TaskGroup) -> None:
        """Make pools and links agree with the log."""
        goals = {
            deployment.config.name: deployment.config
            for application in state.applications.values()
            for deployment in application.deployments.values()
        }
        for name in [name for name in self._pools if name not in goals]:
            self._close_pool(name)
        for name, config in goals.items():
            pool = self._pools.setdefault(name, _Pool(config))
            if pool.config != config:
                self._reconfigure(pool, config)
        for replica in state.replicas.values():
            if replica.status is ReplicaStatus.RUNNING and replica.id not in self._links:
                self._open_link(replica, group)
        for replica_id, link in list(self._links.items()):
            known = state.replicas.get(replica_id)
            if known is None or known.status is not ReplicaStatus.RUNNING:
                self._retire(link)

    def _reconfigure(self, pool: _Pool, config: DeploymentConfig) -> None:
        pool.config = config
        for link in pool.links:
            link.in_flight_max = config.max_ongoing_requests
        self._pump(pool)

    def _open_link(self, replica: ReplicaState, group: asyncio.TaskGroup) -> None:
        pool = self._pools.get(replica.deployment)
        if pool is None:
            return
        link = ReplicaLink(
            replica.id,
            replica.address,
            pool.config.max_ongoing_requests,
            self._link_settings,
            self._rng,
            on_capacity=lambda link: self._pump(pool, link),
            on_orphans=lambda runs, cause: self._orphaned(replica.id, runs, cause),
            on_suspicion=self._suspected,
            on_trust=self._trusted,
            engine_stall_timeout_s=pool.config.engine_stall_timeout_s,
        )
        self._links[replica.id] = link
        pool.links.append(link)
        group.create_task(link.run(), name=f"link to {replica.id}")

    def _retire(self, link: ReplicaLink) -> None:
        self._forget(link)
        for pool in self._pools.values():
            if link in pool.links:
                pool.links.remove(link)
                pool.stop_searching(link)
        link.retire()

    def _forget(self, link: ReplicaLink) -> None:
        """A replica that is gone is not linked to any more, nor suspected: nobody will hear of it again."""
        self._links.pop(link.replica, None)
        self._suspicions.pop(link.replica, None)

    def _close_pool(self, name: str) -> None:
        pool = self._pools.pop(name)
        pool.closed = True
        for link in list(pool.links):
            self._forget(link)
            link.retire()
        while pool.queue:
            pool.queue[0].fail(UnknownModel(name))

    # --- streams ----------------------------------------------------------------------------------------

    def _submit(self, run: StreamRun, pool: _Pool) -> None:
        self._pool_of[run] = pool
        self._idle.clear()
        if run.resumed_at is not None:
            self._look_for(run, run.resumed_at if run.stream.delivered else 0, pool)
        else:
            self._place(run, pool)

    def _place(self, run: StreamRun, pool: _Pool) -> None:
        if pool.queue or not self._begin(run, pool):
            self._enqueue(run, pool, first=False)

    def _look_for(self, run: StreamRun, base_max: int, pool: _Pool) -> None:
        """Attach to the replica that still holds the stream; where there is none, have it drawn again."""

        def done(run: StreamRun, found: tuple[int, ReplicaLink] | None) -> None:
            run.search = None
            if pool.closed:
                run.fail(UnknownModel(pool.config.name))
            elif found is not None:
                self.resumptions[pool.config.name, "attached"] += 1
                ordinal, link = found
                link.attach(run, ordinal)
            else:
                self.resumptions[pool.config.name, "refused" if pool.erratic else "redrawn"] += 1
                self._place(run, pool)

        run.search = Search(run, base_max, pool.searches, done)
        run.search.begin(pool.links)

    def _begin(self, run: StreamRun, pool: _Pool) -> bool:
        if (run.resumed_at or 0) > len(run.stream.accepted) and pool.erratic:
            run.fail(_cannot_resume(pool.config.name))
            return True
        links = pool.links
        if run.stream.suspect:
            links = [link for link in links if link.free_for_suspects]
        link = None
        if run.avoid is not None:
            link = choose([link for link in links if link is not run.avoid], self._rng.randrange)
        link = link or choose(links, self._rng.randrange)
        if link is None:
            return False
        link.begin(run)
        return True

    def _enqueue(self, run: StreamRun, pool: _Pool, *, first: bool) -> None:
        loop = asyncio.get_running_loop()
        if run.waiting_since_s is None:
            run.waiting_since_s = loop.time()
        run.waiting = loop.call_at(run.waiting_since_s + self._settings.replica_wait_s, self._give_up, run, pool)
        run.queue = pool.queue
        if first:
            pool.queue.appendleft(run)
        else:
            pool.queue.append(run)

    def _pump(self, pool: _Pool, link: ReplicaLink | None = None) -> None:
        """Let queued streams begin while there is room. `link` is where there is more."""
        if pool.searches and link is not None:
            for search in list(pool.searches):
                search.reached(link)
        while pool.queue:
            run = pool.queue[0]
            if not self._begin(run, pool):
                return
            run.leave_queue()

    def _suspected(self, link: ReplicaLink, reason: Suspicion, silence_s: float, streams: int) -> None:
        fact = ReplicaSuspected(self._gateway, link.replica, round(silence_s, 3), streams, reason)
        told = self._report(fact, None)
        if not link.retired:
            self._suspicions[link.replica] = told
        for pool in self._pools.values():
            if link in pool.links:
                pool.stop_searching(link)

    def _trusted(self, link: ReplicaLink, suspected_s: float) -> None:
        cause = self._suspicions.pop(link.replica, None)
        if link.retired:
            return
        self._report(ReplicaTrusted(self._gateway, link.replica, round(suspected_s, 3)), cause)

    def _orphaned(self, replica: str, runs: list[StreamRun], cause: StreamLost) -> None:
        begun = sum(run.stream.status is StreamStatus.RUNNING for run in runs)
        if begun and replica not in self._suspicions:
            self._report(StreamsMigrated(self._gateway, replica, begun, str(cause)), None)
        self._migrate(runs, cause)

    def _migrate(self, runs: list[StreamRun], cause: StreamLost) -> None:
        """These lost their replica: on to another."""
        for run in runs:
            run.link = None
            had_begun = run.stream.status is StreamStatus.RUNNING
            run.stream.lost(cause)
            pool = self._pool_of.get(run)
            if run.stream.status is not StreamStatus.WAITING or pool is None or pool.closed:
                run.fail(cause)
                continue
            if had_begun and self._too_long(run):
                run.fail(StreamLost(f"{cause}; the stream is longer than migration_max_seq_len allows"))
                continue
            if had_begun:
                self.migrations[pool.config.name, cause.kind] += 1
            if not self._begin(run, pool):
                self._enqueue(run, pool, first=True)

    def _too_long(self, run: StreamRun) -> bool:
        limit = self._settings.migration_max_seq_len
        return 0 < limit < (run.stream.prompt_tokens or 0) + len(run.stream.accepted)

    def _give_up(self, run: StreamRun, pool: _Pool) -> None:
        self.rejections[pool.config.name, "no_replica"] += 1
        waited_s = self._settings.replica_wait_s
        message = f"No replica of `{pool.config.name}` could take the request within {waited_s:g} seconds."
        run.fail(NoReplica(message, RETRY_AFTER_S))

    def _withdraw(self, run: StreamRun) -> None:
        """The client is done with it, or gone."""
        self._pool_of.pop(run, None)
        if not self._pool_of:
            self._idle.set()
        if run.link is not None:
            link, run.link = run.link, None
            link.end(run)
        run.leave_queue()

    def _model(self, state: ClusterState, application: ApplicationState, config: DeploymentConfig) -> ModelInfo:
        replicas = list(state.replicas_of(application.name, config.name))
        contexts = [replica.info.context_tokens_max for replica in replicas if replica.info is not None]
        running = sum(replica.status is ReplicaStatus.RUNNING for replica in replicas)
        return ModelInfo(
            config.name,
            application.name,
            application.deployed_at,
            min(contexts, default=0),
            running,
            config.num_replicas,
        )


def _cannot_resume(model: str) -> RequestRefused:
    message = f"No replica holds the stream any more, and `{model}`'s engines would not draw the same tokens again."
    return RequestRefused(message, code="cannot_resume", param="Last-Event-ID")
