"""What is taken, what waits, what is turned away, and when it should come again."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.admission import (
    AGE_FACTOR,
    AGE_MIN_S,
    CRITICAL_FACTOR,
    RETRY_AFTER_MAX_S,
    RETRY_AFTER_MIN_S,
    RETRY_JITTER,
    Line,
    Priority,
    Reason,
    Service,
    busy,
    decide,
    in_flight_limit,
)
from holdfast.core.requests import EngineInfo, EngineLoad
from holdfast.core.thresholds import NONE_SET, Thresholds

INFO = EngineInfo("m", 1000, 100, 16, True, "none")
IDLE = EngineLoad(0, 0, 0, 100, 1, 0)
CALM = Line(waiting=0, ahead=0, waiting_max=10, drain_per_s=10.0, age_max_s=0.5, patient=True)


def line(**changes: object) -> Line:
    return msgspec.structs.replace(CALM, **changes)


# --- replicas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "thresholds", "reason"),
    [
        (IDLE, NONE_SET, None),
        (EngineLoad(1, 0, 95, 100, 1, 0), NONE_SET, None),
        (EngineLoad(1, 0, 96, 100, 1, 0), NONE_SET, Reason.KV_BLOCKS),
        (EngineLoad(1, 0, 51, 100, 1, 0), Thresholds(active_decode_blocks_threshold=0.5), Reason.KV_BLOCKS),
        (EngineLoad(1, 0, 0, 100, 1, 1000), NONE_SET, None),
        (EngineLoad(1, 0, 0, 100, 1, 1001), NONE_SET, Reason.PREFILL_TOKENS),
        (EngineLoad(1, 0, 0, 100, 1, 5000), Thresholds(active_prefill_tokens_threshold=5000), None),
        (EngineLoad(1, 0, 0, 100, 1, 5001), Thresholds(active_prefill_tokens_threshold=5000), Reason.PREFILL_TOKENS),
        (EngineLoad(1, 0, 0, 100, 1, 201), Thresholds(active_prefill_tokens_threshold_frac=0.2), Reason.PREFILL_TOKENS),
        (EngineLoad(1, 0, 100, 100, 1, 5000), NONE_SET, Reason.KV_BLOCKS),
    ],
)
def test_a_replica_is_too_busy_above_a_threshold(
    load: EngineLoad, thresholds: Thresholds, reason: Reason | None
) -> None:
    assert busy(load, INFO, thresholds) is reason


def test_a_replica_has_as_many_streams_as_its_engine_runs_unless_that_is_set() -> None:
    assert in_flight_limit(INFO, NONE_SET) == 16
    assert in_flight_limit(INFO, Thresholds(requests_in_flight_threshold=3)) == 3


def test_thresholds_go_before_others_one_by_one() -> None:
    upper, lower = Thresholds(queue_age_threshold_s=0.0), Thresholds(0.5, queue_age_threshold_s=9.0)
    assert upper.over(lower) == Thresholds(0.5, queue_age_threshold_s=0.0)
    assert NONE_SET.over(lower) == lower


# --- the queue ------------------------------------------------------------------------------------------


def test_who_finds_a_place_and_nobody_waiting_is_taken() -> None:
    assert decide(3, 3, line(waiting_max=0)) is None


def test_whoever_waits_is_not_passed_by_who_comes_later() -> None:
    assert decide(1, 5, line(waiting=10, ahead=10)) is Reason.QUEUE_FULL


def test_a_queue_has_as_many_as_may_wait() -> None:
    assert decide(4, 2, line(waiting_max=2, drain_per_s=None)) is None
    assert decide(5, 2, line(waiting_max=2, drain_per_s=None)) is Reason.QUEUE_FULL


def test_a_queue_has_no_more_than_drains_in_its_age() -> None:
    assert decide(1, 0, line(waiting=4, ahead=4)) is None
    assert decide(1, 0, line(waiting=5, ahead=5)) is Reason.QUEUE_AGE


def test_lower_priorities_that_wait_are_no_reason_to_reject() -> None:
    assert decide(1, 0, line(waiting=9, ahead=0, patient=False)) is None


def test_one_request_may_wait_where_places_become_free_slowly_unless_requests_are_being_rejected() -> None:
    slow = line(drain_per_s=0.1)
    assert decide(1, 0, slow) is None
    assert decide(1, 0, msgspec.structs.replace(slow, patient=False)) is Reason.IN_FLIGHT
    assert decide(1, 0, msgspec.structs.replace(slow, waiting=1, ahead=1)) is Reason.QUEUE_AGE


def test_nobody_waits_where_no_time_is_given_for_it() -> None:
    assert decide(1, 0, line(age_max_s=0.0)) is Reason.IN_FLIGHT
    assert decide(2, 1, line(age_max_s=0.0)) is Reason.IN_FLIGHT
    assert decide(1, 1, line(age_max_s=0.0)) is None


def test_nothing_but_the_length_bounds_a_queue_of_which_nothing_is_known() -> None:
    assert decide(1, 0, line(waiting=9, ahead=9, drain_per_s=None)) is None
    assert decide(1, 0, line(waiting=9, ahead=9, age_max_s=None)) is None


@given(
    asked=st.integers(1, 20),
    places=st.integers(0, 20),
    waiting=st.integers(0, 30),
    ahead=st.integers(0, 30),
    drain=st.none() | st.floats(0, 100),
    age=st.none() | st.floats(0, 10),
    patient=st.booleans(),
)
def test_no_queue_is_ever_longer_than_it_may_be(
    asked: int, places: int, waiting: int, ahead: int, drain: float | None, age: float | None, patient: bool
) -> None:
    ahead = min(ahead, waiting)
    reason = decide(asked, places, Line(waiting, ahead, 10, drain, age, patient))
    if reason is None and (waiting or asked > places):
        assert waiting + asked - (0 if waiting else places) <= 10
        if ahead and drain is not None and age is not None:
            assert ahead + asked <= drain * age


# --- what was measured ----------------------------------------------------------------------------------


def test_the_time_of_an_unloaded_replica_is_learnt_fast_and_forgotten_slowly() -> None:
    service = Service()
    for took_s in (0.5, *[0.1] * 20):
        service.first_token(took_s)
    assert service.first_s == pytest.approx(0.1, abs=0.01)
    for _ in range(5):
        service.first_token(1.0)
    assert service.first_s is not None
    assert service.first_s < 0.2


def test_a_queue_drains_as_fast_as_streams_end_but_for_those_that_go_first() -> None:
    service = Service()
    assert service.drain_per_s(10, Priority.DEFAULT, 0.0) is None
    service.stayed(2.0)
    assert service.drain_per_s(10, Priority.DEFAULT, 0.0) == 5.0
    assert service.drain_per_s(0, Priority.DEFAULT, 0.0) is None
    for _ in range(3):
        service.began(Priority.CRITICAL, 1.0)
    assert service.drain_per_s(10, Priority.CRITICAL, 1.0) == 5.0
    assert service.drain_per_s(10, Priority.BATCH, 1.0) == 2.0
    assert service.drain_per_s(1, Priority.BATCH, 1.0) == 0.0
    assert service.drain_per_s(10, Priority.BATCH, 100.0) == pytest.approx(5.0)


def test_a_request_waits_about_as_long_as_for_a_first_token_unless_that_is_set() -> None:
    service = Service()
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) is None
    service.first_token(0.3)
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) == pytest.approx(0.3 * AGE_FACTOR)
    assert service.age_max_s(NONE_SET, Priority.CRITICAL) == pytest.approx(0.3 * AGE_FACTOR * CRITICAL_FACTOR)
    assert service.age_max_s(Thresholds(queue_age_threshold_s=0.0), Priority.BATCH) == 0.0
    for _ in range(50):
        service.first_token(0.0)
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) == AGE_MIN_S


@given(
    waiting=st.integers(0, 10_000), rejections=st.integers(0, 1000), stay_s=st.floats(0, 1000), chance=st.floats(0, 1)
)
def test_who_is_rejected_is_told_to_come_again_within_bounds(
    waiting: int, rejections: int, stay_s: float, chance: float
) -> None:
    service = Service()
    service.stayed(stay_s)
    for _ in range(rejections):
        service.rejected(5.0)
    after_s = service.retry_after_s(waiting, 10, 5.0, chance)
    assert RETRY_AFTER_MIN_S <= after_s <= RETRY_AFTER_MAX_S * (1 + RETRY_JITTER)


def test_the_more_are_rejected_the_later_they_are_told_to_come() -> None:
    service = Service()
    service.stayed(1.0)
    for _ in range(95):
        service.rejected(5.0)
    assert service.retry_after_s(5, 10, 5.0, 0.0) == pytest.approx(10.0)
    assert service.retry_after_s(5, 10, 50.0, 0.0) == RETRY_AFTER_MIN_S


# --- what replicas tell of others' streams --------------------------------------------------------------


def test_with_nothing_in_flight_what_replicas_tell_counts() -> None:
    service = Service()
    assert service.drain_per_s(0, Priority.DEFAULT, 1.0) is None
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) is None
    service.told(0.5, 2.0)
    assert service.drain_per_s(0, Priority.DEFAULT, 1.0) == 0.5
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) == 2.0 * AGE_FACTOR
    assert service.retry_after_s(10, 0, 1.0, 0.0) == 20.0
    service.told(0.0, None)
    assert service.drain_per_s(0, Priority.DEFAULT, 1.0) is None, "nobody has streams there"


def test_what_was_measured_here_goes_before_what_replicas_tell() -> None:
    service = Service()
    service.told(0.5, 2.0)
    service.stayed(2.0)
    service.first_token(1.0)
    assert service.drain_per_s(4, Priority.CRITICAL, 1.0) == 2.0
    assert service.age_max_s(NONE_SET, Priority.DEFAULT) == 1.0 * AGE_FACTOR
