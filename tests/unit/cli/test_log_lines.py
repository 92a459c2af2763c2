"""What `holdfast log tail` says of an event: all that it has, in one line."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from holdfast.core.events import (
    BusyThresholdRequested,
    BusyThresholdSet,
    DecisionTypes,
    Event,
    FactTypes,
    Record,
    RejectionsEnded,
    ReplicaUnhealthy,
)
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.gateway.cli.log import _line


def said(payload: DecisionTypes | FactTypes) -> str:
    """The line about an event, from its type on."""
    event = Event(
        id="a.1.f2",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        writer="a",
        incarnation="1",
        epoch=0,
        cause=None,
        schema=3,
        previous="",
        payload=payload,
    )
    return _line(Record(7, "facts.a", event, "")).partition(type(payload).__name__)[2].strip()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("RuntimeError: 104 C\n  of 90 C\r\n", "RuntimeError: 104 C of 90 C"),
        ("\x1b[2Jgone \x07", "?[2Jgone ?"),
        ("trop chaud: 104 °C", "trop chaud: 104 °C"),
    ],
)
def test_an_exception_stays_in_its_line_and_says_nothing_to_the_terminal(message: str, shown: str) -> None:
    assert said(ReplicaUnhealthy("r", "n", "check_health", message)).endswith(f"message={shown}")


def test_what_was_rejected_is_told_by_reason() -> None:
    told = said(RejectionsEnded("g", "tiny", 30.5, {"queue_age": 641, "requests_in_flight": 961}))
    assert told == "gateway=g model=tiny seconds=30.5 rejected=(queue_age=641, requests_in_flight=961)"


def test_thresholds_are_told_with_what_was_asked_for_and_what_holds() -> None:
    asked = said(BusyThresholdRequested("g", "tiny", ThresholdChanges(queue_age_threshold_s=None)))
    assert asked == "gateway=g model=tiny changes=(queue_age_threshold_s=None)"
    assert "active_decode_blocks_threshold=0.5" in said(BusyThresholdSet("tiny", Thresholds(0.5)))
