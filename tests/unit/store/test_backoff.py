"""Pauses between tries."""

from __future__ import annotations

import random

from holdfast.store.backoff import Backoff


def test_pauses_double_up_to_the_limit_with_chance_in_their_upper_half() -> None:
    backoff = Backoff(0.1, 1.0, random.Random(1))
    for step_s in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert step_s / 2 <= backoff.pause_s() <= step_s


def test_a_success_starts_over() -> None:
    backoff = Backoff(0.1, 1.0)
    for _ in range(5):
        backoff.pause_s()
    backoff.reset()
    assert backoff.pause_s() <= 0.1
