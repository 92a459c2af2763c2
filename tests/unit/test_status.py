"""How a cluster's status follows from its state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    GatewayState,
    MemberStatus,
    NodeState,
    PendingRequest,
    ReplicaState,
    ReplicaStatus,
)
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.reconcile import START_FAILURES_FATAL
from holdfast.core.status import (
    ApplicationStatus,
    ClusterReport,
    ControllerStatus,
    DeploymentStatus,
    GatewayStatus,
    LeaderHeld,
    LeaseView,
    natural_order,
    report,
)

DEPLOYED_AT = datetime(2026, 1, 2, tzinfo=UTC)
CONFIG = DeploymentConfig("mock", EngineConfig("mock"), num_replicas=2)
WISH = ApplicationConfig("default", [CONFIG])


def node(name: str = "node-1", status: MemberStatus = MemberStatus.ALIVE, slots: int = 16) -> NodeState:
    return NodeState(name, f"{name}-life", status, "here", 10, "1", slots, "e1")


def gateway(status: MemberStatus = MemberStatus.ALIVE) -> GatewayState:
    return GatewayState("gateway-1", "gateway-life", status, "here", 20, "http://here", "1", "e2")


def replica(number: int, status: ReplicaStatus = ReplicaStatus.RUNNING, **more: Any) -> ReplicaState:
    return ReplicaState(f"r{number}", "default", "mock", 1, "node-1", "node-1-life", status, "e3", **more)


def cluster(*replicas: ReplicaState, **changes: Any) -> ClusterState:
    """A cluster of one node, one gateway and one application with these replicas."""
    deployment = changes.pop("deployment", DeploymentState(CONFIG, "e4"))
    state = ClusterState(
        epoch=7,
        leader="node-1",
        leader_incarnation="node-1-life",
        nodes={"node-1": node()},
        gateways={"gateway-1": gateway()},
        applications={"default": ApplicationState("default", DEPLOYED_AT, "e4", {"mock": deployment})},
        replicas={item.id: item for item in replicas},
    )
    return msgspec.structs.replace(state, **changes)


def statuses(seen: ClusterReport) -> tuple[ApplicationStatus, DeploymentStatus]:
    application = seen.applications["default"]
    return application.status, application.deployments["mock"].status


def test_an_application_with_all_its_replicas_is_running() -> None:
    seen = report(cluster(replica(1), replica(2)), None)
    assert statuses(seen) == (ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY)
    assert seen.applications["default"].message == ""
    assert seen.applications["default"].deployment_timestamp == DEPLOYED_AT.timestamp()
    assert seen.applications["default"].deployments["mock"].replicas_running == 2


def test_an_application_that_lacks_replicas_is_deploying() -> None:
    seen = report(cluster(replica(1), replica(2, ReplicaStatus.STARTING)), None)
    assert statuses(seen) == (ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING)
    assert "1 of 2" in seen.applications["default"].message


def test_a_replica_that_is_too_many_or_outdated_keeps_its_deployment_updating() -> None:
    surplus = cluster(replica(1), replica(2), replica(3, ReplicaStatus.STOPPING))
    outdated = cluster(replica(1), replica(2), deployment=DeploymentState(CONFIG, "e4", revision=2))
    assert statuses(report(surplus, None))[1] is DeploymentStatus.UPDATING
    assert statuses(report(outdated, None))[1] is DeploymentStatus.UPDATING


@pytest.mark.parametrize(
    ("running", "status"), [(0, ApplicationStatus.DEPLOY_FAILED), (1, ApplicationStatus.UNHEALTHY)]
)
def test_an_application_whose_replicas_do_not_start_has_failed_or_is_unhealthy(
    running: int, status: ApplicationStatus
) -> None:
    failing = DeploymentState(CONFIG, "e4", start_failures=START_FAILURES_FATAL, message="no such model")
    seen = report(cluster(*(replica(number) for number in range(running)), deployment=failing), None)
    assert statuses(seen) == (status, DeploymentStatus.UNHEALTHY)
    assert "no such model" in seen.applications["default"].message


def test_a_deployment_that_finds_no_room_says_so() -> None:
    full = cluster(replica(1), nodes={"node-1": node(slots=1)})
    assert "no node has room" in report(full, None).applications["default"].message


def test_an_application_that_was_asked_for_has_not_started() -> None:
    asked = cluster(applications={}, requests={"default": PendingRequest("e9", WISH)})
    assert report(asked, None).applications["default"].status is ApplicationStatus.NOT_STARTED


def test_an_application_is_deleting_from_the_wish_to_its_last_replica() -> None:
    wished = cluster(replica(1), replica(2), requests={"default": PendingRequest("e9", "default")})
    emptied = cluster(replica(1, ReplicaStatus.STOPPING), applications={})
    gone = cluster(applications={})
    assert report(wished, None).applications["default"].status is ApplicationStatus.DELETING
    assert report(emptied, None).applications["default"].status is ApplicationStatus.DELETING
    assert report(gone, None).applications == {}


@pytest.mark.parametrize(
    ("member", "status"),
    [
        (MemberStatus.ALIVE, GatewayStatus.HEALTHY),
        (MemberStatus.STOPPING, GatewayStatus.DRAINING),
        (MemberStatus.LEFT, GatewayStatus.DRAINED),
        (MemberStatus.LOST, GatewayStatus.UNHEALTHY),
    ],
)
def test_a_gateways_status_follows_from_the_log(member: MemberStatus, status: GatewayStatus) -> None:
    seen = report(cluster(gateways={"gateway-1": gateway(member)}), None)
    assert seen.gateways[0].status is status


def test_members_without_a_lease_show_it() -> None:
    seen = report(cluster(), LeaseView(frozenset(), None))
    assert seen.gateways[0].status is GatewayStatus.UNHEALTHY
    assert seen.gateways[0].message == seen.nodes[0].message == "its lease is missing"
    held = LeaseView(frozenset({"node-1-life", "gateway-life"}), LeaderHeld("node-1", "node-1-life", 10, 7))
    seen = report(cluster(), held)
    assert seen.gateways[0].status is GatewayStatus.HEALTHY
    assert seen.nodes[0].message == ""
    assert seen.controller.status is ControllerStatus.LEADING
    assert (seen.controller.node, seen.controller.epoch, seen.controller.pid) == ("node-1", 7, 10)


@pytest.mark.parametrize(
    "state",
    [ClusterState(), cluster(nodes={"node-1": node(status=MemberStatus.LOST)}), cluster(leader_incarnation="earlier")],
)
def test_without_a_living_leader_the_controller_is_being_elected(state: ClusterState) -> None:
    seen = report(state, None).controller
    assert seen.status is ControllerStatus.ELECTING
    assert seen.pid is None


def test_a_leader_key_that_the_log_does_not_know_yet_means_an_election() -> None:
    alive = frozenset({"node-1-life"})
    vacant = report(cluster(), LeaseView(alive, None)).controller
    newer = report(cluster(), LeaseView(alive, LeaderHeld("node-2", "other", 11, 8))).controller
    assert vacant.status is newer.status is ControllerStatus.ELECTING
    assert "node-2" in newer.message


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["node-10", "node-2", "a.1", "a.10", "a.9"], key=natural_order) == [
        "a.1",
        "a.9",
        "a.10",
        "node-2",
        "node-10",
    ]
