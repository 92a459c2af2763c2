"""From started processes to a cluster that serves: asks for the application, and waits until it can be used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx

from holdfast.actors.clock import SystemClock
from holdfast.actors.follower import Follower
from holdfast.actors.operator import Operator
from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    MemberStatus,
    NodeState,
    ReplicaStatus,
)
from holdfast.core.config import ApplicationConfig
from holdfast.core.errors import LogFull, LogUnavailable, WorldFailure
from holdfast.core.events import ReplicaExited
from holdfast.core.reconcile import START_FAILURES_FATAL
from holdfast.gateway.goal import APPLICATION, application_for
from holdfast.gateway.local_cluster import LocalCluster, Progress
from holdfast.gateway.log_room import ADVICE, log_room
from holdfast.gateway.processes import identify, open_log
from holdfast.store.jetstream import JetStreamLog

LOOK_S = 0.1
"""How often a gateway is asked whether it serves, in seconds."""

GATEWAY_TIMEOUT_S = 1.0

ROOM_LOOK_S = 1.0
"""How often is looked whether the log has room, in seconds."""

JOIN_TIMEOUT_S = 30.0
"""Replicas are asked for once all nodes have joined, or after this long without one of them, in seconds."""

OPERATOR = "up"


class NotReady(WorldFailure):
    """The cluster did not come up; the text says what is missing."""


async def bring_up(cluster: LocalCluster, group: asyncio.TaskGroup, progress: Progress) -> list[str]:
    """Start the members, deploy, and wait until every gateway serves; the models' names.

    Raises `NotReady`, the store's errors, and `Misuse` before it starts anything for what can't be deployed here.
    """
    async with open_log(cluster.settings) as log:
        arrival = _Arrival(cluster, group, progress, log)
        wait = asyncio.create_task(arrival.wait())
        others = [asyncio.create_task(arrival.follower.run()), asyncio.create_task(arrival.watch_room())]
        try:
            await asyncio.wait((wait, *others), return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                if task.done():
                    task.result()
            return await wait
        finally:
            for one in (wait, *others):
                one.cancel()
            await asyncio.gather(wait, *others, return_exceptions=True)


class _Arrival:
    """One coming up, and how far it is."""

    def __init__(self, cluster: LocalCluster, group: asyncio.TaskGroup, progress: Progress, log: JetStreamLog) -> None:
        self._cluster = cluster
        self._group = group
        self._progress = progress
        self._timeout_s = cluster.plan.start_timeout_s
        self.follower = Follower(log)
        identity = identify(cluster.settings, "operator", OPERATOR)
        self._operator = Operator(log, SystemClock(), identity, self.follower)
        self._log = log
        self._missing = "the log"
        self._began_at = datetime.now(UTC)

    async def wait(self) -> list[str]:
        try:
            async with asyncio.timeout(self._timeout_s):
                application = await self._wanted()
                await self._cluster.start_members(self._group)
                await self._nodes()
                await self._deploy(application)
                await self._leader()
                await self._replicas(application)
                await self._gateways(application)
        except TimeoutError:
            raise NotReady(f"not ready after {self._timeout_s:g} s: {self._missing}; {self._logs()}") from None
        return [deployment.name for deployment in application.deployments]

    async def watch_room(self) -> None:
        """Raises `LogFull` once the log is: what the cluster waits for then can't be written."""
        warned = False
        while True:
            with contextlib.suppress(LogUnavailable):
                status = await self._log.status()
                room = log_room(status.bytes, status.bytes_max)
                if room.result == "fail":
                    break
                if room.result == "warn" and not warned:
                    self._progress.note(f"{room.found}: {ADVICE}")
                    warned = True
            await asyncio.sleep(ROOM_LOOK_S)
        raise LogFull(f"{room.found}: {ADVICE}")

    async def _nodes(self) -> None:
        """All nodes have joined: what is placed before that crowds on those that were first."""
        wanted = {node.name for node in self._cluster.nodes}
        lacking = wanted
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                while lacking := wanted - {node.id for node in self._alive()}:
                    self._wait_for(f"nodes: {len(wanted) - len(lacking)} of {len(wanted)} have joined")
                    await self.follower.change()
                return
        self._progress.note(f"{', '.join(sorted(lacking))} did not join within {JOIN_TIMEOUT_S:g} s: going on without")

    async def _wanted(self) -> ApplicationConfig:
        """What the options say, on top of what the log says. Raises `Misuse` when that can't run here."""
        self._wait_for("the log to be read")
        await self.follower.catch_up()
        return application_for(self._cluster.plan.wish, _goal(self.follower.state))

    async def _deploy(self, application: ApplicationConfig) -> None:
        """Ask for it, unless the cluster has it already."""
        changed = await self._operator.deploy(application)
        self.follower.observe(lambda record, _state: self._tell(record.event.payload))
        wanted = ", ".join(
            f"{item.name} ({item.engine.kind}, {item.num_replicas}x)" for item in application.deployments
        )
        self._progress.done(f"application {application.name}: {wanted}{'' if changed else ', as the log has it'}")

    async def _leader(self) -> None:
        self._wait_for("a leader")
        state = await self.follower.until(lambda state: state.leader_incarnation in list(self._incarnations()))
        ours = state.leader in {node.name for node in self._cluster.nodes}
        where = "" if ours else ", as the log has it: no node of this `up`"
        self._progress.done(f"leader: {state.leader}, epoch {state.epoch}{where}")

    async def _replicas(self, application: ApplicationConfig) -> None:
        wanted = sum(deployment.num_replicas for deployment in application.deployments)
        models = {deployment.name for deployment in application.deployments}
        while (ready := self._running(models)) < wanted or APPLICATION in self.follower.state.requests:
            self._wait_for(f"replicas: {ready} of {wanted} are ready{self._complaint()}")
            await self.follower.change()
        self._progress.done(f"replicas: {wanted} of {wanted} are ready")

    async def _gateways(self, application: ApplicationConfig) -> None:
        """Every gateway has reached every replica: the log may still hold replicas of nodes that died before it."""
        wanted = {deployment.name: deployment.num_replicas for deployment in application.deployments}
        async with httpx.AsyncClient(timeout=GATEWAY_TIMEOUT_S, trust_env=False) as client:
            for gateway in self._cluster.gateways:
                while lacking := await _lacking(client, gateway.url, wanted):
                    self._wait_for(f"{gateway.name}: {lacking}{self._complaint()}")
                    await asyncio.sleep(LOOK_S)
                self._progress.done(f"{gateway.name}: {gateway.url}")

    # --- what the log says ------------------------------------------------------------------------------

    def _alive(self) -> Iterator[NodeState]:
        """The nodes that are there in this run: an earlier run's stand in the log as well."""
        ours = {node.name: node.pid for node in self._cluster.nodes}
        for node in self.follower.state.nodes.values():
            if node.status is MemberStatus.ALIVE and ours.get(node.id, node.pid) == node.pid:
                yield node

    def _incarnations(self) -> Iterator[str]:
        return (node.incarnation for node in self._alive())

    def _running(self, models: set[str]) -> int:
        here = set(self._incarnations())
        return sum(
            replica.status is ReplicaStatus.RUNNING
            and replica.application == APPLICATION
            and replica.deployment in models
            and replica.node_incarnation in here
            for replica in self.follower.state.replicas.values()
        )

    def _complaint(self) -> str:
        """What the last failed start said. Raises `NotReady` when starting is futile."""
        for deployment in _deployments(self.follower.state.applications.get(APPLICATION)):
            if deployment.failed_at is None or deployment.failed_at < self._began_at:
                continue  # an earlier run's: what was wrong may be mended
            if deployment.start_failures >= START_FAILURES_FATAL:
                raise NotReady(
                    f"replicas of {deployment.config.name} failed to start {deployment.start_failures} times: "
                    f"{deployment.message or 'they gave no reason'}; {self._logs()}"
                )
            if deployment.start_failures:
                return f"; the last start failed: {deployment.message}"
        return ""

    def _tell(self, payload: object) -> None:
        if isinstance(payload, ReplicaExited) and not payload.expected:
            why = payload.message or payload.signal or f"exit code {payload.exit_code}"
            self._progress.note(f"replica {payload.replica} ended: {why}")

    def _wait_for(self, what: str) -> None:
        self._missing = f"waiting for {what}"
        self._progress.waiting(what)

    def _logs(self) -> str:
        return f"the logs are in {self._cluster.directory.logs}"


def _goal(state: ClusterState) -> ApplicationConfig | None:
    """The application as it was last asked for."""
    request = state.requests.get(APPLICATION)
    if request is not None:
        return request.application if isinstance(request.application, ApplicationConfig) else None
    application = state.applications.get(APPLICATION)
    if application is None:
        return None
    return ApplicationConfig(APPLICATION, [item.config for item in application.deployments.values()])


def _deployments(application: ApplicationState | None) -> list[DeploymentState]:
    return list(application.deployments.values()) if application else []


async def _lacking(client: httpx.AsyncClient, url: str, wanted: dict[str, int]) -> str:
    """What a gateway lacks to serve these models with all their replicas; empty when it lacks nothing."""
    try:
        answer = await client.get(f"{url}/health")
        models = answer.json()["details"]["models"]
        ready = {name: int(models[name]["replicas_ready"]) for name in wanted}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return f"no answer on {url} yet"
    short = [f"{ready[name]} of {wanted[name]} replicas of {name}" for name in wanted if ready[name] < wanted[name]]
    return f"it reaches {', '.join(short)}" if short else ""
