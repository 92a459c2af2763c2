"""Thresholds that are set at run time: asked for, decided, in force until others are deployed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.core import overloads
from holdfast.core.cluster import ClusterState
from holdfast.core.entries import decode_record, encode_event
from holdfast.core.errors import CorruptLog
from holdfast.core.ports import LogEntry
from holdfast.core.reconcile import Evidence, Proposal, reconcile
from holdfast.core.thresholds import NONE_SET, ThresholdChanges, Thresholds
from tests.unit.support.history import History, application

LOW, HIGH = Thresholds(active_decode_blocks_threshold=0.1), Thresholds(queue_age_threshold_s=9.0)
LOWER, HIGHER = ThresholdChanges(active_decode_blocks_threshold=0.1), ThresholdChanges(queue_age_threshold_s=9.0)


def deployed() -> History:
    history = History()
    history.decide(ev.LeaderElected("a", "1"), epoch=1)
    history.decide(ev.ApplicationDeployed(application(replicas=0)))
    return history


def holds(state: ClusterState) -> Thresholds:
    return state.applications["app"].deployments["tiny"].thresholds


def asks(history: History, changes: ThresholdChanges, by: str = "g", model: str = "tiny") -> str:
    return history.fact(ev.BusyThresholdRequested(by, model, changes), by=f"gateway.{by}")


def planned(history: History) -> list[Proposal]:
    return reconcile(history.state, Evidence(), history.now).proposals


def decide_all(history: History) -> None:
    for proposal in planned(history):
        assert isinstance(proposal.payload, ev.Decision)
        history.decide(proposal.payload, cause=proposal.cause)


def test_what_is_asked_for_is_decided_once_with_its_cause() -> None:
    history = deployed()
    asked = asks(history, LOWER)
    assert [(one.payload, one.cause) for one in planned(history)] == [(ev.BusyThresholdSet("tiny", LOW), asked)]
    assert holds(history.state) == NONE_SET
    decide_all(history)
    assert holds(history.state) == LOW
    assert not planned(history)


def test_changes_that_are_asked_for_at_once_all_hold_in_the_end_each_by_its_own_decision() -> None:
    history = deployed()
    first, second = asks(history, LOWER, by="g"), asks(history, HIGHER, by="h")
    both = Thresholds(active_decode_blocks_threshold=0.1, queue_age_threshold_s=9.0)
    assert [(one.payload, one.cause) for one in planned(history)] == [
        (ev.BusyThresholdSet("tiny", LOW), first),
        (ev.BusyThresholdSet("tiny", both), second),
    ]
    decide_all(history)
    assert holds(history.state) == both
    assert not history.state.threshold_requests


def test_one_that_comes_between_a_request_and_its_decision_is_made_to_what_that_left() -> None:
    history = deployed()
    first = asks(history, LOWER)
    second = asks(history, HIGHER)
    history.decide(ev.BusyThresholdSet("tiny", LOW), cause=first)
    assert list(history.state.threshold_requests) == [second]
    decide_all(history)
    assert holds(history.state) == Thresholds(active_decode_blocks_threshold=0.1, queue_age_threshold_s=9.0)


def test_the_last_that_is_asked_for_is_what_holds_of_one_threshold_and_none_takes_it_back() -> None:
    history = deployed()
    for value in (0.1, 0.2, 0.3):
        asks(history, ThresholdChanges(active_decode_blocks_threshold=value))
    decide_all(history)
    assert holds(history.state) == Thresholds(active_decode_blocks_threshold=0.3)
    asks(history, ThresholdChanges(active_decode_blocks_threshold=None))
    decide_all(history)
    assert holds(history.state) == NONE_SET


def test_changes_wait_for_what_is_deployed_which_may_take_others_back() -> None:
    history = deployed()
    history.decide(ev.BusyThresholdSet("tiny", LOW))
    history.fact(ev.DeployRequested(application(replicas=0, thresholds=HIGH)), by="operator.o")
    asks(history, ThresholdChanges(requests_in_flight_threshold=7))
    decide_all(history)
    assert holds(history.state) == NONE_SET
    decide_all(history)
    assert holds(history.state) == Thresholds(requests_in_flight_threshold=7)


def test_no_more_wait_than_may() -> None:
    history = deployed()
    for _ in range(overloads.REQUESTS_MAX):
        last = asks(history, LOWER)
    asks(history, HIGHER)
    assert len(history.state.threshold_requests) == overloads.REQUESTS_MAX
    assert list(history.state.threshold_requests)[-1] == last


def test_they_outlast_a_change_of_everything_but_the_configured_ones() -> None:
    history = deployed()
    history.decide(ev.BusyThresholdSet("tiny", LOW))
    history.decide(ev.ApplicationDeployed(application(replicas=3)))
    assert holds(history.state) == LOW
    history.decide(ev.ApplicationDeployed(application(replicas=3, thresholds=HIGH)))
    assert holds(history.state) == NONE_SET


def test_those_of_a_model_that_there_is_not_change_nothing() -> None:
    history = deployed()
    asks(history, LOWER, model="other")
    decide_all(history)
    assert not history.state.threshold_requests
    assert holds(history.state) == NONE_SET


# --- logs of schema 2 -----------------------------------------------------------------------------------


def old(payload: dict[str, Any]) -> ev.Payload:
    """What an event of schema 2 with this payload says today."""
    history = History()
    history.decide(ev.LeaderElected("a", "1"), epoch=1)
    raw = msgspec.json.decode(encode_event(history.records[0].event))
    data = msgspec.json.encode({**raw, "schema": 2, "payload": payload})
    return decode_record(LogEntry(1, "facts.gateway.g", data, "id")).event.payload


def requested(thresholds: Thresholds) -> dict[str, Any]:
    return {
        "type": "BusyThresholdRequested",
        "gateway": "g",
        "model": "tiny",
        "thresholds": msgspec.structs.asdict(thresholds),
    }


def test_who_asked_before_schema_3_asked_for_all_thresholds() -> None:
    history = deployed()
    history.decide(ev.BusyThresholdSet("tiny", HIGH))
    fact = old(requested(LOW))
    assert isinstance(fact, ev.BusyThresholdRequested)
    history.fact(fact, by="gateway.g")
    decide_all(history)
    assert holds(history.state) == LOW


def test_of_several_requests_before_schema_3_the_last_was_decided_and_none_is_again() -> None:
    history = deployed()
    for thresholds in (HIGH, LOW):
        fact = old(requested(thresholds))
        assert isinstance(fact, ev.BusyThresholdRequested)
        last = history.fact(fact, by="gateway.g")
    elsewhere = asks(history, LOWER, model="other")
    history.decide(ev.BusyThresholdSet("tiny", LOW), cause=last)
    assert holds(history.state) == LOW
    assert list(history.state.threshold_requests) == [elsewhere]


@pytest.mark.parametrize("payload", [{"thresholds": 5}, {}, {"thresholds": {"unheard_of": 1}}])
def test_a_request_of_schema_2_that_says_nothing_is_corruption(payload: dict[str, Any]) -> None:
    with pytest.raises(CorruptLog):
        old({"type": "BusyThresholdRequested", "gateway": "g", "model": "tiny", **payload})


def test_what_is_not_to_change_is_not_in_the_log() -> None:
    history = deployed()
    asks(history, ThresholdChanges(queue_age_threshold_s=None))
    event = history.records[-1].event
    assert msgspec.json.decode(encode_event(event))["payload"]["changes"] == {"queue_age_threshold_s": None}
