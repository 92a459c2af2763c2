"""What becomes of replicas that are sick, and of deployments whose replicas break down again and again."""

from __future__ import annotations

from holdfast.core import events as ev
from holdfast.core.breakdowns import BREAKDOWNS_FATAL, proven_s
from holdfast.core.cluster import DeploymentState, ReplicaStatus
from holdfast.core.reconcile import START_BACKOFF_FIRST_S, START_BACKOFF_MAX_S, UNHEALTHY_FRACTION_MAX
from holdfast.core.starts import STABLE_AFTER_S
from holdfast.core.status import ApplicationStatus, DeploymentStatus, report
from tests.unit.core.test_reconcile import Cluster, deployment


def running(replicas: int = 1, **slots: int) -> Cluster:
    cluster = Cluster(**(slots or {"a": 8}))
    cluster.deploy(replicas)
    cluster.settle()
    return cluster


def falls_sick(cluster: Cluster, replica: str, kind: str = "check_health", message: str = "Boom: cold") -> str:
    node = cluster.state.replicas[replica].node
    return cluster.fact(ev.ReplicaUnhealthy(replica, node, kind, message), by=f"node.{node}")


def is_well(cluster: Cluster, replica: str) -> None:
    node = cluster.state.replicas[replica].node
    cluster.fact(ev.ReplicaHealthy(replica, node), by=f"node.{node}")


def ends(cluster: Cluster, replica: str, code: int = 1) -> None:
    node = cluster.state.replicas[replica].node
    cluster.fact(ev.ReplicaExited(replica, node, 9, code, None, False, "boom"), by=f"node.{node}")


def only(cluster: Cluster) -> str:
    (replica,) = cluster.state.replicas
    return replica


def goes_wrong_again_and_again(cluster: Cluster, times: int) -> DeploymentState:
    for _ in range(times):
        cluster.passes(STABLE_AFTER_S + START_BACKOFF_MAX_S)
        falls_sick(cluster, only(cluster))
        cluster.passes(START_BACKOFF_MAX_S)
        cluster.settle()
    return deployment(cluster)


def test_a_sick_replica_is_replaced_first_and_stopped_when_its_replacement_runs() -> None:
    cluster = running(2)
    cause = falls_sick(cluster, "app.tiny.1")
    (proposal,) = cluster.plan().proposals
    assert isinstance(proposal.payload, ev.ReplicaPlaced)
    assert proposal.cause == cause
    cluster.step()
    assert cluster.step() == []
    assert cluster.state.replicas["app.tiny.1"].status is ReplicaStatus.RUNNING
    cluster.obey()
    assert cluster.step() == [ev.ReplicaStopOrdered("app.tiny.1", "it is unhealthy: Boom: cold, and it is replaced")]
    cluster.settle()
    assert sorted(cluster.state.replicas) == ["app.tiny.2", "app.tiny.3"]


def test_a_sick_replica_makes_room_for_its_replacement_where_there_is_none() -> None:
    cluster = running(2, a=2)
    falls_sick(cluster, "app.tiny.2", "canary")
    reason = "it is unhealthy: Boom: cold, and it makes room for its replacement"
    assert cluster.step() == [ev.ReplicaStopOrdered("app.tiny.2", reason, "migrate")]
    cluster.settle()
    assert sorted(cluster.state.replicas) == ["app.tiny.1", "app.tiny.3"]


def test_streams_leave_an_engine_that_makes_nothing_at_once_and_others_as_the_deployment_has_it() -> None:
    for kind, mode in (("canary", "migrate"), ("check_health", None), ("silent", None)):
        cluster = running(2)
        falls_sick(cluster, "app.tiny.1", kind)
        cluster.step()
        cluster.obey()
        (stop,) = cluster.step()
        assert isinstance(stop, ev.ReplicaStopOrdered)
        assert (stop.replica, stop.mode) == ("app.tiny.1", mode)


def test_a_check_that_fails_everywhere_takes_a_part_of_the_replicas_at_a_time() -> None:
    count = 20
    cluster = running(count, a=count, b=4)
    for replica in list(cluster.state.replicas):
        falls_sick(cluster, replica)
    most = int(count * UNHEALTHY_FRACTION_MAX)
    for _ in range(30):
        cluster.step()
        going = [one for one in cluster.state.replicas.values() if one.status is not ReplicaStatus.RUNNING]
        assert len(going) <= 2 * most
        assert sum(one.status is ReplicaStatus.STOPPING for one in going) <= most
        assert sum(one.status is ReplicaStatus.RUNNING for one in cluster.state.replicas.values()) >= count - most
        cluster.obey()
    cluster.settle()
    assert all(not one.unhealthy for one in cluster.state.replicas.values())
    assert deployment(cluster).breakdowns == 1


def test_only_one_goes_at_a_time_where_a_part_would_be_less_than_one() -> None:
    cluster = running(2)
    falls_sick(cluster, "app.tiny.1")
    falls_sick(cluster, "app.tiny.2")
    assert len(cluster.step()) == 1
    cluster.obey()
    assert [type(payload) for payload in cluster.step()] == [ev.ReplicaStopOrdered]
    assert cluster.step() == []
    cluster.settle()
    assert sorted(cluster.state.replicas) == ["app.tiny.3", "app.tiny.4"]


def test_one_that_is_well_again_stays() -> None:
    cluster = running(2)
    falls_sick(cluster, "app.tiny.1")
    is_well(cluster, "app.tiny.1")
    assert cluster.plan().proposals == []
    replica = cluster.state.replicas["app.tiny.1"]
    assert (replica.unhealthy, replica.message) == ("", "")


def test_one_that_is_well_again_before_it_is_stopped_stays_and_its_replacement_goes() -> None:
    cluster = running(2)
    falls_sick(cluster, "app.tiny.1")
    cluster.step()
    is_well(cluster, "app.tiny.1")
    cluster.settle()
    assert sorted(cluster.state.replicas) == ["app.tiny.1", "app.tiny.2"]


def test_what_an_older_incarnation_of_the_node_says_of_a_replicas_health_is_void() -> None:
    cluster = running(1)
    fact = ev.ReplicaUnhealthy("app.tiny.1", "a", "canary", "no token")
    cluster.fact(fact, by="node.a", incarnation="0")
    assert not cluster.state.replicas["app.tiny.1"].unhealthy


def test_replacements_that_fall_sick_too_come_later_and_later() -> None:
    cluster = running(1)
    pauses = []
    for _ in range(4):
        cluster.passes(STABLE_AFTER_S)
        falls_sick(cluster, only(cluster))
        plan = cluster.plan()
        pauses.append((plan.look_again_at - cluster.now).total_seconds() if plan.look_again_at else 0.0)
        cluster.passes(pauses[-1])
        cluster.settle()
    assert pauses == [0.0, START_BACKOFF_FIRST_S, 2 * START_BACKOFF_FIRST_S, 4 * START_BACKOFF_FIRST_S]


def test_an_engine_that_fails_some_time_after_each_start_is_a_row_of_breakdowns() -> None:
    cluster = running(1)
    for number in range(1, 4):
        cluster.passes(3 * STABLE_AFTER_S)
        ends(cluster, only(cluster))
        assert deployment(cluster).breakdowns == number
        retry_at = cluster.plan().look_again_at
        assert (retry_at is not None) == (number > 1)
        cluster.now = max(cluster.now, retry_at or cluster.now)
        cluster.settle()
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.UNHEALTHY
    assert seen.message == "tiny: 3 replicas in a row broke down: boom"


def test_a_sick_replica_that_then_ends_counts_once() -> None:
    cluster = running(1)
    falls_sick(cluster, "app.tiny.1")
    ends(cluster, "app.tiny.1")
    assert deployment(cluster).breakdowns == 1


def test_a_row_ends_when_a_replica_has_been_well_for_long_enough() -> None:
    cluster = running(1)
    assert goes_wrong_again_and_again(cluster, BREAKDOWNS_FATAL).breakdowns == BREAKDOWNS_FATAL
    seen = report(cluster.state, None).applications["app"]
    assert seen.deployments["tiny"].status is DeploymentStatus.UNHEALTHY
    assert seen.message == "tiny: 3 replicas in a row broke down: Boom: cold"
    is_well(cluster, only(cluster))
    assert report(cluster.state, None).applications["app"].status is ApplicationStatus.RUNNING
    assert deployment(cluster).breakdowns == 0


def test_one_that_had_been_well_for_long_begins_a_new_row() -> None:
    cluster = running(1)
    config = goes_wrong_again_and_again(cluster, 2).config
    cluster.passes(proven_s(config))
    falls_sick(cluster, only(cluster))
    assert deployment(cluster).breakdowns == 1


def test_the_status_names_what_is_wrong_while_a_replica_is_sick() -> None:
    cluster = running(2)
    falls_sick(cluster, "app.tiny.2")
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.UNHEALTHY
    assert seen.message == "tiny: 1 of 2 replicas are unhealthy: Boom: cold"


def test_what_ran_once_and_starts_no_more_is_unhealthy_and_has_not_failed_to_deploy() -> None:
    cluster = running(1)
    for _ in range(4):
        cluster.passes(2 * START_BACKOFF_MAX_S)
        ends(cluster, only(cluster))
        cluster.passes(START_BACKOFF_MAX_S)
        cluster.step()
        cluster.fact(ev.ReplicaStarted(only(cluster), "a", 9), by="node.a")
    ends(cluster, only(cluster))
    seen = report(cluster.state, None).applications["app"]
    assert seen.status is ApplicationStatus.UNHEALTHY
    assert seen.message.endswith("starts in a row failed: boom")


def test_a_new_goal_begins_without_a_row() -> None:
    cluster = running(1)
    goes_wrong_again_and_again(cluster, 3)
    cluster.deploy(1, version=1)
    cluster.settle()
    assert deployment(cluster).breakdowns == 0
