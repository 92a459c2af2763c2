"""Suspicion grows with silence, the faster the more regular the heartbeats were."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.detector import PhiAccrual

THRESHOLD = 8.0


def detector(intervals_s: list[float]) -> tuple[PhiAccrual, float]:
    """A detector that has heard such heartbeats, and when it heard the last one."""
    now_s = 100.0
    phi = PhiAccrual(0.1, 0.2, 0.03, now_s)
    phi.beat(now_s)
    for interval_s in intervals_s:
        now_s += interval_s
        phi.beat(now_s)
    return phi, now_s


def suspected_after_s(phi: PhiAccrual, now_s: float) -> float:
    """The silence after which phi passes the threshold."""
    silence_s = 0.0
    while phi.phi(now_s + silence_s) < THRESHOLD:
        silence_s += 0.001
        assert silence_s < 60
    return silence_s


def test_a_regular_peer_is_suspected_after_about_half_a_second() -> None:
    assert 0.4 < suspected_after_s(*detector([0.1] * 200)) < 0.6


def test_an_irregular_peer_is_given_longer() -> None:
    rng = random.Random(1)
    shaky = [rng.uniform(0.05, 0.6) for _ in range(100)]
    assert suspected_after_s(*detector(shaky)) > 1.0


def test_what_was_long_ago_is_forgotten() -> None:
    assert suspected_after_s(*detector([2.0] * 50 + [0.1] * 100)) < 0.6


def test_other_frames_end_a_silence_but_teach_nothing() -> None:
    phi, now_s = detector([0.1] * 20)
    phi.heard(now_s + 0.4)
    assert phi.phi(now_s + 0.5) < 1
    assert 0.4 < suspected_after_s(phi, now_s + 0.4) < 0.6


def test_a_silence_that_was_forgiven_is_no_interval() -> None:
    phi, now_s = detector([0.1] * 20)
    phi.restart(now_s + 20)
    phi.beat(now_s + 20.1)
    assert 0.4 < suspected_after_s(phi, now_s + 20.1) < 0.6


@given(
    st.lists(st.floats(0.001, 5.0), max_size=120),
    st.lists(st.floats(0.0, 600.0), min_size=2, max_size=20).map(sorted),
)
def test_suspicion_never_falls_while_nothing_is_heard(intervals_s: list[float], silences_s: list[float]) -> None:
    phi, now_s = detector(intervals_s)
    values = [phi.phi(now_s + silence_s) for silence_s in silences_s]
    assert values == sorted(values)
    assert all(value >= 0 for value in values)


@given(
    st.lists(st.floats(0.01, 5.0), max_size=200),
    st.floats(0.1, 299.0),
    st.floats(0.0, 10.0),
)
def test_a_suspicion_is_due_when_it_will_have_grown_so_large(
    intervals_s: list[float], phi: float, silence_s: float
) -> None:
    accrual, now_s = detector(intervals_s)
    accrual.heard(now_s + silence_s)
    due_s = accrual.due_s(phi)
    assert accrual.phi(due_s + 1e-4) >= phi
    assert accrual.phi(due_s - 1e-3) < phi
