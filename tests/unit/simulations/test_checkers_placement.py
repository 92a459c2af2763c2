"""Replicas: what the log and the processes may come to, and each way in which they may not agree."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.simulations.checkers.placement import ORPHAN_GRACE_S, SETTLED_S, UNREAD_S
from holdfast.simulations.records import REPLICA, Settle
from tests.unit.simulations.recorded import INFO, Run, broken, only, well
from tests.unit.support.history import application


def deploy(run: Run, replicas: int, version: int = 0, name: str = "app") -> None:
    """Another goal for the application, or another application."""
    run.decide(ev.ApplicationDeployed(application(name, replicas=replicas, version=version)))


def checkers(run: Run) -> dict[str, str]:
    """What each checker says that found something."""
    found: dict[str, str] = {}
    for violation in broken(run):
        found[violation.checker] = f"{found.get(violation.checker, '')}{violation.message}\n"
    return found


# --- orphans --------------------------------------------------------------------------------------------


def test_a_process_that_the_log_calls_ended_is_found_after_a_while() -> None:
    run = well()
    run.history.settle = Settle(0.0, 5.0)
    run.at_s = 5.0
    run.fact(ev.ReplicaExited("app.tiny.1", "node-1", 111, 0, None, True, ""), "node.node-1")
    assert "app.tiny.1 still runs on host-node-1 (process 111)" in checkers(run)["orphans"]
    run.history.ended_s = 6.0
    assert "orphans" not in checkers(run)


def test_a_process_that_the_log_never_knew_is_found() -> None:
    run = well()
    run.history.process_began(5.0, "app.tiny.9", REPLICA, "host-node-1", 999, replica="app.tiny.9", parent=101)
    assert "app.tiny.9 still runs" in checkers(run)["orphans"]


def test_another_process_of_a_replica_than_the_one_in_the_log_is_found() -> None:
    run = well()
    run.history.process_began(5.0, "app.tiny.1", REPLICA, "host-node-1", 999, replica="app.tiny.1", parent=101)
    found = checkers(run)
    assert "app.tiny.1 still runs on host-node-1 (process 999)" in found["orphans"]
    assert "runs as process 111 already or did" in found["placements"]


def test_an_orphan_has_its_time_of_grace_after_its_nodes_end() -> None:
    run = well()
    run.at_s = 5.0
    run.processes["node-1"].ended(5.0, -9, "fault")
    run.decide(ev.NodeLost("node-1", "i1", "its lease expired"))
    run.history.ended_s = 5.0 + ORPHAN_GRACE_S
    assert "orphans" not in checkers(run)
    run.history.ended_s = 5.0 + ORPHAN_GRACE_S + 20.0
    assert "app.tiny.1 still runs" in checkers(run)["orphans"]


def test_a_frozen_orphan_can_not_end_and_is_left_alone() -> None:
    run = well()
    process = run.history.process_began(5.0, "x", REPLICA, "host-node-1", 999, replica="app.tiny.9", parent=101)
    process.froze(6.0)
    assert "orphans" not in checkers(run)
    process.thawed(7.0)
    assert "orphans" in checkers(run)


def test_with_a_healthy_core_only_that_is_looked_at() -> None:
    run = well()
    run.history.process_began(5.0, "x", REPLICA, "host-node-2", 999, replica="app.tiny.9", parent=102)
    assert "orphans" in checkers(run)
    run.history.settle = Settle(10.0, 5.0, ("node-1", "gateway-1"))
    assert "orphans" not in checkers(run)


def test_a_replica_that_the_log_has_running_without_a_process_is_found_after_a_while() -> None:
    run = well()
    run.processes["app.tiny.2"].ended(20.0, -9, "fault")
    run.history.ended_s = 20.0 + SETTLED_S
    assert broken(run) == []
    run.history.ended_s += 0.001
    assert "the log has app.tiny.2 as RUNNING in process 112, which ended at 20.000 s" in only(broken(run), "orphans")


def test_without_a_time_to_settle_nothing_is_an_orphan() -> None:
    run = well()
    run.processes["app.tiny.2"].ended(20.0, -9, "fault")
    run.history.settle = None
    assert broken(run) == []


# --- placements -----------------------------------------------------------------------------------------


def test_a_replica_that_is_placed_twice_is_found() -> None:
    run = well()
    deploy(run, 3)
    run.fact(ev.ReplicaExited("app.tiny.2", "node-2", 112, 1, None, False, ""), "node.node-2")
    run.place(2, "node-2")
    assert "app.tiny.2 is placed a second time" in checkers(run)["placements"]


def test_a_process_for_a_decision_of_a_deposed_leader_is_found() -> None:
    run = well()
    deploy(run, 3)
    run.decide(ev.LeaderElected("node-2", "i1"), epoch=11, by=("node-2", "i1"))
    run.starts(run.place(3, "node-1"), "node-1", 113)
    assert "where no decision that counts had placed it" in checkers(run)["placements"]


def test_a_process_that_starts_before_its_placement_is_found() -> None:
    run = well()
    run.processes["app.tiny.1"].began_s = 0.5
    assert "where no decision that counts had placed it" in only(broken(run), "placements")


def test_a_process_on_another_node_or_incarnation_than_the_placement_says_is_found() -> None:
    run = well()
    run.processes["app.tiny.1"].parent = 102
    assert "by node-2 i1, and was placed on node-1 i1" in only(broken(run), "placements")


# --- capacity -------------------------------------------------------------------------------------------


def test_more_replicas_in_the_log_than_the_node_has_slots_are_found() -> None:
    run = well()
    deploy(run, 4)
    run.place(3, "node-1")
    assert "capacity" not in checkers(run)
    run.place(4, "node-1")
    assert "node-1 has 3 replicas in 2 slots" in checkers(run)["capacity"]


def test_a_replica_that_is_stopping_holds_its_slot() -> None:
    run = well()
    deploy(run, 4)
    run.place(3, "node-1")
    run.decide(ev.ReplicaStopOrdered("app.tiny.1", "?"))
    run.place(4, "node-1")
    assert "node-1 has 3 replicas in 2 slots" in checkers(run)["capacity"]


def test_more_processes_than_the_node_has_slots_are_found() -> None:
    run = well()
    for pid in (201, 202):
        run.history.process_began(5.0, "x", REPLICA, "host-node-1", pid, parent=101)
    assert "node-1 runs 3 replicas in 2 slots" in checkers(run)["capacity"]
    run.processes["app.tiny.1"].ended(4.9, 0, "node-1")
    assert "capacity" not in checkers(run)


def test_more_replicas_than_are_wanted_are_found() -> None:
    run = well()
    run.place(3, "node-1")
    assert "tiny has 3 replicas, and 2 are wanted" in checkers(run)["capacity"]


def test_an_update_may_start_one_replica_at_a_time() -> None:
    run = well()
    deploy(run, 2, version=1)
    run.place(3, "node-1")
    assert "capacity" not in checkers(run)
    run.place(4, "node-2")
    assert "tiny is being updated, and 2 new replicas start at once" in checkers(run)["capacity"]


def late_start(run: Run, number: int) -> None:
    """A replica's start takes too long; it is replaced, and gets ready before the leader reads of that."""
    run.at_s += 20.0
    slow = run.place(number, "node-1")
    run.fact(ev.ReplicaStarted(slow, "node-1", 99), "node.node-1")
    run.fact(ev.ReplicaUnhealthy(slow, "node-1", "start", "it did not get ready"), "node.node-1")


@pytest.mark.parametrize(("after_s", "found"), [(UNREAD_S - 0.1, False), (UNREAD_S + 0.1, True)])
def test_a_replica_that_gets_ready_late_may_be_replaced_for_a_while(after_s: float, found: bool) -> None:
    run = well()
    run.node("node-3", 103, slots=4)
    deploy(run, 3)
    late_start(run, 3)
    run.fact(ev.ReplicaReady("app.tiny.3", "node-1", "node-1:99", INFO), "node.node-1")
    run.at_s += after_s
    run.place(4, "node-3")
    assert ("tiny has 4 replicas, and 3 are wanted" in checkers(run).get("capacity", "")) == found


# --- losses ---------------------------------------------------------------------------------------------


def many(nodes: int) -> Run:
    """As many nodes as said, with a replica each."""
    run = Run()
    for number in range(1, nodes + 1):
        run.node(f"node-{number}", 100 + number)
    run.decide(ev.LeaderElected("node-1", "i1"))
    deploy(run, nodes)
    for number in range(1, nodes + 1):
        run.starts(run.place(number, f"node-{number}"), f"node-{number}", 200 + number)
    return run


def lose(run: Run, *numbers: int, reason: str = "its lease expired") -> None:
    """Give these nodes up."""
    for number in numbers:
        run.decide(ev.NodeLost(f"node-{number}", "i1", reason))


def test_a_fifth_of_the_replicas_may_be_given_up_at_once_and_no_more() -> None:
    run = many(20)
    lose(run, 2, 3, 4, 5)
    assert "losses" not in checkers(run)
    lose(run, 6, 7)
    assert "node-7 is given up for its lease with 1 replicas, 5 within 5 s" in checkers(run)["losses"]


def test_a_node_may_always_be_given_up_and_the_next_one_in_the_next_interval() -> None:
    run = many(3)
    lose(run, 2)
    run.at_s += 5.1
    lose(run, 3)
    assert "losses" not in checkers(run)


def test_two_of_three_nodes_at_once_are_too_many() -> None:
    run = Run()
    for number in (1, 2, 3):
        run.node(f"node-{number}", 100 + number)
    run.decide(ev.LeaderElected("node-1", "i1"))
    deploy(run, 6)
    for number in range(1, 7):
        node = f"node-{(number + 1) // 2}"
        run.starts(run.place(number, node), node, 200 + number)
    lose(run, 2)
    assert "losses" not in checkers(run)
    lose(run, 3)
    assert "node-3 is given up for its lease with 2 replicas, 2 within 5 s" in checkers(run)["losses"]


def test_nodes_whose_process_was_seen_to_end_are_not_limited() -> None:
    run = many(10)
    lose(run, *range(2, 10), reason="its process ended")
    assert "losses" not in checkers(run)


def test_nodes_without_replicas_do_not_count() -> None:
    run = many(3)
    for number in range(4, 12):
        run.node(f"node-{number}", 100 + number)
    lose(run, *range(4, 12))
    assert "losses" not in checkers(run)


def test_a_log_of_more_members_than_a_small_mapping_holds_folds_the_same_from_snapshots() -> None:
    assert "fold" not in checkers(many(140))


# --- drains ---------------------------------------------------------------------------------------------


def test_a_replica_that_ends_in_order_with_streams_and_time_left_is_found() -> None:
    run = well()
    replica = run.processes["app.tiny.1"]
    replica.told(28.0, 3.0)
    replica.told(29.0, 9.0)
    replica.ended(29.5, 0, "node-1", streams_left=2)
    assert "app.tiny.1 ended with 2 streams, 1.500 s after it was told to stop" in only(broken(run), "drains")


@pytest.mark.parametrize(("told_s", "found"), [(None, "was not told"), (24.0, "told to stop at 24.000 s"), (22.0, "")])
def test_a_gateway_that_sends_clients_away_before_its_time_is_over_is_found(told_s: float | None, found: str) -> None:
    run = well()
    if told_s is not None:
        run.processes["gateway-1"].told(told_s, 3.0)
    run.history.exchange(20.0, 103, 40.0).sent_away_s = 25.0
    run.history.exchanges[-1].ended_s = 25.0
    assert found in only(broken(run), "drains") if found else broken(run) == []


@pytest.mark.parametrize(
    ("began_s", "lifted_s", "found"),
    [(20.0, 30.0, False), (20.0, 24.0, False), (20.0, 22.5, True), (24.5, 24.0, True), (24.5, 30.0, False)],
)
def test_a_slow_client_may_read_that_it_was_turned_away_when_the_drain_is_lifted(
    began_s: float, lifted_s: float, found: bool
) -> None:
    run = well()
    run.at_s = 21.0
    run.decide(ev.DrainOrdered("gateway", "gateway-1", "finish", 2.0))
    run.history.exchange(began_s, 103, 40.0).sent_away_s = 25.0
    run.history.exchanges[-1].ended_s = 25.0
    run.at_s = lifted_s
    run.decide(ev.DrainLifted("gateway", "gateway-1"))
    assert ("sends a client away" in checkers(run).get("drains", "")) is found


def test_a_replica_may_end_without_streams_or_when_its_time_is_over_or_by_force() -> None:
    run = well()
    replica = run.processes["app.tiny.1"]
    replica.told(26.0, 3.0)
    replica.ended(27.0, 0, "node-1")
    assert broken(run) == []
    replica.ended(29.0, 0, "node-1", streams_left=2)
    assert broken(run) == []
    replica.ended(27.0, -9, "fault", streams_left=2)
    assert broken(run) == []


# --- updates --------------------------------------------------------------------------------------------


def test_an_update_that_stops_old_replicas_before_new_ones_run_is_found() -> None:
    run = well()
    deploy(run, 2, version=1)
    run.at_s = 6.0
    for number in (1, 2):
        run.decide(ev.ReplicaStopOrdered(f"app.tiny.{number}", "a newer revision runs"))
    assert "app.tiny.2 is stopped for a newer one, and 0 of 2 remain" in checkers(run)["updates"]


@pytest.mark.parametrize(("after_s", "found"), [(UNREAD_S - 1.0, False), (UNREAD_S + 1.0, True)])
def test_what_ended_just_before_may_be_news_to_the_leader(after_s: float, found: bool) -> None:
    run = well()
    deploy(run, 2, version=1)
    run.at_s = 6.0
    run.fact(ev.ReplicaExited("app.tiny.1", "node-1", 111, 1, None, False, ""), "node.node-1")
    run.at_s += after_s
    run.decide(ev.ReplicaStopOrdered("app.tiny.2", "a newer revision runs"))
    assert ("updates" in checkers(run)) is found


def test_scaling_down_is_no_update() -> None:
    run = well()
    deploy(run, 0)
    for number in (1, 2):
        run.decide(ev.ReplicaStopOrdered(f"app.tiny.{number}", "fewer replicas are wanted"))
    assert "updates" not in checkers(run)
