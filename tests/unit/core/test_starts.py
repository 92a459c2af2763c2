"""What a failed start means for where the next replicas go."""

from __future__ import annotations

from datetime import timedelta

import pytest

from holdfast.core import events as ev
from holdfast.core.cluster import ReplicaState, ReplicaStatus
from holdfast.core.reconcile import START_BACKOFF_MAX_S, Plan
from holdfast.core.starts import NODE_REST_FIRST_S, NODE_REST_MAX_S, STABLE_AFTER_S
from holdfast.core.status import report
from tests.unit.core.test_reconcile import Cluster, deployment
from tests.unit.support.history import INFO


def fails_where_it_is(cluster: Cluster, replica: ReplicaState) -> None:
    by = f"node.{replica.node}"
    cluster.fact(ev.ReplicaExited(replica.id, replica.node, 0, None, None, False, "no GPU"), by=by)


def goes_on(cluster: Cluster, *broken: str) -> list[str]:
    """Let the cluster do what there is to do where all starts fail on the broken nodes; where they failed, in order."""
    failed = []
    for _ in range(50):
        decided = cluster.step()
        for replica in [one for one in cluster.state.replicas.values() if one.status is ReplicaStatus.STARTING]:
            if replica.node in broken:
                fails_where_it_is(cluster, replica)
                failed.append(replica.node)
        cluster.obey()
        cluster.passes(START_BACKOFF_MAX_S)
        if not decided and cluster.plan() == Plan([]):
            return failed
    raise AssertionError(f"never at full strength: starts failed on {failed}")


def where(cluster: Cluster, name: str = "app") -> list[str]:
    """The nodes on which the application's replicas run, in order."""
    return sorted(
        replica.node
        for replica in cluster.state.replicas.values()
        if replica.application == name and replica.status is ReplicaStatus.RUNNING
    )


def test_nodes_on_which_starts_fail_are_tried_once_however_empty_they_are() -> None:
    cluster = Cluster(a=8, b=8, c=8)
    cluster.deploy(6)
    assert goes_on(cluster, "a", "b") == ["a", "b", "a", "b"], "placed in one round, before any of them failed"
    assert where(cluster) == ["c"] * 6


def test_a_broken_node_is_passed_over_though_all_others_have_far_more_replicas() -> None:
    cluster = Cluster(a=8, b=8)
    cluster.deploy(6)
    cluster.settle()
    cluster.fact(ev.NodeJoined("z", "host", 1, "0", 8), by="node.z")
    cluster.deploy(7)
    assert goes_on(cluster, "z") == ["z"]
    assert where(cluster) == [*"aaaa", *"bbb"]


def only_on_b() -> Cluster:
    """A replica that starts on `b`, and could start nowhere else."""
    cluster = Cluster(b=8)
    cluster.deploy()
    cluster.step()
    cluster.step()
    return cluster


def fails_on_b(cluster: Cluster) -> None:
    """It fails, and starts there again."""
    (replica,) = cluster.state.replicas.values()
    fails_where_it_is(cluster, replica)
    cluster.passes(START_BACKOFF_MAX_S)
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaReplaced)
    assert placed.node == "b"


def test_the_only_node_with_room_is_tried_again_and_again() -> None:
    cluster = only_on_b()
    for _ in range(5):
        fails_on_b(cluster)


def test_of_nodes_that_all_failed_the_one_is_tried_that_failed_the_least() -> None:
    cluster = Cluster(a=8, b=8, c=8)
    cluster.deploy()
    cluster.step()
    tried = []
    for _ in range(7):
        cluster.passes(START_BACKOFF_MAX_S)
        cluster.step()
        (replica,) = cluster.state.replicas.values()
        tried.append(replica.node)
        fails_where_it_is(cluster, replica)
    assert tried == ["a", "b", "c", "a", "b", "c", "a"]


def all_rest(a: int, b: int, d: int) -> Cluster:
    """So many starts failed on three nodes, as while the storage was away, and no replica is left."""
    cluster = Cluster(a=8, b=8, d=8)
    cluster.deploy()
    cluster.step()
    left = {"a": a, "b": b, "d": d}
    while sum(left.values()):
        cluster.passes(START_BACKOFF_MAX_S)
        cluster.step()
        (replica,) = cluster.state.replicas.values()
        assert left[replica.node] > 0
        left[replica.node] -= 1
        fails_where_it_is(cluster, replica)
    assert {name: row.failures for name, row in deployment(cluster).failed_on.items()} == {"a": a, "b": b, "d": d}
    return cluster


def test_nodes_that_all_rest_share_what_is_placed_though_more_failed_on_some() -> None:
    cluster = all_rest(a=2, b=2, d=1)
    cluster.deploy(6)
    cluster.passes(START_BACKOFF_MAX_S)
    cluster.settle()
    assert where(cluster) == [*"aa", *"bb", *"dd"]


def test_where_all_nodes_rest_the_one_where_nothing_starts_is_not_tried_for_ever() -> None:
    cluster = all_rest(a=2, b=2, d=1)
    cluster.deploy(6)
    assert goes_on(cluster, "d") == ["d", "d"], "placed in one round, before any of them failed"
    assert where(cluster) == [*"aaa", *"bbb"]


def test_a_node_rests_for_longer_with_each_failed_start_and_is_then_like_any_other() -> None:
    cluster = only_on_b()
    rests = []
    for _ in range(6):
        fails_on_b(cluster)
        failed_at = deployment(cluster).failed_on["b"].failed_at
        told = {node.id: node.message for node in report(cluster.state, None, cluster.now).nodes}["b"]
        assert "of app.tiny failed here: no GPU; other nodes are preferred until " in told
        rest_s = 0
        while report(cluster.state, None, failed_at + timedelta(seconds=rest_s)).nodes[0].message:
            rest_s += 100
        rests.append(rest_s)
    assert rests == [min(NODE_REST_FIRST_S * 2**n, NODE_REST_MAX_S) for n in range(6)]
    cluster.fact(ev.NodeJoined("c", "host", 1, "0", 8), by="node.c")
    cluster.passes(NODE_REST_MAX_S)
    (replica,) = cluster.state.replicas.values()
    cluster.deploy(2)
    cluster.step()
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    assert (replica.node, placed.node) == ("b", "c")
    cluster.deploy(3)
    cluster.step()
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    assert placed.node == "b"


def test_a_replica_that_gets_ready_ends_its_nodes_rest() -> None:
    cluster = only_on_b()
    fails_on_b(cluster)
    assert list(deployment(cluster).failed_on) == ["b"]
    cluster.obey()
    assert deployment(cluster).failed_on == {}


def test_a_node_that_was_started_anew_does_not_rest() -> None:
    cluster = Cluster(a=8, b=8)
    cluster.deploy(2)
    assert goes_on(cluster, "a") == ["a"]
    assert where(cluster) == ["b", "b"]
    cluster.fact(ev.NodeJoined("a", "host", 1, "0", 8), by="node.a", incarnation="2")
    cluster.deploy(3)
    cluster.step()
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    assert placed.node == "a"


def test_what_starts_nowhere_holds_no_node_back_for_others() -> None:
    cluster = Cluster(a=8, b=8)
    cluster.deploy(1, name="bad")
    for _ in range(4):
        cluster.step()
        cluster.passes(START_BACKOFF_MAX_S)
        for replica in [one for one in cluster.state.replicas.values() if one.status is ReplicaStatus.STARTING]:
            fails_where_it_is(cluster, replica)
    assert set(cluster.state.applications["bad"].deployments["tiny"].failed_on) == {"a", "b"}
    cluster.deploy(2, name="good")
    cluster.step()
    cluster.step()
    cluster.obey()
    assert where(cluster, "good") == ["a", "b"]


@pytest.mark.parametrize("runs_elsewhere", [True, False])
def test_what_runs_elsewhere_and_fails_on_a_node_holds_it_back_for_all(runs_elsewhere: bool) -> None:
    cluster = Cluster(a=8, b=8)
    cluster.deploy(2, name="first")
    cluster.step()
    cluster.step()
    fails_where_it_is(cluster, next(one for one in cluster.state.replicas.values() if one.node == "a"))
    if runs_elsewhere:
        cluster.obey()
    cluster.deploy(1, name="second")
    cluster.step()
    placed = [one for one in cluster.step() if isinstance(one, ev.ReplicaPlaced)]
    assert [one.node for one in placed] == ["b" if runs_elsewhere else "a"]


def test_a_new_engine_is_tried_everywhere() -> None:
    cluster = Cluster(a=8, b=8)
    cluster.deploy(2)
    assert goes_on(cluster, "a") == ["a"]
    cluster.deploy(3)
    cluster.step()
    assert set(deployment(cluster).failed_on) == {"a"}
    cluster.deploy(3, version=1)
    cluster.step()
    assert deployment(cluster).failed_on == {}


@pytest.mark.parametrize("wrong_s", [1e6, -1e6])
def test_a_node_whose_clock_is_wrong_rests_no_longer_than_others(wrong_s: float) -> None:
    cluster = only_on_b()
    placed_at = cluster.now
    cluster.passes(wrong_s)
    (replica,) = cluster.state.replicas.values()
    fails_where_it_is(cluster, replica)
    for after_s, rests in ((0.0, True), (NODE_REST_FIRST_S - 1, True), (NODE_REST_FIRST_S + 1, False)):
        seen = report(cluster.state, None, placed_at + timedelta(seconds=after_s))
        assert bool(seen.nodes[0].message) == rests


def test_room_on_a_node_that_rests_does_not_keep_a_sick_replica_in_its_place() -> None:
    cluster = Cluster(a=2, b=2)
    cluster.deploy(2)
    assert goes_on(cluster, "b") == ["b"]
    cluster.passes(STABLE_AFTER_S)
    cluster.fact(ev.ReplicaUnhealthy("app.tiny.1", "a", "canary", "no token"), by="node.a")
    cluster.passes(START_BACKOFF_MAX_S)
    kinds = {type(decision) for decision in cluster.step()}
    assert kinds == {ev.ReplicaPlaced, ev.ReplicaStopOrdered}
    assert goes_on(cluster, "b") == ["b"]
    assert where(cluster) == ["a", "a"]


def sick(cluster: Cluster, kind: str = "check_health") -> None:
    """The first replica, on `a`, falls sick some time after it got ready."""
    cluster.passes(STABLE_AFTER_S)
    cluster.fact(ev.ReplicaUnhealthy("app.tiny.1", "a", kind, "Boom: cold"), by="node.a")


def replacement_fails(cluster: Cluster) -> list[ev.Decision]:
    """The sick one's replacement fails; what is decided in the next two rounds."""
    cluster.passes(START_BACKOFF_MAX_S)
    cluster.step()
    (starting,) = [one for one in cluster.state.replicas.values() if one.status is ReplicaStatus.STARTING]
    fails_where_it_is(cluster, starting)
    cluster.passes(START_BACKOFF_MAX_S)
    return [*cluster.step(), *cluster.step()]


@pytest.mark.parametrize("kind", ["check_health", "canary"])
def test_a_sick_replica_stays_until_its_replacement_runs_though_that_failed_to_start_beside_it(kind: str) -> None:
    cluster = Cluster(a=8)
    cluster.deploy()
    cluster.settle()
    sick(cluster, kind)
    for _ in range(3):
        assert [type(one) for one in replacement_fails(cluster)] == [ev.ReplicaReplaced]
        assert where(cluster) == ["a"]
        fails_where_it_is(cluster, list(cluster.state.replicas.values())[-1])
    cluster.passes(START_BACKOFF_MAX_S)
    cluster.settle()
    assert where(cluster) == ["a"]
    assert "app.tiny.1" not in cluster.state.replicas


@pytest.mark.parametrize(("kind", "goes"), [("check_health", False), ("canary", True)])
def test_the_last_that_serves_makes_no_room_while_there_is_some_on_a_node_that_rests(kind: str, goes: bool) -> None:
    cluster = Cluster(a=1, b=1)
    cluster.deploy()
    cluster.settle()
    sick(cluster, kind)
    decided = [type(one) for one in replacement_fails(cluster)]
    assert (ev.ReplicaStopOrdered in decided) == goes
    assert ev.ReplicaReplaced in decided


# --- starts that hang -----------------------------------------------------------------------------------


def hangs(cluster: Cluster, replica: str) -> None:
    node = cluster.state.replicas[replica].node
    message = "it did not get ready within 600 s (start_timeout_s)"
    cluster.fact(ev.ReplicaUnhealthy(replica, node, "start", message), by=f"node.{node}")


def hanging() -> Cluster:
    """The first of two replicas hangs on `a`, the other one runs on `b`."""
    cluster = Cluster(a=2, b=2)
    cluster.deploy(2)
    cluster.step()
    cluster.step()
    cluster.passes(600)
    hangs(cluster, "app.tiny.1")
    other = cluster.state.replicas["app.tiny.2"]
    cluster.fact(ev.ReplicaReady(other.id, other.node, "h:1", INFO), by=f"node.{other.node}")
    return cluster


def test_a_replica_that_hangs_before_it_is_ready_is_stopped_and_replaced_elsewhere_though_it_never_ends() -> None:
    cluster = hanging()
    assert deployment(cluster).unstable_starts == 1
    (stop,) = cluster.step()
    assert stop == ev.ReplicaStopOrdered(
        "app.tiny.1", "its start failed: it did not get ready within 600 s (start_timeout_s)", None, 0.0
    )
    assert cluster.plan().proposals == [], "a pause, as after any failed start"
    cluster.passes(START_BACKOFF_MAX_S)
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    assert placed.node == "b", "a rests, though it has fewer replicas that run"
    replica = cluster.state.replicas[placed.replica]
    cluster.fact(ev.ReplicaReady(replica.id, "b", "h:1", INFO), by="node.b")
    assert cluster.plan() == Plan([])
    assert where(cluster) == ["b", "b"]
    assert cluster.state.replicas["app.tiny.1"].status is ReplicaStatus.STOPPING


def test_a_start_that_hung_and_then_ended_has_failed_once() -> None:
    cluster = hanging()
    fails_where_it_is(cluster, cluster.state.replicas["app.tiny.1"])
    assert deployment(cluster).unstable_starts == 1
    cluster.passes(START_BACKOFF_MAX_S)
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaReplaced)
    assert placed.node == "b"


def test_one_that_gets_ready_late_while_nobody_leads_is_like_any_other() -> None:
    cluster = hanging()
    cluster.fact(ev.ReplicaReady("app.tiny.1", "a", "h:1", INFO), by="node.a")
    assert cluster.plan() == Plan([])
    assert not cluster.state.replicas["app.tiny.1"].unhealthy
    assert deployment(cluster).failed_on == {}


def test_one_that_hangs_and_can_not_be_killed_keeps_no_sick_replica_from_being_replaced() -> None:
    cluster = hanging()
    cluster.step()
    cluster.passes(START_BACKOFF_MAX_S)
    cluster.step()
    (started,) = [one for one in cluster.state.replicas.values() if one.status is ReplicaStatus.STARTING]
    cluster.fact(ev.ReplicaReady(started.id, started.node, "h:1", INFO), by=f"node.{started.node}")
    cluster.passes(STABLE_AFTER_S + START_BACKOFF_MAX_S)
    cluster.fact(ev.ReplicaUnhealthy("app.tiny.2", "b", "canary", "no token"), by="node.b")
    cluster.passes(START_BACKOFF_MAX_S)
    assert any(isinstance(one, ev.ReplicaPlaced) for one in cluster.step())
