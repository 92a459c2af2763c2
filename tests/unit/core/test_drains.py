"""Drains: who is on the way out is replaced first, gets nothing new, and stays out until somebody says otherwise."""

from __future__ import annotations

from datetime import timedelta

import pytest

from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus, ReplicaStatus
from holdfast.core.drains import leaving
from holdfast.core.reconcile import Plan
from holdfast.core.status import GatewayStatus, NodeStatus, report
from tests.unit.core.test_reconcile import Cluster, deployment
from tests.unit.support.history import INFO


class Drained(Cluster):
    """A cluster with an operator who drains and undrains."""

    def drain(self, kind: ev.DrainTarget, name: str, deadline_s: float | None = None) -> None:
        self.fact(ev.DrainRequested(kind, name, "finish", deadline_s), by="operator.o")

    def undrain(self, kind: ev.DrainTarget, name: str) -> None:
        self.fact(ev.UndrainRequested(kind, name), by="operator.o")

    def running_on(self, node: str) -> int:
        return sum(
            replica.node == node and replica.status is ReplicaStatus.RUNNING for replica in self.state.replicas.values()
        )

    def running(self) -> int:
        return sum(replica.status is ReplicaStatus.RUNNING for replica in self.state.replicas.values())

    def settle_with(self, running_min: int) -> None:
        """As `settle`, and so many replicas run all the while."""
        for _ in range(50):
            decided = self.step()
            assert self.running() >= running_min
            self.obey()
            assert self.running() >= running_min
            if not decided and self.plan() == Plan([]):
                return
        raise AssertionError("never quiet")

    def message(self) -> str:
        return report(self.state, None).applications["app"].deployments["tiny"].message


def drained(**slots: int) -> Drained:
    cluster = Drained(**slots)
    cluster.deploy(2)
    cluster.settle()
    return cluster


def test_a_drain_is_decided_once_with_the_wish_as_its_cause() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("node", "a", 30.0)
    (proposal,) = cluster.plan().proposals
    assert proposal.payload == ev.DrainOrdered("node", "a", "finish", 30.0)
    assert proposal.cause == cluster.records[-1].event.id
    cluster.settle()
    assert [type(record.event.payload) for record in cluster.records].count(ev.DrainOrdered) == 1
    assert not cluster.state.drain_requests


def test_replicas_of_a_drained_node_go_elsewhere_before_they_stop() -> None:
    cluster = drained(a=4, b=4)
    assert (cluster.running_on("a"), cluster.running_on("b")) == (1, 1)
    cluster.drain("node", "a")
    cluster.settle_with(2)
    assert (cluster.running_on("a"), cluster.running_on("b")) == (0, 2)
    stop = next(record.event for record in cluster.records if isinstance(record.event.payload, ev.ReplicaStopOrdered))
    cause = next(record.event for record in cluster.records if record.event.id == stop.cause)
    assert cause.payload == ev.DrainOrdered("node", "a", "finish", None)
    assert "node a is drained" in stop.payload.reason  # type: ignore[union-attr]


def test_a_drained_node_gets_nothing_until_it_is_undrained_and_then_like_any_other() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("node", "a")
    cluster.deploy(4)
    cluster.settle()
    assert cluster.running_on("a") == 0
    cluster.undrain("node", "a")
    cluster.deploy(6)
    cluster.settle()
    assert cluster.running_on("a") == 2


def test_a_drained_node_stays_drained_when_its_process_is_started_again() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("node", "a")
    cluster.settle()
    cluster.fact(ev.NodeJoined("a", "host", 2, "0", 4), by="node.a", incarnation="2")
    cluster.deploy(4)
    cluster.settle()
    assert cluster.state.nodes["a"].incarnation == "2"
    assert cluster.running_on("a") == 0


def test_without_room_elsewhere_a_drained_node_keeps_its_replicas_and_status_says_why() -> None:
    cluster = drained(a=1, b=1)
    cluster.drain("node", "a")
    cluster.settle_with(2)
    assert cluster.running_on("a") == 1
    assert "node a is drained, and no node has room" in cluster.message()
    assert "app.tiny.1" in cluster.message()
    cluster.fact(ev.NodeJoined("c", "host", 1, "0", 1), by="node.c")
    cluster.settle_with(2)
    assert cluster.running_on("a") == 0
    assert cluster.message() == ""


@pytest.mark.parametrize(("clock_s", "left_s"), [(0.0, 30.0), (12.0, 18.0), (-3600.0, 30.0), (3600.0, 0.0)])
def test_no_leaders_clock_gives_streams_more_time_than_the_operator_did(clock_s: float, left_s: float) -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("replica", "app.tiny.1", 30.0)
    cluster.step()
    drain = cluster.state.replicas["app.tiny.1"].drain
    why = leaving(cluster.state.replicas["app.tiny.1"], {})
    assert drain is not None
    assert why is not None
    assert why.left_s(drain.since + timedelta(seconds=clock_s)) == left_s


def test_at_its_deadline_a_drain_waits_for_no_room_any_more() -> None:
    cluster = drained(a=1, b=1)
    cluster.drain("node", "a", 30.0)
    for _ in range(3):
        cluster.step()
    plan = cluster.plan()
    assert not plan.proposals
    assert plan.look_again_at == cluster.state.nodes["a"].drain.ends  # type: ignore[union-attr]
    cluster.passes(30.0)
    (stop,) = [one for one in cluster.step() if isinstance(one, ev.ReplicaStopOrdered)]
    assert (stop.replica, stop.deadline_s) == ("app.tiny.1", 0.0)
    assert "its time is over" in stop.reason


def test_a_node_that_stops_is_emptied_as_a_drained_one() -> None:
    cluster = drained(a=4, b=4)
    cluster.fact(ev.NodeStopping("a"), by="node.a")
    cluster.settle_with(2)
    assert cluster.running_on("a") == 0


def test_replicas_of_an_earlier_revision_that_leave_are_replaced_beside_the_update() -> None:
    cluster = Drained(a=4, b=8)
    cluster.deploy(4)
    cluster.settle()
    on_a = cluster.running_on("a")
    cluster.deploy(4, version=1)
    cluster.fact(ev.NodeStopping("a"), by="node.a")
    cluster.step()
    cluster.step()
    starting = sum(replica.status is ReplicaStatus.STARTING for replica in cluster.state.replicas.values())
    assert starting == on_a == 2
    cluster.settle_with(4)
    assert {replica.revision for replica in cluster.state.replicas.values()} == {2}


def test_a_drained_replica_is_replaced_first_and_then_forgotten() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("replica", "app.tiny.1")
    cluster.settle_with(2)
    assert "app.tiny.1" not in cluster.state.replicas
    assert cluster.running() == 2


def test_an_undrained_replica_stays() -> None:
    cluster = drained(a=1, b=1)
    cluster.drain("replica", "app.tiny.1")
    cluster.settle()
    cluster.undrain("replica", "app.tiny.1")
    cluster.fact(ev.NodeJoined("c", "host", 1, "0", 4), by="node.c")
    cluster.settle()
    assert set(cluster.state.replicas) == {"app.tiny.1", "app.tiny.2"}


def test_whoever_is_gone_by_then_is_not_drained_and_not_asked_for_again() -> None:
    cluster = drained(a=4)
    for kind in ("node", "replica", "gateway"):
        cluster.drain(kind, "nobody")
    cluster.settle()
    assert not cluster.state.drain_requests


def test_a_later_wish_waits_for_its_own_decision() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("node", "a")
    (first,) = cluster.plan().proposals
    cluster.undrain("node", "a")
    cluster.decide(first.payload, first.cause)
    assert cluster.state.nodes["a"].drain is not None
    cluster.settle()
    assert cluster.state.nodes["a"].drain is None


def test_a_replica_that_somebody_else_told_to_stop_is_replaced_at_once_and_is_no_failure() -> None:
    cluster = drained(a=4, b=4)
    cluster.fact(ev.ReplicaDraining("app.tiny.1", "a"), by="node.a")
    assert cluster.state.replicas["app.tiny.1"].status is ReplicaStatus.STOPPING
    (placed,) = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    cluster.fact(ev.ReplicaExited("app.tiny.1", "a", 9, 0, None, False, ""), by="node.a")
    cluster.settle()
    assert "app.tiny.1" not in cluster.state.replicas
    assert deployment(cluster).unstable_starts == 0


def test_an_update_that_finds_no_free_slot_says_so() -> None:
    cluster = Drained(a=2)
    cluster.deploy(2)
    cluster.settle()
    cluster.deploy(2, version=1)
    cluster.settle()
    assert cluster.running() == 2
    assert "2 of an earlier revision wait for a free slot" in cluster.message()


def test_scaling_down_stops_what_does_not_run_yet_before_what_serves() -> None:
    cluster = Drained(a=4)
    cluster.deploy(2)
    cluster.step()
    cluster.step()
    cluster.fact(ev.ReplicaStarted("app.tiny.2", "a", 9), by="node.a")
    cluster.fact(ev.ReplicaReady("app.tiny.2", "a", "h:1", INFO), by="node.a")
    cluster.deploy(1)
    cluster.step()
    (stop,) = cluster.step()
    assert stop == ev.ReplicaStopOrdered("app.tiny.1", "fewer replicas are wanted")


def test_what_does_not_run_yet_replaces_nobody() -> None:
    cluster = Drained(a=4)
    cluster.deploy(1)
    cluster.settle()
    cluster.drain("replica", "app.tiny.1")
    cluster.step()
    cluster.step()
    cluster.deploy(1, version=1)
    cluster.step()
    placed, stop = cluster.step()
    assert isinstance(placed, ev.ReplicaPlaced)
    assert isinstance(stop, ev.ReplicaStopOrdered)
    assert stop.replica == "app.tiny.2"
    cluster.settle_with(1)
    assert [replica.revision for replica in cluster.state.replicas.values()] == [2]


# --- status, and gateways -------------------------------------------------------------------------------


def with_gateway() -> Drained:
    cluster = drained(a=4)
    cluster.fact(ev.GatewayJoined("g", "host", 1, "http://g", "0"), by="gateway.g")
    return cluster


def gateway_status(cluster: Drained) -> GatewayStatus:
    return report(cluster.state, None).gateways[0].status


def test_a_gateway_is_drained_once_it_says_so_and_serves_again_when_undrained() -> None:
    cluster = with_gateway()
    cluster.drain("gateway", "g")
    cluster.settle()
    assert gateway_status(cluster) is GatewayStatus.DRAINING
    drain = cluster.state.gateways["g"].drain
    assert drain is not None
    cluster.fact(ev.GatewayDrained("g", 3), by="gateway.g", cause=drain.event)
    assert gateway_status(cluster) is GatewayStatus.DRAINED
    cluster.undrain("gateway", "g")
    cluster.settle()
    assert gateway_status(cluster) is GatewayStatus.HEALTHY


@pytest.mark.parametrize("late", ["of an earlier drain", "of an earlier process"])
def test_an_answer_to_another_drain_tells_nothing(late: str) -> None:
    cluster = with_gateway()
    cluster.drain("gateway", "g")
    cluster.settle()
    drain = cluster.state.gateways["g"].drain
    assert drain is not None
    if late == "of an earlier drain":
        cluster.undrain("gateway", "g")
        cluster.settle()
        cluster.drain("gateway", "g")
        cluster.settle()
    else:
        cluster.fact(ev.GatewayJoined("g", "host", 2, "http://g", "0"), by="gateway.g", incarnation="2")
    cluster.fact(ev.GatewayDrained("g", 3), by="gateway.g", cause=drain.event)
    assert gateway_status(cluster) is GatewayStatus.DRAINING


def test_a_nodes_drain_shows_in_its_status() -> None:
    cluster = drained(a=4, b=4)
    cluster.drain("node", "a")
    cluster.step()
    assert report(cluster.state, None).nodes[0].status is NodeStatus.DRAINING
    assert "goes once it is replaced" in report(cluster.state, None).replicas[0].message
    cluster.settle()
    assert report(cluster.state, None).nodes[0].status is NodeStatus.DRAINED
    assert cluster.state.nodes["a"].status is MemberStatus.ALIVE
