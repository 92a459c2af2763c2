"""Streams stand still when they bring nothing for long, though their replica's engine could have brought something."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from holdfast.core.barren import Barren
from holdfast.core.requests import EngineRequest
from holdfast.core.stream import Stream
from holdfast.gateway.link_settings import LinkSettings
from holdfast.gateway.session import StreamRun
from holdfast.gateway.stalls import BARREN_STEPS, STALL_STEPS, StallWatch

SETTINGS = LinkSettings("test", "g", stream_stall_timeout_s=10.0, admission_timeout_s=30.0)
LATE_S = SETTINGS.stream_stall_timeout_s + 0.1


def run_of(*, admitted: bool = True, tokens: int = 0) -> StreamRun:
    stream = Stream(EngineRequest(prompt="x"))
    stream.start()
    if admitted:
        stream.admitted(1)
    for position in range(tokens):
        stream.token(position, 1, "x")
    return cast(StreamRun, SimpleNamespace(stream=stream))


def stalls(run: StreamRun, steps: int, barren: Barren, after_s: float = LATE_S) -> bool:
    """Whether it does, so long after the first look, in which time the engine stepped so often."""
    watch = StallWatch(SETTINGS)
    assert watch.look({1: run}, 0, 0.0) == []
    watch.beat(barren)
    found = watch.look({1: run}, steps, after_s)
    assert found in ([], [(1, run)])
    return bool(found)


@pytest.mark.parametrize(
    ("barren", "found"),
    [
        (Barren(LATE_S, BARREN_STEPS), True),
        (Barren(LATE_S, BARREN_STEPS - 1), False),  # its steps are slow
        (Barren(SETTINGS.stream_stall_timeout_s, BARREN_STEPS), False),  # others got tokens, or prompts were read
        (Barren(), False),
    ],
)
def test_one_without_its_first_token_leaves_only_an_engine_that_makes_nothing(barren: Barren, found: bool) -> None:
    assert stalls(run_of(), 10 * BARREN_STEPS, barren) == found


def test_one_that_has_just_come_is_given_its_time_whatever_was_before() -> None:
    assert not stalls(run_of(), BARREN_STEPS, Barren(60.0, 10 * BARREN_STEPS), LATE_S - 1.0)


def test_one_that_had_tokens_leaves_also_where_others_get_theirs() -> None:
    assert stalls(run_of(tokens=2), STALL_STEPS, Barren())
    assert not stalls(run_of(tokens=2), STALL_STEPS - 1, Barren())


def test_one_that_is_not_taken_in_has_a_time_of_its_own() -> None:
    barren = Barren(LATE_S, BARREN_STEPS)
    assert not stalls(run_of(admitted=False), BARREN_STEPS, barren)
    assert stalls(run_of(admitted=False), BARREN_STEPS, barren, SETTINGS.admission_timeout_s + 0.1)
