"""Replicas that are called unhealthy though nothing befell them are found, by when their node said so."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.simulations.checkers.sickness import EXPLAINS_S, LOST_EXPLAINS_S, SICKNESS
from tests.unit.simulations.recorded import Run, broken, only, well

REPLICA = "app.tiny.1"
OVER_S = 8.0


def called_unhealthy(run: Run, said_s: float, appended_s: float, kind: str = "canary") -> None:
    """The replica's node finds it sick, and its log takes that at a later time."""
    run.at_s = said_s
    event = run.event(ev.ReplicaUnhealthy(REPLICA, "node-1", kind, "no token"), "node-1", "i1")
    run.at_s = appended_s
    run.append("facts.node.node-1", event)
    run.fact(ev.ReplicaHealthy(REPLICA, "node-1"), "node.node-1")


def said_of(run: Run) -> str:
    """What this checker says, whatever the others find."""
    return "\n".join(one.message for one in broken(run) if one.checker == SICKNESS)


def test_a_replica_that_is_called_unhealthy_for_nothing_is_found() -> None:
    run = well()
    called_unhealthy(run, 9.0, 9.0)
    message = only(broken(run), "sickness")
    assert f"{REPLICA} is called unhealthy (canary: no token), and nothing befell it" in message


@pytest.mark.parametrize("target", ["app.tiny.2", "node-1"])
def test_what_befell_another_is_no_reason(target: str) -> None:
    run = well()
    run.history.fault(7.0, "barren engine", target, until_s=OVER_S)
    called_unhealthy(run, 9.0, 9.0)
    assert only(broken(run), "sickness")


def test_a_fault_of_its_own_is_a_reason_for_a_while() -> None:
    for after_s, is_explained in ((EXPLAINS_S - 0.1, True), (EXPLAINS_S + 0.1, False)):
        run = well()
        run.history.fault(7.0, "barren engine", REPLICA, until_s=OVER_S)
        called_unhealthy(run, OVER_S + after_s, OVER_S + after_s)
        assert (broken(run) == []) == is_explained


def test_what_waited_for_the_log_is_judged_by_when_it_was_said() -> None:
    run = well()
    run.history.fault(7.0, "barren engine", REPLICA, until_s=OVER_S)
    called_unhealthy(run, OVER_S, OVER_S + EXPLAINS_S + 1.0)
    assert broken(run) == []


@pytest.mark.parametrize(("appended_s", "is_explained"), [(20.0, True), (19.0, False)])
def test_what_waited_behind_something_else_was_found_earlier_than_it_is_stamped(
    appended_s: float, is_explained: bool
) -> None:
    run = well()
    run.history.fault(7.0, "barren engine", REPLICA, until_s=OVER_S)
    run.at_s = OVER_S + EXPLAINS_S - 1.0
    other = run.event(ev.ReplicaHealthy(REPLICA, "node-1"), "node-1", "i1")
    run.at_s = appended_s
    run.append("facts.node.node-1", other)
    called_unhealthy(run, 20.0, 20.0)
    assert (said_of(run) == "") is is_explained


def test_a_clock_that_is_wrong_says_nothing_about_when_it_was_said() -> None:
    run = well()
    run.history.fault(7.0, "barren engine", REPLICA, until_s=OVER_S)
    run.history.fault(7.0, "clock skew", "host-node-1", until_s=20.0)
    said_s = OVER_S + EXPLAINS_S + 1.0
    run.at_s = said_s
    event = run.event(ev.ReplicaUnhealthy(REPLICA, "node-1", "canary", "no token"), "node-1", "i1")
    run.append("facts.node.node-1", msgspec.structs.replace(event, time=event.time - timedelta(seconds=9.0)))
    run.fact(ev.ReplicaHealthy(REPLICA, "node-1"), "node.node-1")
    assert only(broken(run), "sickness")


def test_of_a_replica_that_ended_it_was_said_before_that_whatever_the_nodes_clock_shows() -> None:
    run = well()
    run.history.fault(7.0, "barren engine", REPLICA, until_s=OVER_S)
    run.history.fault(7.0, "clock jump", "host-node-1", until_s=7.0)
    called_unhealthy(run, OVER_S, OVER_S + EXPLAINS_S + 1.0)
    assert "nothing befell it" in said_of(run)
    run.processes[REPLICA].ended(OVER_S + 2.0, 1)
    assert "nothing befell it" not in said_of(run)


@pytest.mark.parametrize(
    ("kind", "after_s", "found"),
    [
        ("start", LOST_EXPLAINS_S + 1.0, False),
        ("canary", LOST_EXPLAINS_S - 1.0, False),
        ("canary", LOST_EXPLAINS_S + 1.0, True),
        ("check_health", EXPLAINS_S + 1.0, True),
    ],
)
def test_a_lost_stream_explains_a_start_that_never_gets_ready_and_tokens_that_stay_away(
    kind: str, after_s: float, found: bool
) -> None:
    run = well()
    run.history.fault(2.0, "engine loses stream", REPLICA, until_s=2.0)
    called_unhealthy(run, 2.0 + after_s, 2.0 + after_s, kind)
    assert [violation.checker for violation in broken(run)] == ["sickness"] * found
