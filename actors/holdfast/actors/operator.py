"""What operators ask of a cluster, as facts in the log. Tools use it; it keeps nothing running."""

from __future__ import annotations

from holdfast.actors.follower import Follower
from holdfast.actors.identity import Identity
from holdfast.actors.writer import EventAppender
from holdfast.core.cluster import ClusterState, Drain, PendingDrain, ReplicaStatus
from holdfast.core.config import ApplicationConfig, DrainMode
from holdfast.core.drains import drain_key
from holdfast.core.errors import InvalidConfig, WrongLastSequence
from holdfast.core.events import (
    DeleteRequested,
    DeployRequested,
    DrainRequested,
    DrainTarget,
    Fact,
    UndrainRequested,
)
from holdfast.core.ports import Clock, Log

APPEND_TRIES_MAX = 10
"""Two operators of the same name may append at once; the later one reads and tries again, this often at most."""


class Operator:
    """Appends an operator's wishes after everything that the follower has read."""

    def __init__(self, log: Log, clock: Clock, identity: Identity, follower: Follower) -> None:
        self._follower = follower
        self._subject = identity.fact_subject
        self._appender = EventAppender(log, clock, identity, self._subject, waits_when_full=False)

    async def deploy(self, application: ApplicationConfig) -> bool:
        """Ask for the application, unless it is what the cluster has already; whether it had to be asked for.

        Raises `InvalidConfig` when another application serves a model of the same name; `LogFull`, `LogUnavailable`.
        """
        await self._follower.catch_up()
        _check_names(self._follower.state, application)
        if is_deployed(self._follower.state, application):
            return False
        await self._append(DeployRequested(application))
        return True

    async def delete(self, application: str) -> bool:
        """Ask for the application's end, unless there is none; whether it had to be asked for.

        Raises `LogFull`, `LogUnavailable`.
        """
        await self._follower.catch_up()
        if not _is_wanted(self._follower.state, application):
            return False
        await self._append(DeleteRequested(application))
        return True

    async def drain(
        self, kind: DrainTarget, name: str, mode: DrainMode | None = None, deadline_s: float | None = None
    ) -> bool:
        """Ask for a drain, as in `DrainRequested`, unless it is what there is; whether it had to be asked for.

        Raises `InvalidConfig` when there is nobody of that kind and name; `LogFull`, `LogUnavailable`.
        """
        await self._follower.catch_up()
        now = _drain_of(self._follower.state, kind, name)
        if now is not None and (now.mode, now.deadline_s) == (mode, deadline_s):
            return False
        await self._append(DrainRequested(kind, name, mode, deadline_s))
        return True

    async def drainable(self) -> dict[DrainTarget, list[str]]:
        """As `drainable`, by the log as it is now. Raises `LogUnavailable`."""
        await self._follower.catch_up()
        return drainable(self._follower.state)

    async def undrain(self, kind: DrainTarget, name: str) -> bool:
        """Ask for the end of a drain, if there is one; whether it had to be asked for. Raises as `drain`."""
        await self._follower.catch_up()
        if _drain_of(self._follower.state, kind, name) is None:
            return False
        await self._append(UndrainRequested(kind, name))
        return True

    async def _append(self, fact: Fact) -> None:
        event = self._appender.event(fact, None)
        for attempt in range(APPEND_TRIES_MAX):
            await self._follower.catch_up()
            try:
                await self._appender.append(event, self._follower.state.head(self._subject))
                return
            except WrongLastSequence:
                if attempt == APPEND_TRIES_MAX - 1:
                    raise


def is_deployed(state: ClusterState, application: ApplicationConfig) -> bool:
    """Whether the cluster's goal is this configuration, with nothing else asked for."""
    deployed = state.applications.get(application.name)
    if deployed is None or application.name in state.requests:
        return False
    goal = [deployment.config for deployment in deployed.deployments.values()]
    return goal == list(application.deployments)


def drainable(state: ClusterState) -> dict[DrainTarget, list[str]]:
    """Who can be drained, and undrained, by kind: the names of all nodes and gateways, and of replicas that live."""
    replicas = [replica.id for replica in state.replicas.values() if replica.status is not ReplicaStatus.EXITED]
    return {"node": list(state.nodes), "replica": replicas, "gateway": list(state.gateways)}


def _drain_of(state: ClusterState, kind: DrainTarget, name: str) -> Drain | PendingDrain | None:
    """How it is drained, or will be once what was asked for is decided."""
    if name not in drainable(state)[kind]:
        raise InvalidConfig(f"there is no {kind} {name!r}")
    pending = state.drain_requests.get(drain_key(kind, name))
    if pending is not None:
        return pending if pending.wanted else None
    if kind == "node":
        return state.nodes[name].drain
    return state.gateways[name].drain if kind == "gateway" else state.replicas[name].drain


def _is_wanted(state: ClusterState, application: str) -> bool:
    """Whether the application is there, or will be once what was asked for is decided."""
    request = state.requests.get(application)
    return application in state.applications if request is None else not isinstance(request.application, str)


def _check_names(state: ClusterState, application: ApplicationConfig) -> None:
    """Clients ask for a model by its deployment's name, so that one is served by one application only."""
    wanted = {deployment.name for deployment in application.deployments}
    others = {name: set(other.deployments) for name, other in state.applications.items()}
    for name, request in state.requests.items():
        if isinstance(request.application, ApplicationConfig):
            asked = {deployment.name for deployment in request.application.deployments}
            others[name] = others.get(name, set()) | asked
    for name, deployments in others.items():
        if name != application.name and (taken := wanted & deployments):
            raise InvalidConfig(
                f"application {application.name}: {', '.join(sorted(taken))} is served by application {name} already: "
                f"choose another name for the deployment, or delete application {name} first"
            )
