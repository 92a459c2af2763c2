"""Whether a run gets where it should, stays in its bounds and is quiet; and each way in which it may not."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.simulations.checkers import goal_reached_s
from holdfast.simulations.records import GATEWAY, Reach, Settle
from tests.unit.simulations.recorded import Run, broken, only, well
from tests.unit.support.history import application

ALL = ("app.tiny.1", "app.tiny.2")


# --- bounds ---------------------------------------------------------------------------------------------


def test_sizes_up_to_their_bound_pass_and_beyond_it_are_found() -> None:
    run = well()
    run.history.sample(3.0, "gateway-1", "queue", 16, 16)
    assert broken(run) == []
    run.history.sample(4.0, "gateway-1", "queue", 17, 16)
    run.history.sample(5.0, "gateway-1", "queue", 2, 16)
    assert only(broken(run), "bounds") == "gateway-1: queue has 17, its bound is 16"
    assert broken(run)[0].at_s == 4.0


# --- liveness -------------------------------------------------------------------------------------------


def test_the_goal_is_reached_when_the_log_and_the_gateways_have_it() -> None:
    assert goal_reached_s(well().history) == 12.0


def test_a_goal_that_is_reached_after_the_bound_is_found() -> None:
    run = well()
    run.history.settle = Settle(5.0, 6.9)
    assert "reached after 7.000 s, and 6.9 s are the bound" in only(broken(run), "liveness")
    run.history.settle = Settle(5.0, 7.1)
    assert broken(run) == []


def test_a_goal_that_was_left_again_was_reached_late() -> None:
    run = well()
    run.at_s = 20.0
    wish = run.wish(ev.DeployRequested(application(replicas=2)))
    assert "app waits for a decision" in only(broken(run), "liveness")
    run.at_s = 21.0
    run.grant(wish, ev.ApplicationDeployed(application(replicas=2)))
    assert "reached after 11.000 s" in only(broken(run), "liveness")
    assert goal_reached_s(run.history) == 21.0


def test_a_replica_too_few_is_found() -> None:
    run = well()
    run.fact(ev.ReplicaExited("app.tiny.2", "node-2", 112, None, "SIGKILL", False, ""), "node.node-2")
    run.processes["app.tiny.2"].ended(12.0, -9, "fault")
    assert "tiny has 1 of 2 replicas running" in only(broken(run), "liveness")


def test_a_replica_of_an_older_revision_is_found() -> None:
    run = well()
    other = application(replicas=2, version=1)
    run.grant(run.wish(ev.DeployRequested(other)), ev.ApplicationDeployed(other))
    assert "tiny has 0 of 2 replicas running" in only(broken(run), "liveness")


def test_a_replica_that_nobody_wants_is_found() -> None:
    run = well()
    run.grant(run.wish(ev.DeleteRequested("app")), ev.ApplicationDeleted("app"))
    assert "app.tiny.1 is RUNNING, and nobody wants it" in only(broken(run), "liveness")


def test_a_gateway_that_does_not_reach_a_replica_is_found() -> None:
    run = well()
    run.history.gateway_reaches(20.0, "gateway-1", ALL[:1])
    assert "gateway-1 does not reach app.tiny.2" in only(broken(run), "liveness")


def test_a_gateway_that_does_not_tell_whom_it_reaches_is_found() -> None:
    run = well()
    run.history.reaches.clear()
    assert "gateway-1 does not reach app.tiny.1, app.tiny.2" in only(broken(run), "liveness")


def test_what_an_earlier_life_of_a_gateway_reached_does_not_count() -> None:
    run = well()
    run.processes["gateway-1"].ended(13.0, -9, "fault")
    run.at_s = 14.0
    run.decide(ev.GatewayLost("gateway-1", "i1", "its process ended"))
    run.gateway("gateway-1", 900)
    assert "gateway-1 does not reach" in only(broken(run), "liveness")
    run.history.gateway_reaches(14.5, "gateway-1", ALL)
    assert broken(run) == []


def test_a_cluster_without_a_gateway_is_found() -> None:
    run = well()
    run.processes["gateway-1"].ended(13.0, -9, "fault")
    run.at_s = 14.0
    run.decide(ev.GatewayLost("gateway-1", "i1", "its process ended"))
    assert "no gateway runs" in only(broken(run), "liveness")


def test_without_a_time_to_settle_no_goal_is_asked_for() -> None:
    run = well()
    run.history.settle = None
    run.grant(run.wish(ev.DeleteRequested("app")), ev.ApplicationDeleted("app"))
    assert broken(run) == []


def test_a_healthy_core_has_to_reach_what_runs_in_it() -> None:
    run = well()
    run.history.settle = Settle(10.0, 5.0, ("node-1", "gateway-1"))
    run.history.reaches[:] = [Reach(12.0, "gateway-1", ALL[:1])]
    run.history.process_began(1.0, "gateway-2", GATEWAY, "host", 901)
    assert broken(run) == []
    run.history.reaches[:] = [Reach(12.0, "gateway-1", ALL[1:])]
    assert "gateway-1 does not reach app.tiny.1" in only(broken(run), "liveness")
    run.history.settle = Settle(10.0, 5.0, ("node-3", "gateway-1"))
    assert broken(run) == [], "they live, if not there"
    for name, host in zip(ALL, ("host-node-1", "host-node-2"), strict=True):
        run.history.fault(9.0, "partition", host)  # else their nodes would have to notice
        run.processes[name].froze(9.0)
    assert "tiny has no replica that lives" in only(broken(run), "liveness")


# --- quiet ----------------------------------------------------------------------------------------------


def test_an_exception_that_nobody_handled_is_found() -> None:
    run = well()
    run.history.not_handled(5.0, "node-1", "ValueError: what")
    assert only(broken(run), "quiet") == "node-1: nobody handled ValueError: what"


def ended(status: int, by: str = "") -> Run:
    """All is well, but a second gateway's process ended at 8 s, and nobody has the time to settle that."""
    run = well()
    run.history.settle = None
    run.at_s = 3.0
    run.gateway("gateway-2", 902)
    run.processes["gateway-2"].ended(8.0, status, by)
    return run


def test_a_process_that_ends_in_failure_for_no_reason_is_found() -> None:
    assert "gateway-2 (process 902) ended with status 1" in only(broken(ended(1)), "quiet")


def test_a_process_may_end_well_or_be_ended() -> None:
    assert broken(ended(0)) == []
    assert broken(ended(1, "kill")) == []
    assert broken(ended(-9)) == []


@pytest.mark.parametrize("target", ["gateway-2", "host-gateway-2", "node-1>host-gateway-2", "*"])
def test_no_fault_explains_that_a_member_ends_in_failure(target: str) -> None:
    run = ended(1)
    run.history.fault(4.0, "partition", target)
    assert "nothing explains it" in only(broken(run), "quiet")


@pytest.mark.parametrize(
    ("kind", "target", "until_s", "found"),
    [
        ("launch failure", "host-node-2", None, False),
        ("launch failure", "host-node-2", 25.0, False),
        ("launch failure", "host-node-2", 20.0, True),
        ("launch failure", "host-node-1", None, True),
        ("engine hangs", "app.tiny.2", None, False),
        ("engine hangs", "host-node-2", None, True),
        ("freeze", "app.tiny.2", None, True),
        ("partition", "host-node-2>host-gateway-1", None, True),
    ],
)
def test_a_replica_may_fail_by_what_breaks_its_engine_or_keeps_it_from_starting(
    kind: str, target: str, until_s: float | None, found: bool
) -> None:
    run = well()
    fault = run.history.fault(3.0, kind, target, until_s=until_s)
    run.processes["app.tiny.2"].ended(28.0, 1)
    assert ("quiet" in {one.checker for one in broken(run)}) is found
    fault.struck = False
    assert "nothing explains it" in only([one for one in broken(run) if one.checker == "quiet"], "quiet")


def test_an_engine_may_fail_by_a_fault_of_long_ago() -> None:
    run = well()
    run.history.fault(3.0, "engine out of memory", "app.tiny.2", until_s=3.0)
    run.processes["app.tiny.2"].ended(28.0, 1)
    assert broken(run) == []
    run.processes["app.tiny.1"].ended(28.0, 1)
    assert "app.tiny.1 (process 111) ended with status 1" in only(broken(run), "quiet")


def test_a_fault_that_comes_later_explains_nothing() -> None:
    run = well()
    run.history.fault(28.5, "engine out of memory", "app.tiny.2", until_s=28.5)
    run.processes["app.tiny.2"].ended(28.0, 1)
    assert "nothing explains it" in only(broken(run), "quiet")


def test_a_member_that_the_log_holds_for_gone_may_end() -> None:
    run = ended(1)
    run.at_s = 7.0
    run.decide(ev.GatewayLost("gateway-2", "i1", "its lease expired"))
    assert broken(run) == []


def test_a_member_that_a_newer_incarnation_replaced_may_end() -> None:
    run = ended(1)
    run.at_s = 7.0
    run.fact(ev.GatewayJoined("gateway-2", "host", 903, "http://x", "0"), "gateway.gateway-2", "i2")
    assert broken(run) == []


def test_a_process_that_finds_its_name_taken_may_end() -> None:
    run = well()
    process = run.history.process_began(5.0, "gateway-1", GATEWAY, "host-x", 904)
    process.ended(6.0, 2)
    assert broken(run) == []
    process.name = "gateway-3"
    assert "nothing explains it" in only(broken(run), "quiet")
