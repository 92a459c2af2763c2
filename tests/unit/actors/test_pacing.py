"""How fast a replica says that it serves."""

from __future__ import annotations

import pytest

from holdfast.actors.pacing import PaceMeter
from holdfast.core.pace import Pace


def test_nothing_is_said_before_anything_came() -> None:
    assert PaceMeter().pace(0, 100.0) == Pace()


def test_streams_are_timed_from_their_arrival_to_their_first_token_and_to_their_end() -> None:
    meter = PaceMeter()
    meter.began(1, 10.0)
    meter.stepped([1], 10.5)
    meter.stepped([1], 11.0)
    meter.left(1, 12.0)
    assert meter.pace(2, 20.0) == Pace(0.5, 2.0, 2)


def test_until_one_has_ended_they_stay_for_as_long_as_the_oldest_has() -> None:
    meter = PaceMeter()
    meter.began(1, 10.0)
    meter.began(2, 12.0)
    assert meter.pace(1, 15.0) == Pace(0.0, 5.0, 1)


def test_what_left_without_a_token_tells_nothing_and_a_canary_is_nobodys() -> None:
    meter = PaceMeter()
    meter.began(1, 10.0)
    meter.left(1, 11.0)
    meter.stepped([7], 11.0)
    meter.left(7, 12.0)
    assert meter.pace(0, 20.0) == Pace()
    assert (meter._since_s, meter._without_token) == ({}, {})


def test_a_burst_of_slow_first_tokens_hardly_counts() -> None:
    meter = PaceMeter()
    for key, took_s in enumerate((0.1, 1.1)):
        meter.began(key, 0.0)
        meter.stepped([key], took_s)
    assert meter.pace(1, 2.0).first_s == pytest.approx(0.12)
