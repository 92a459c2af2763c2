"""Thresholds that are set at run time: asked for, decided, in force until others are deployed."""

from __future__ import annotations

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.reconcile import Evidence, reconcile
from holdfast.core.thresholds import NONE_SET, Thresholds
from tests.unit.support.history import History, application

LOW, HIGH = Thresholds(active_decode_blocks_threshold=0.1), Thresholds(queue_age_threshold_s=9.0)


def deployed() -> History:
    history = History()
    history.decide(ev.LeaderElected("a", "1"), epoch=1)
    history.decide(ev.ApplicationDeployed(application(replicas=0)))
    return history


def holds(state: ClusterState) -> Thresholds:
    return state.applications["app"].deployments["tiny"].thresholds


def test_what_is_asked_for_is_decided_once_with_its_cause() -> None:
    history = deployed()
    asked = history.fact(ev.BusyThresholdRequested("g", "tiny", LOW), by="gateway.g")
    plan = reconcile(history.state, Evidence(), history.now)
    assert [(one.payload, one.cause) for one in plan.proposals] == [(ev.BusyThresholdSet("tiny", LOW), asked)]
    assert holds(history.state) == NONE_SET
    history.decide(ev.BusyThresholdSet("tiny", LOW), cause=asked)
    assert holds(history.state) == LOW
    assert not reconcile(history.state, Evidence(), history.now).proposals


def test_the_last_that_is_asked_for_is_what_holds_in_the_end() -> None:
    history = deployed()
    first = history.fact(ev.BusyThresholdRequested("g", "tiny", LOW), by="gateway.g")
    second = history.fact(ev.BusyThresholdRequested("h", "tiny", HIGH), by="gateway.h")
    history.decide(ev.BusyThresholdSet("tiny", LOW), cause=first)
    assert history.state.threshold_requests["tiny"].event == second
    history.decide(ev.BusyThresholdSet("tiny", HIGH), cause=second)
    assert holds(history.state) == HIGH
    assert not history.state.threshold_requests


def test_they_outlast_a_change_of_everything_but_the_configured_ones() -> None:
    history = deployed()
    history.decide(ev.BusyThresholdSet("tiny", LOW))
    history.decide(ev.ApplicationDeployed(application(replicas=3)))
    assert holds(history.state) == LOW
    history.decide(ev.ApplicationDeployed(application(replicas=3, thresholds=HIGH)))
    assert holds(history.state) == NONE_SET


def test_those_of_a_model_that_there_is_not_change_nothing() -> None:
    history = deployed()
    asked = history.fact(ev.BusyThresholdRequested("g", "other", LOW), by="gateway.g")
    history.decide(ev.BusyThresholdSet("other", LOW), cause=asked)
    assert not history.state.threshold_requests
    assert holds(history.state) == NONE_SET
