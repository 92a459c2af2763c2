"""How a cluster stands, in the words that users of Ray Serve know: derived from the state, and nothing but.

What the leases say is optional: without them the picture is what the log has, which may be behind for as long as
a lease lives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

import msgspec

from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    GatewayState,
    MemberStatus,
    NodeState,
    ReplicaStatus,
)
from holdfast.core.config import ApplicationConfig
from holdfast.core.placement import occupancy
from holdfast.core.reconcile import START_FAILURES_FATAL


class ApplicationStatus(StrEnum):
    """NOT_STARTED: asked for, not decided yet. DEPLOY_FAILED: its replicas don't start. DELETING: on its way out."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(StrEnum):
    """UPDATING: replicas are being started, replaced or stopped. UNHEALTHY: they don't start."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"


class GatewayStatus(StrEnum):
    """UNHEALTHY: its lease is missing. DRAINED: it ended in order."""

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


class LeaseView(msgspec.Struct, frozen=True):
    """What the leases say: the incarnations that hold one, and who leads."""

    incarnations: frozenset[str]
    leader: LeaderHeld | None


class ControllerReport(msgspec.Struct, frozen=True):
    """The leader that the log knows."""

    node: str | None
    epoch: int
    pid: int | None
    status: ControllerStatus
    message: str = ""


class NodeReport(msgspec.Struct, frozen=True):
    """A node: its status in the log, and what the leases add to that."""

    id: str
    pid: int
    status: MemberStatus
    host: str
    slots: int
    replicas: int
    version: str
    message: str = ""


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
    """A replica. `pid` and `address` are None while it has none."""

    id: str
    application: str
    deployment: str
    node: str
    pid: int | None
    state: ReplicaStatus
    address: str | None
    message: str = ""


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


def report(state: ClusterState, leases: LeaseView | None) -> ClusterReport:
    """How the cluster stands by the log, and by the leases where they are known."""
    used = occupancy(state)
    return ClusterReport(
        controller=_controller(state, leases),
        nodes=[_node(node, used[node.id], leases) for node in _in_order(state.nodes)],
        gateways=[_gateway(gateway, leases) for gateway in _in_order(state.gateways)],
        replicas=[
            ReplicaReport(
                replica.id,
                replica.application,
                replica.deployment,
                replica.node,
                replica.pid or None,
                replica.status,
                replica.address or None,
                replica.message,
            )
            for replica in _in_order(state.replicas)
        ],
        applications=_applications(state),
    )


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


def _node(node: NodeState, used: int, leases: LeaseView | None) -> NodeReport:
    message = "its lease is missing" if _lease_missing(node, leases) else ""
    return NodeReport(node.id, node.pid, node.status, node.host, node.slots, used, node.version, message)


_GATEWAY_STATUS = {
    MemberStatus.ALIVE: GatewayStatus.HEALTHY,
    MemberStatus.STOPPING: GatewayStatus.DRAINING,
    MemberStatus.LEFT: GatewayStatus.DRAINED,
    MemberStatus.LOST: GatewayStatus.UNHEALTHY,
}


def _gateway(gateway: GatewayState, leases: LeaseView | None) -> GatewayReport:
    status, message = _GATEWAY_STATUS[gateway.status], ""
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
    status, message = _application_status(deployments)
    return ApplicationReport(status, message, application.deployed_at.timestamp(), deployments)


def _application_status(deployments: dict[str, DeploymentReport]) -> tuple[ApplicationStatus, str]:
    """The worst of its deployments. One whose replicas never run has failed; one that lacks some is unhealthy."""
    for name, deployment in deployments.items():
        if deployment.status is DeploymentStatus.UNHEALTHY:
            failed = deployment.replicas_running == 0
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
    settled = all(
        replica.status is ReplicaStatus.RUNNING and replica.revision == deployment.revision for replica in replicas
    )
    status, message = DeploymentStatus.UPDATING, f"{running} of {wanted} replicas run"
    if deployment.start_failures >= START_FAILURES_FATAL:
        status = DeploymentStatus.UNHEALTHY
        message = f"{deployment.start_failures} starts in a row failed: {deployment.message or 'no reason given'}"
    elif settled and running == wanted:
        status, message = DeploymentStatus.HEALTHY, ""
    elif len(replicas) < wanted and not _room(state):
        message += "; no node has room for more"
    return DeploymentReport(
        status, message, application.deployed_at.timestamp(), deployment.config.engine.kind, wanted, running
    )


def _room(state: ClusterState) -> bool:
    """Whether some live node has a free slot."""
    used = occupancy(state)
    return any(node.slots > used[node.id] for node in state.live_nodes())
