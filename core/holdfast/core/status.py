"""How a cluster stands, in the words that users of Ray Serve know: derived from the state, and nothing but.

What the leases say is optional: without them the picture is what the log has, which may be behind for as long as
a lease lives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

import msgspec

from holdfast.core.breakdowns import BREAKDOWNS_FATAL
from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    GatewayState,
    MemberStatus,
    NodeState,
    ReplicaState,
    ReplicaStatus,
)
from holdfast.core.config import ApplicationConfig
from holdfast.core.drains import Leaving, leaving, nodes_left
from holdfast.core.placement import occupancy
from holdfast.core.reconcile import START_FAILURES_FATAL
from holdfast.core.starts import resting, rests_until


class ApplicationStatus(StrEnum):
    """NOT_STARTED: asked for, not decided yet. DEPLOY_FAILED: its replicas don't start and never did. UNHEALTHY: they
    did, and don't any more, or break down. DELETING: on its way out."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """UPDATING: replicas are being started, replaced or stopped. UNHEALTHY: they don't start, or break down."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class NodeStatus(StrEnum):
    """As `MemberStatus`. DRAINING: by an operator, and replicas are still there; DRAINED: none is."""

    ALIVE = "ALIVE"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    STOPPING = "STOPPING"
    LEFT = "LEFT"
    LOST = "LOST"


class GatewayStatus(StrEnum):
    """STARTING: it has not joined yet, or not served since. UNHEALTHY: it can't serve all that should be served, or
    its lease is missing. DRAINING: it takes nothing new, and lets go of what it has; DRAINED: it has done so, by an
    operator's wish, or ended in order. By the log and the leases alone one that takes part is HEALTHY.
    """

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class ControllerStatus(StrEnum):
    """ELECTING: nobody holds the leader key, or its holder is not in the log yet."""

    LEADING = "LEADING"
    ELECTING = "ELECTING"


class LeaderHeld(msgspec.Struct, frozen=True):
    """Who holds the leader key, since which revision (the epoch)."""

    node: str
    incarnation: str
    pid: int
    epoch: int


class GatewayHeld(msgspec.Struct, frozen=True):
    """A gateway's process, as its lease tells of it."""

    name: str
    incarnation: str
    pid: int
    host: str


class LeaseView(msgspec.Struct, frozen=True):
    """What the leases say: the incarnations that hold one, who leads, and which gateways' processes there are."""

    incarnations: frozenset[str]
    leader: LeaderHeld | None
    gateways: tuple[GatewayHeld, ...] = ()


class ControllerReport(msgspec.Struct, frozen=True):
    """The leader that the log knows."""

    node: str | None
    epoch: int
    pid: int | None
    status: ControllerStatus
    message: str = ""


class NodeReport(msgspec.Struct, frozen=True):
    """A node: its status in the log, and what the leases add to that. `system_port` is None where it has none."""

    id: str
    pid: int
    status: NodeStatus
    host: str
    slots: int
    replicas: int
    version: str
    message: str = ""
    system_port: int | None = None


class GatewayReport(msgspec.Struct, frozen=True):
    """A gateway."""

    id: str
    pid: int
    status: GatewayStatus
    url: str
    host: str
    version: str
    message: str = ""


class ReplicaReport(msgspec.Struct, frozen=True):
    """A replica. `pid`, `address` and `system_port` are None while it has none."""

    id: str
    application: str
    deployment: str
    node: str
    pid: int | None
    state: ReplicaStatus
    address: str | None
    message: str = ""
    system_port: int | None = None


class DeploymentReport(msgspec.Struct, frozen=True):
    """A deployment. `deployment_timestamp` is when its goal was set, in seconds since 1970."""

    status: DeploymentStatus
    message: str
    deployment_timestamp: float
    engine: str
    replicas_wanted: int
    replicas_running: int


class ApplicationReport(msgspec.Struct, frozen=True):
    """An application with its deployments by name."""

    status: ApplicationStatus
    message: str
    deployment_timestamp: float
    deployments: dict[str, DeploymentReport]


class ClusterReport(msgspec.Struct, frozen=True):
    """The whole cluster."""

    controller: ControllerReport
    nodes: list[NodeReport]
    gateways: list[GatewayReport]
    replicas: list[ReplicaReport]
    applications: dict[str, ApplicationReport]


_V = TypeVar("_V")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sorting key by which node-2 comes before node-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _in_order(items: Mapping[str, _V]) -> list[_V]:
    return [items[name] for name in sorted(items, key=natural_order)]


def report(state: ClusterState, leases: LeaseView | None, now: datetime | None = None) -> ClusterReport:
    """How the cluster stands by the log, and by the leases where they are known.

    Which nodes rest because starts failed there is told where it is known what time it is.
    """
    used = occupancy(state)
    rest = _resting(state, now) if now is not None else {}
    return ClusterReport(
        controller=_controller(state, leases),
        nodes=[_node(node, used[node.id], leases, rest.get(node.id, "")) for node in _in_order(state.nodes)],
        gateways=_gateways(state, leases),
        replicas=_replicas(state),
        applications=_applications(state),
    )


def _replicas(state: ClusterState) -> list[ReplicaReport]:
    nodes = nodes_left(state)
    return [
        ReplicaReport(
            replica.id,
            replica.application,
            replica.deployment,
            replica.node,
            replica.pid or None,
            replica.status,
            replica.address or None,
            replica.message or _why_it_leaves(replica, nodes),
            replica.system_port or None,
        )
        for replica in _in_order(state.replicas)
    ]


def _why_it_leaves(replica: ReplicaState, nodes: Mapping[str, Leaving]) -> str:
    why = leaving(replica, nodes) if replica.live else None
    return f"{why.reason}: it goes once it is replaced" if why is not None else ""


# --- members --------------------------------------------------------------------------------------------


def _controller(state: ClusterState, leases: LeaseView | None) -> ControllerReport:
    leader = state.nodes.get(state.leader or "")
    alive = leader is not None and leader.incarnation == state.leader_incarnation and _taking_part(leader)
    pid = leader.pid if leader is not None and alive else None
    status, message = ControllerStatus.LEADING, ""
    if state.leader is None:
        status, message = ControllerStatus.ELECTING, "no leader was elected yet"
    elif not alive:
        status, message = ControllerStatus.ELECTING, f"{state.leader} is gone"
    elif leases is not None and leases.leader is None:
        status, message = ControllerStatus.ELECTING, "nobody holds the leader key"
    elif leases is not None and leases.leader is not None and leases.leader.epoch != state.epoch:
        holder = leases.leader
        status, message = ControllerStatus.ELECTING, f"{holder.node} is about to lead with epoch {holder.epoch}"
    return ControllerReport(state.leader, state.epoch, pid, status, message)


def _taking_part(member: NodeState | GatewayState) -> bool:
    return member.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)


def _lease_missing(member: NodeState | GatewayState, leases: LeaseView | None) -> bool:
    return leases is not None and _taking_part(member) and member.incarnation not in leases.incarnations


def _resting(state: ClusterState, now: datetime) -> dict[str, str]:
    """Which nodes rest, and why: what failed there last."""
    last: dict[str, tuple[datetime, str]] = {}
    for application in state.applications.values():
        for name, deployment in application.deployments.items():
            for node, row in resting(state, deployment, now):
                until = rests_until(row, now) or now
                times = "a start" if row.failures == 1 else f"{row.failures} starts in a row"
                told = (
                    f"{times} of {application.name}.{name} failed here: {row.message or 'no reason given'}; "
                    f"other nodes are preferred until {until.astimezone(UTC):%H:%M:%S} UTC"
                )
                last[node] = max(last.get(node, (row.failed_at, told)), (row.failed_at, told))
    return {node: told for node, (_at, told) in last.items()}


def _node(node: NodeState, used: int, leases: LeaseView | None, message: str) -> NodeReport:
    """`message` is what there is to say of one that lives and is in use."""
    status = NodeStatus(node.status)
    if status is not NodeStatus.ALIVE:
        message = ""
    if node.drain is not None and node.status is MemberStatus.ALIVE:
        status = NodeStatus.DRAINING if used else NodeStatus.DRAINED
        message = (
            f"{used} replica{'s' if used > 1 else ''} to go" if used else "takes no replicas until it is undrained"
        )
    if _lease_missing(node, leases):
        message = "its lease is missing"
    port = node.system_port or None
    return NodeReport(node.id, node.pid, status, node.host, node.slots, used, node.version, message, port)


_GATEWAY_STATUS = {
    MemberStatus.ALIVE: GatewayStatus.HEALTHY,
    MemberStatus.STOPPING: GatewayStatus.DRAINING,
    MemberStatus.LEFT: GatewayStatus.DRAINED,
    MemberStatus.LOST: GatewayStatus.UNHEALTHY,
}


def _gateways(state: ClusterState, leases: LeaseView | None) -> list[GatewayReport]:
    """Those that joined, and those whose lease says that they are about to."""
    found = {name: _gateway(gateway, leases) for name, gateway in state.gateways.items()}
    for held in leases.gateways if leases is not None else ():
        known = state.gateways.get(held.name)
        if known is None or (known.incarnation != held.incarnation and not _taking_part(known)):
            message = "it has not joined yet"
            url, version = (known.url, known.version) if known is not None else ("", "")
            found[held.name] = GatewayReport(
                held.name, held.pid, GatewayStatus.STARTING, url, held.host, version, message
            )
    return _in_order(found)


def _gateway(gateway: GatewayState, leases: LeaseView | None) -> GatewayReport:
    status, message = _GATEWAY_STATUS[gateway.status], ""
    if gateway.drain is not None and gateway.status is MemberStatus.ALIVE:
        status = GatewayStatus.DRAINED if gateway.drained else GatewayStatus.DRAINING
        message = "takes no requests until it is undrained"
    if gateway.status is MemberStatus.LOST:
        message = "its lease ended"
    elif _lease_missing(gateway, leases):
        status, message = GatewayStatus.UNHEALTHY, "its lease is missing"
    return GatewayReport(gateway.id, gateway.pid, status, gateway.url, gateway.host, gateway.version, message)


# --- applications ---------------------------------------------------------------------------------------


def _applications(state: ClusterState) -> dict[str, ApplicationReport]:
    reports = {name: _application(state, application) for name, application in state.applications.items()}
    for name, request in state.requests.items():
        if name in reports and not isinstance(request.application, ApplicationConfig):
            reports[name] = msgspec.structs.replace(reports[name], status=ApplicationStatus.DELETING)
        elif name not in reports and isinstance(request.application, ApplicationConfig):
            reports[name] = ApplicationReport(
                ApplicationStatus.NOT_STARTED, "asked for; no leader has decided on it yet", 0.0, {}
            )
    for replica in state.replicas.values():
        if replica.application not in reports and replica.status is not ReplicaStatus.EXITED:
            reports[replica.application] = ApplicationReport(
                ApplicationStatus.DELETING, "its replicas are being stopped", 0.0, {}
            )
    return reports


def _application(state: ClusterState, application: ApplicationState) -> ApplicationReport:
    deployments = {
        name: _deployment(state, application, deployment) for name, deployment in application.deployments.items()
    }
    status, message = _application_status(application, deployments)
    return ApplicationReport(status, message, application.deployed_at.timestamp(), deployments)


def _application_status(
    application: ApplicationState, deployments: dict[str, DeploymentReport]
) -> tuple[ApplicationStatus, str]:
    """The worst of its deployments. One whose replicas never ran has failed; one that lacks some is unhealthy."""
    for name, deployment in deployments.items():
        if deployment.status is DeploymentStatus.UNHEALTHY:
            failed = deployment.replicas_running == 0 and not application.deployments[name].ran
            status = ApplicationStatus.DEPLOY_FAILED if failed else ApplicationStatus.UNHEALTHY
            return status, f"{name}: {deployment.message}"
    for name, deployment in deployments.items():
        if deployment.status is DeploymentStatus.UPDATING:
            return ApplicationStatus.DEPLOYING, f"{name}: {deployment.message}"
    return ApplicationStatus.RUNNING, ""


def _deployment(state: ClusterState, application: ApplicationState, deployment: DeploymentState) -> DeploymentReport:
    replicas = list(state.replicas_of(application.name, deployment.config.name))
    wanted = deployment.config.num_replicas
    running = sum(replica.status is ReplicaStatus.RUNNING for replica in replicas)
    nodes = nodes_left(state)
    settled = all(
        replica.status is ReplicaStatus.RUNNING
        and replica.revision == deployment.revision
        and leaving(replica, nodes) is None
        for replica in replicas
    )
    status, message = DeploymentStatus.UPDATING, f"{running} of {wanted} replicas run"
    trouble = _trouble(deployment, replicas)
    if trouble:
        status, message = DeploymentStatus.UNHEALTHY, trouble
    elif settled and running == wanted:
        status, message = DeploymentStatus.HEALTHY, ""
    elif not _room(state):
        message += _waits_for_room(state, deployment, replicas)
    return DeploymentReport(
        status, message, application.deployed_at.timestamp(), deployment.config.engine.kind, wanted, running
    )


def _waits_for_room(state: ClusterState, deployment: DeploymentState, replicas: list[ReplicaState]) -> str:
    """What is not done because no node has a free slot, for people; empty where nothing waits for one."""
    live = [replica for replica in replicas if replica.live]
    nodes = nodes_left(state)
    going = [replica for replica in live if leaving(replica, nodes) is not None]
    staying = [replica for replica in live if replica not in going]
    current = [replica for replica in staying if replica.revision == deployment.revision]
    if len(current) >= deployment.config.num_replicas:
        return ""
    if len(current) < len(staying):
        return f"; {len(staying) - len(current)} of an earlier revision wait for a free slot to be replaced first"
    if going:
        why = leaving(going[0], nodes)
        names = ", ".join(replica.id for replica in going)
        return f"; {why.reason if why else ''}, and no node has room for what replaces {names}"
    return "; no node has room for more" if len(replicas) < deployment.config.num_replicas else ""


def _trouble(deployment: DeploymentState, replicas: list[ReplicaState]) -> str:
    """Why the deployment is unhealthy; empty if it is not."""
    if deployment.start_failures >= START_FAILURES_FATAL:
        return f"{deployment.start_failures} starts in a row failed: {deployment.message or 'no reason given'}"
    if deployment.breakdowns >= BREAKDOWNS_FATAL:
        return f"{deployment.breakdowns} replicas in a row broke down: {deployment.breakdown_message}"
    sick = [replica for replica in replicas if replica.live and replica.unhealthy]
    if sick:
        return f"{len(sick)} of {deployment.config.num_replicas} replicas are unhealthy: {sick[0].message}"
    return ""


def _room(state: ClusterState) -> bool:
    """Whether some live node has a free slot."""
    used = occupancy(state)
    return any(node.slots > used[node.id] for node in state.live_nodes())
