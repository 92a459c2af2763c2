"""Thresholds that nobody decided, or that lost others, are found; those that were set as asked are not."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.actors.identity import DECISIONS
from holdfast.core import events as ev
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.simulations.checkers.health import LIVENESS
from holdfast.simulations.records import Settle
from tests.unit.simulations.recorded import EPOCH_1, Run, broken, only, well
from tests.unit.support.history import application

FEW = ThresholdChanges(requests_in_flight_threshold=2)
SOON = ThresholdChanges(queue_age_threshold_s=5.0)
BOTH = Thresholds(requests_in_flight_threshold=2, queue_age_threshold_s=5.0)


def asked(run: Run, changes: ThresholdChanges) -> str:
    run.fact(ev.BusyThresholdRequested("gateway-1", "tiny", changes), "gateway.gateway-1")
    return run.history.appended[-1].message_id


def decided(run: Run, cause: str | None, values: Thresholds) -> None:
    event = run.event(ev.BusyThresholdSet("tiny", values), *run.leader, EPOCH_1)
    run.append(DECISIONS, msgspec.structs.replace(event, cause=cause))


def changed(second: Thresholds = BOTH, *, between: ev.ApplicationDeployed | None = None) -> Run:
    """Two requests, of which the second is decided so; perhaps after a deployment."""
    run = well()
    run.at_s = 13.0
    first, other = asked(run, FEW), asked(run, SOON)
    decided(run, first, Thresholds(requests_in_flight_threshold=2))
    if between is not None:
        run.grant(run.wish(ev.DeployRequested(between.application)), between)
    decided(run, other, second)
    run.history.threshold_changed(14.0, "tiny", "requests_in_flight_threshold", 2)
    run.history.threshold_changed(14.0, "tiny", "queue_age_threshold_s", 5.0)
    return run


def found(run: Run, checker: str) -> str:
    """What a checker says."""
    return "\n".join(violation.message for violation in broken(run) if violation.checker == checker)


def test_changes_that_are_made_to_each_other_are_well() -> None:
    assert not broken(changed())


def test_one_that_takes_the_other_back_is_found() -> None:
    assert "not {" in only(broken(changed(Thresholds(queue_age_threshold_s=5.0))), "thresholds")


def test_a_deployment_with_other_thresholds_takes_them_back() -> None:
    again = ev.ApplicationDeployed(application(replicas=2, thresholds=Thresholds(queue_age_threshold_s=1.0)))
    assert not broken(changed(Thresholds(queue_age_threshold_s=5.0), between=again))
    assert "not {" in only(broken(changed(between=again)), "thresholds")


def test_a_deployment_with_the_same_ones_does_not() -> None:
    again = ev.ApplicationDeployed(application(replicas=2))
    assert not broken(changed(between=again))


def test_who_is_told_so_before_it_is_decided_is_found() -> None:
    run = changed()
    run.history.threshold_changed(12.9, "tiny", "queue_age_threshold_s", 5.0)
    assert "nobody had decided it" in only(broken(run), "thresholds")


def test_a_change_that_nobody_decided_is_found() -> None:
    run = changed()
    run.history.threshold_changed(14.0, "tiny", "queue_age_threshold_s", 6.0)
    assert "nobody had decided it" in only(broken(run), "thresholds")


@pytest.mark.parametrize("cause", [None, "nobody"])
def test_thresholds_that_nobody_asked_for_are_found(cause: str | None) -> None:
    run = changed()
    decided(run, cause, BOTH)
    assert "nobody had asked" in only(broken(run), "thresholds")


def test_a_request_that_is_decided_twice_is_found() -> None:
    run = changed()
    other = run.history.appended[-3].message_id
    decided(run, other, BOTH)
    assert "a second time" in only(broken(run), "thresholds")


def test_a_request_that_is_never_decided_is_found() -> None:
    run = changed()
    asked(run, FEW)
    assert "are not decided" in only(broken(run), "liveness")


@pytest.mark.parametrize(("asked_s", "late"), [(4.0, True), (6.0, False)])
def test_thresholds_that_are_asked_for_late_are_no_goal_that_was_missed_but_have_to_be_decided(
    asked_s: float, late: bool
) -> None:
    run = well()
    run.history.settle = Settle(5.0, 10.0)
    run.at_s = asked_s
    wish = asked(run, FEW)
    assert "are not decided" in found(run, LIVENESS)
    run.at_s = 16.0
    decided(run, wish, Thresholds(requests_in_flight_threshold=8))
    assert ("the goal was reached after 11.000 s" in found(run, LIVENESS)) == late
