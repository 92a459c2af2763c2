"""The controller's rules, one by one."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from holdfast.core import events as ev
from holdfast.core.breakdowns import KILLS_FREE
from holdfast.core.cluster import LOSS_INTERVAL_S, DeploymentState, ReplicaStatus
from holdfast.core.reconcile import ROUND_MAX, START_BACKOFF_FIRST_S, START_BACKOFF_MAX_S, Evidence, Plan, reconcile
from holdfast.core.starts import STABLE_AFTER_S
from tests.unit.support.history import INFO, History, application


class Cluster(History):
    """A history with a controller, whose nodes do as they are told."""

    def __init__(self, **slots: int) -> None:
        super().__init__()
        for node, count in slots.items():
            self.fact(ev.NodeJoined(node, "host", 1, "0", count), by=f"node.{node}")
        self.decide(ev.LeaderElected("a", "1"), epoch=1)

    def plan(self, *expired: str) -> Plan:
        return reconcile(self.state, Evidence(frozenset((node, "1") for node in expired)), self.now)

    def step(self, *expired: str) -> list[ev.Decision]:
        plan = self.plan(*expired)
        for proposal in plan.proposals:
            assert proposal.cause in self.ids
            self.decide(proposal.payload, proposal.cause)
        return [proposal.payload for proposal in plan.proposals]

    def obey(self) -> None:
        for replica in list(self.state.replicas.values()):
            by = f"node.{replica.node}"
            if replica.status is ReplicaStatus.STARTING:
                self.fact(ev.ReplicaStarted(replica.id, replica.node, 9), by=by)
                self.fact(ev.ReplicaReady(replica.id, replica.node, "h:1", INFO), by=by)
            elif replica.status is ReplicaStatus.STOPPING:
                self.fact(ev.ReplicaExited(replica.id, replica.node, 9, 0, None, True, ""), by=by)

    def settle(self) -> None:
        for _ in range(50):
            decided = self.step()
            self.obey()
            if not decided and self.plan() == Plan([]):
                return
        raise AssertionError("never quiet")

    def deploy(self, replicas: int = 1, *, version: int = 0, name: str = "app") -> None:
        self.fact(ev.DeployRequested(application(name, replicas=replicas, version=version)), by="operator.o")

    def live(self) -> int:
        return sum(replica.live for replica in self.state.replicas.values())

    def fails(self, replica: str) -> None:
        self.fact(ev.ReplicaExited(replica, "a", 9, 1, None, False, "boom"), by="node.a")


def deployment(cluster: Cluster) -> DeploymentState:
    return cluster.state.applications["app"].deployments["tiny"]


def newest(cluster: Cluster) -> str:
    return [replica.id for replica in cluster.state.replicas.values() if replica.live][-1]


def test_nothing_to_do_is_quiet() -> None:
    assert Cluster(a=4).plan() == Plan([])


def test_a_request_is_decided_once_with_the_request_as_its_cause() -> None:
    cluster = Cluster(a=4)
    cluster.deploy(2)
    (proposal,) = cluster.plan().proposals
    assert proposal.payload == ev.ApplicationDeployed(application(replicas=2))
    assert proposal.cause == cluster.records[-1].event.id
    cluster.settle()
    assert cluster.live() == 2
    assert [type(record.event.payload) for record in cluster.records].count(ev.ApplicationDeployed) == 1


def test_replicas_are_spread_over_nodes() -> None:
    cluster = Cluster(a=4, b=4, c=1)
    cluster.deploy(7)
    cluster.settle()
    nodes = [replica.node for replica in cluster.state.replicas.values()]
    assert sorted(nodes.count(node) for node in "abc") == [1, 3, 3]


def test_what_finds_no_room_waits_for_a_node() -> None:
    cluster = Cluster(a=1)
    cluster.deploy(3)
    cluster.settle()
    assert cluster.live() == 1
    cluster.fact(ev.NodeJoined("b", "host", 1, "0", 9), by="node.b")
    cluster.settle()
    assert cluster.live() == 3


def test_an_exited_replica_is_replaced_by_name_and_the_exit_is_the_cause() -> None:
    cluster = Cluster(a=4)
    cluster.deploy()
    cluster.settle()
    cluster.passes(STABLE_AFTER_S)
    cluster.fails("app.tiny.1")
    exit_id = cluster.records[-1].event.id
    (proposal,) = cluster.plan().proposals
    assert proposal.payload == ev.ReplicaReplaced("app.tiny.2", "app", "tiny", "a", "1", "app.tiny.1", "boom")
    assert proposal.cause == exit_id
    cluster.settle()
    assert set(cluster.state.replicas) == {"app.tiny.2"}


def test_scaling_down_stops_the_newest() -> None:
    cluster = Cluster(a=8)
    cluster.deploy(4)
    cluster.settle()
    cluster.deploy(1)
    cluster.settle()
    assert set(cluster.state.replicas) == {"app.tiny.1"}


def test_a_deleted_applications_replicas_are_stopped_whatever_their_state() -> None:
    cluster = Cluster(a=8)
    cluster.deploy(3)
    cluster.settle()
    cluster.fails("app.tiny.2")
    cluster.fact(ev.DeleteRequested("app"), by="operator.o")
    cluster.settle()
    assert not cluster.state.replicas
    assert not cluster.state.applications


def test_a_rolling_update_goes_one_by_one_and_never_below_the_number_wanted() -> None:
    cluster = Cluster(a=9)
    cluster.deploy(3)
    cluster.settle()
    cluster.deploy(3, version=1)
    seen = []
    for _ in range(20):
        cluster.step()
        running = sum(replica.status is ReplicaStatus.RUNNING for replica in cluster.state.replicas.values())
        seen.append((running, cluster.live()))
        cluster.obey()
    assert min(running for running, _ in seen) == 3
    assert max(live for _, live in seen) == 4
    assert {replica.revision for replica in cluster.state.replicas.values()} == {2}
    assert cluster.plan() == Plan([])


def test_an_update_whose_engine_never_starts_leaves_the_old_replicas_alone() -> None:
    cluster = Cluster(a=9)
    cluster.deploy(2)
    cluster.settle()
    cluster.deploy(2, version=1)
    for _ in range(5):
        cluster.step()
        for replica in list(cluster.state.replicas.values()):
            if replica.status is ReplicaStatus.STARTING:
                cluster.fails(replica.id)
        cluster.passes(60)
    running = [replica for replica in cluster.state.replicas.values() if replica.status is ReplicaStatus.RUNNING]
    assert [replica.revision for replica in running] == [1, 1]


def test_failed_starts_are_tried_again_after_longer_and_longer_waits() -> None:
    cluster = Cluster(a=4)
    cluster.deploy()
    cluster.step()
    waits = []
    for number in range(1, 10):
        cluster.step()
        cluster.fails(f"app.tiny.{number}")
        plan = cluster.plan()
        assert not plan.proposals, "nothing may start during the back-off"
        assert plan.look_again_at is not None
        waits.append((plan.look_again_at - cluster.now).total_seconds())
        cluster.now = plan.look_again_at - timedelta(milliseconds=1)
        assert not cluster.plan().proposals
        cluster.now = plan.look_again_at
        assert [type(proposal.payload) for proposal in cluster.plan().proposals] == [ev.ReplicaReplaced]
    assert waits == [min(START_BACKOFF_FIRST_S * 2**n, START_BACKOFF_MAX_S) for n in range(9)]


def test_a_replica_that_stayed_ready_ends_the_back_off() -> None:
    cluster = Cluster(a=4)
    cluster.deploy()
    cluster.step()
    cluster.step()
    cluster.fails("app.tiny.1")
    cluster.passes(1)
    cluster.settle()
    cluster.passes(STABLE_AFTER_S)
    cluster.fails("app.tiny.2")
    assert cluster.plan().proposals, "it ran: its end is no failed start"


def test_replicas_that_crash_soon_after_they_are_ready_are_started_less_and_less_often() -> None:
    cluster = loaded(2, a=4)
    waits = []
    for _ in range(9):
        cluster.passes(1)
        cluster.fails(newest(cluster))
        plan = cluster.plan()
        assert not plan.proposals, "nothing may start during the back-off"
        assert plan.look_again_at is not None
        waits.append((plan.look_again_at - cluster.now).total_seconds())
        cluster.now = plan.look_again_at
        cluster.settle()
        assert deployment(cluster).start_failures == 0, "all run again"
    assert waits == [min(START_BACKOFF_FIRST_S * 2**n, START_BACKOFF_MAX_S) for n in range(9)]


def test_a_replica_that_stays_ready_ends_the_count_for_all() -> None:
    cluster = loaded(2, a=4)
    for _ in range(3):
        cluster.passes(1)
        cluster.fails(newest(cluster))
        cluster.passes(START_BACKOFF_MAX_S)
        cluster.settle()
    assert deployment(cluster).unstable_starts == 3
    cluster.passes(STABLE_AFTER_S)
    cluster.deploy(3)
    cluster.settle()
    cluster.fails(newest(cluster))
    assert deployment(cluster).unstable_starts == 1


@pytest.mark.parametrize("after_s", [0.0, 1.0, STABLE_AFTER_S])
def test_a_replica_that_is_killed_is_replaced_at_once_however_young(after_s: float) -> None:
    cluster = loaded(1, a=4)
    for number in range(1, KILLS_FREE + 1):
        cluster.passes(after_s)
        cluster.fact(ev.ReplicaExited(f"app.tiny.{number}", "a", 9, None, "SIGKILL", False, ""), by="node.a")
        assert [type(decision) for decision in cluster.step()] == [ev.ReplicaReplaced]
        cluster.settle()


@pytest.mark.parametrize("wrong_s", [3600, 20, -20, -3600])
def test_a_node_whose_clock_is_wrong_delays_a_start_by_the_back_off_all_the_same(wrong_s: float) -> None:
    cluster = Cluster(a=4)
    cluster.deploy()
    cluster.step()
    cluster.step()
    placed_at = cluster.now
    cluster.passes(wrong_s)
    cluster.fails("app.tiny.1")
    cluster.now = placed_at
    assert cluster.plan() == Plan([], placed_at + timedelta(seconds=START_BACKOFF_FIRST_S))
    cluster.passes(START_BACKOFF_FIRST_S)
    assert [type(proposal.payload) for proposal in cluster.plan().proposals] == [ev.ReplicaReplaced]


@pytest.mark.parametrize("wrong_s", [0, 3600, -3600])
def test_a_failed_start_holds_up_nothing_but_the_next_start_after_it(wrong_s: float) -> None:
    replicas = 2 * ROUND_MAX + 10
    cluster = Cluster(a=300, b=300)
    cluster.deploy(replicas)
    while cluster.live() < replicas:
        cluster.step()
    placed_at = cluster.now
    cluster.passes(wrong_s)
    for name in [one.id for one in cluster.state.replicas.values() if one.node == "a"][:6]:
        cluster.fails(name)
    assert deployment(cluster).unstable_starts == 6
    cluster.now = placed_at
    cluster.passes(START_BACKOFF_MAX_S)
    cluster.settle()
    cluster.step("b")
    while cluster.live() < replicas:
        assert cluster.step(), "replicas wait that are not to blame"


# --- losses ---------------------------------------------------------------------------------------------


def loaded(replicas: int, **slots: int) -> Cluster:
    cluster = Cluster(**slots)
    cluster.deploy(replicas)
    cluster.settle()
    return cluster


def test_a_node_whose_lease_expired_is_given_up_and_its_replicas_move() -> None:
    cluster = loaded(4, a=4, b=4)
    assert cluster.step("b") == [ev.NodeLost("b", "1", "its lease expired")]
    cluster.settle()
    assert [replica.node for replica in cluster.state.replicas.values()] == ["a"] * 4


def test_evidence_against_an_earlier_life_of_a_node_is_void() -> None:
    cluster = loaded(1, a=4)
    cluster.fact(ev.NodeJoined("a", "host", 1, "0", 4), by="node.a", incarnation="2")
    assert ev.NodeLost not in {type(decision) for decision in cluster.step("a")}


def test_leases_alone_never_empty_the_cluster_at_once() -> None:
    """Every lease is gone. Nodes are given up one by one, an interval apart, so that somebody can step in."""
    cluster = loaded(9, a=3, b=3, c=3)
    began = cluster.now
    lost_at = []
    for _ in range(200):
        lost_at += [
            (cluster.now - began).total_seconds()
            for decision in cluster.step("a", "b", "c")
            if isinstance(decision, ev.NodeLost)
        ]
        cluster.passes(0.1)
    assert len(lost_at) == 3
    gaps = [later - sooner for sooner, later in itertools.pairwise(lost_at)]
    assert all(LOSS_INTERVAL_S <= gap <= LOSS_INTERVAL_S + 0.2 for gap in gaps)


def test_the_plan_says_when_the_next_node_may_be_given_up() -> None:
    cluster = loaded(6, a=3, b=3)
    cluster.step("a", "b")
    plan = cluster.plan("b")
    assert not any(isinstance(proposal.payload, ev.NodeLost) for proposal in plan.proposals)
    assert plan.look_again_at == cluster.now + timedelta(seconds=LOSS_INTERVAL_S)


def test_a_fifth_of_the_replicas_may_go_at_once() -> None:
    cluster = loaded(20, **{name: 2 for name in "abcdefghij"})
    decided = cluster.step("a", "b", "c", "d")
    assert decided == [ev.NodeLost("a", "1", "its lease expired"), ev.NodeLost("b", "1", "its lease expired")]
    assert not any(isinstance(decision, ev.NodeLost) for decision in cluster.step("c", "d"))


def test_nodes_whose_process_was_seen_to_end_are_given_up_at_once_however_many_and_hold_back_the_others() -> None:
    cluster = loaded(9, a=3, b=3, c=3)
    ended = frozenset({("b", "1"), ("c", "1")})
    plan = reconcile(cluster.state, Evidence(ended | {("a", "1")}, ended=ended), cluster.now)
    reason = "its process ended"
    decided = [proposal.payload for proposal in plan.proposals]
    assert decided == [ev.NodeLost("b", "1", reason), ev.NodeLost("c", "1", reason)]


def test_nodes_that_gave_up_their_leases_for_the_log_are_given_up_no_faster_than_others() -> None:
    cluster = loaded(9, a=3, b=3, c=3)
    gone = frozenset({("a", "1"), ("b", "1")})
    plan = reconcile(cluster.state, Evidence(gone, cut_off=gone), cluster.now)
    decided = [proposal.payload for proposal in plan.proposals]
    assert decided == [ev.NodeLost("a", "1", "it can't reach the log and gave up its lease")]


def test_nodes_without_replicas_cost_nothing() -> None:
    cluster = loaded(1, a=1, b=0, c=0, d=0)
    assert len(cluster.step("a", "b", "c", "d")) == 4


@pytest.mark.parametrize("back_s", [-3600.0])
def test_a_clock_that_went_back_does_not_hold_losses_back(back_s: float) -> None:
    cluster = loaded(6, a=3, b=3)
    cluster.step("a")
    cluster.passes(back_s)
    assert any(isinstance(decision, ev.NodeLost) for decision in cluster.step("b"))


@pytest.mark.parametrize("stopping", [False, True])
def test_a_gateway_whose_lease_expired_is_given_up_once(stopping: bool) -> None:
    cluster = Cluster(a=1)
    cluster.fact(ev.GatewayJoined("g", "host", 1, "http://h", "0"), by="gateway.g")
    if stopping:
        cluster.fact(ev.GatewayStopping("g"), by="gateway.g")
    evidence = Evidence(gateways_expired=frozenset({("g", "1")}))
    (proposal,) = reconcile(cluster.state, evidence, cluster.now).proposals
    assert proposal.payload == ev.GatewayLost("g", "1", "its lease expired")
    cluster.decide(proposal.payload, proposal.cause)
    assert reconcile(cluster.state, evidence, cluster.now) == Plan([])


def test_a_round_takes_a_bounded_number_of_decisions_so_that_a_loss_meanwhile_is_seen_soon() -> None:
    cluster = Cluster(a=ROUND_MAX, b=2 * ROUND_MAX)
    cluster.deploy(2 * ROUND_MAX)
    cluster.step()
    placed = cluster.step()
    assert [type(decision) for decision in placed] == [ev.ReplicaPlaced] * ROUND_MAX
    assert [type(decision) for decision in cluster.step("a")] == [ev.NodeLost]
    cluster.settle()
    assert cluster.live() == 2 * ROUND_MAX
