"""What a gateway makes of a replica's heartbeats, the echoes of its pings, and its engine's steps."""

from __future__ import annotations

import math

import pytest

from holdfast.core.liveness import STEP_FACTOR, STEP_FIRST_S, TRUST_BEATS, Liveness, Suspicion
from holdfast.core.requests import EngineLoad

INTERVAL_S = 0.1
STALL_S = 3.0


class Story:
    """A replica that beats and echoes as told."""

    def __init__(self) -> None:
        self.liveness = Liveness(INTERVAL_S, 8.0, STALL_S, 0.0)
        self.now_s = 0.0
        self.heard = 0
        self.step = 100

    def passes(
        self, seconds: float, *, beats: bool = True, hears: bool = True, steps: bool = True, running: int = 1
    ) -> Suspicion | None:
        """Let time pass, an interval at a time; the first suspicion that arises."""
        found = None
        for _ in range(round(seconds / INTERVAL_S)):
            self.now_s += INTERVAL_S
            number = self.liveness.ping()
            if hears:
                self.heard = number
            if steps:
                self.step += 10
            if beats:
                self.liveness.beat(self.heard, EngineLoad(running, 0, 1, 9, self.step), self.now_s)
            found = found or self.liveness.look(self.now_s)
        return found


def test_a_replica_that_beats_hears_and_steps_is_never_suspected() -> None:
    story = Story()
    assert story.passes(600) is None
    assert story.liveness.unheard_s(story.now_s) <= INTERVAL_S


def test_silence_is_suspected_within_a_second_and_trusted_again_after_some_beats() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(0.8, beats=False, hears=False) is Suspicion.SILENT
    assert story.passes((TRUST_BEATS - 1) * INTERVAL_S) is None
    assert story.liveness.suspicion is Suspicion.SILENT
    story.passes(INTERVAL_S)
    assert story.liveness.suspicion is None


def test_a_replica_that_sends_but_does_not_hear_is_suspected_and_beats_alone_do_not_make_it_trusted() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(0.9, hears=False) is Suspicion.DEAF
    story.passes(20, hears=False)
    assert story.liveness.suspicion is Suspicion.DEAF
    assert story.liveness.unheard_s(story.now_s) > 20
    story.passes(TRUST_BEATS * INTERVAL_S)
    assert story.liveness.suspicion is None


def test_an_engine_that_makes_no_steps_under_work_is_suspected_until_it_steps_again() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(STALL_S - 1, steps=False) is None
    assert story.passes(2, steps=False) is Suspicion.STUCK
    story.passes(5, steps=False)
    assert story.liveness.suspicion is Suspicion.STUCK
    story.passes(TRUST_BEATS * INTERVAL_S)
    assert story.liveness.suspicion is None


def test_an_idle_engine_need_not_step() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(600, steps=False, running=0) is None
    assert story.passes(STALL_S - 1, steps=False) is None, "its time begins with the work"


def test_an_engine_may_take_as_long_as_its_own_longest_step_suggests() -> None:
    story = Story()
    for _ in range(5):
        story.passes(2.0, steps=False)
        story.passes(INTERVAL_S)
    assert story.passes(STEP_FACTOR * 2.0 - 1, steps=False) is None
    assert story.passes(5.0, steps=False) is Suspicion.STUCK


def test_an_engine_whose_steps_were_never_seen_may_warm_up() -> None:
    story = Story()
    assert story.passes(STEP_FIRST_S - 1, steps=False) is None
    assert story.passes(2, steps=False) is Suspicion.STUCK


def test_our_own_standstill_is_nobodys_silence() -> None:
    story = Story()
    story.passes(10)
    story.now_s += 30
    story.liveness.stood_still(story.now_s)
    assert story.liveness.look(story.now_s) is None
    assert story.passes(10) is None


def test_heartbeats_that_come_more_often_than_pings_still_end_a_suspicion() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(0.9, hears=False) is Suspicion.DEAF
    for _ in range(TRUST_BEATS):
        story.heard = story.liveness.ping()
        for _ in range(5):
            story.now_s += INTERVAL_S / 5
            story.liveness.beat(story.heard, EngineLoad(1, 0, 1, 9, story.step), story.now_s)
    assert story.liveness.suspicion is None


def test_an_engine_whose_work_was_taken_away_while_it_was_stuck_need_not_step_to_be_trusted() -> None:
    story = Story()
    story.passes(10)
    assert story.passes(STALL_S + 1, steps=False) is Suspicion.STUCK
    story.passes(60, steps=False)
    assert story.liveness.suspicion is Suspicion.STUCK, "it still holds what it had"
    story.step += 1
    story.passes(TRUST_BEATS * INTERVAL_S, steps=False, running=0)
    assert story.liveness.suspicion is None


@pytest.mark.parametrize("interval_s", [0.02, 0.1, 0.5, 1.0, 10.0])
def test_pings_that_just_miss_a_heartbeat_again_and_again_are_no_deafness(interval_s: float) -> None:
    liveness = Liveness(interval_s, 8.0, STALL_S, 0.0)
    late_s = interval_s * 0.07
    ping_s, beat_s, heard = 0.0, interval_s, 0
    while beat_s < 300 * interval_s:
        if ping_s <= beat_s:
            heard = liveness.ping()
            assert liveness.look(ping_s) is None, f"at {ping_s:g} s"
            ping_s += interval_s + late_s
        else:
            assert liveness.look(beat_s) is None, f"at {beat_s:g} s"
            liveness.beat(heard, EngineLoad(0, 0, 0, 9, 0), beat_s)
            beat_s += interval_s


def test_a_ping_that_just_misses_a_heartbeat_is_not_held_against_the_replica() -> None:
    interval_s = 1.5
    liveness = Liveness(interval_s, 8.0, STALL_S, 0.0)
    unheard_s = []
    for beat in range(1, 20):
        now_s = beat * interval_s
        unheard_s.append(liveness.unheard_s(now_s))
        liveness.beat(beat // 2, EngineLoad(0, 0, 0, 9, 0), now_s)
    assert max(unheard_s) == 0.0
    assert liveness.unheard_s(now_s + 10.0) > 5.0


@pytest.mark.parametrize(
    ("fails", "suspicion"),
    [({"beats": False}, Suspicion.SILENT), ({"hears": False}, Suspicion.DEAF), ({"steps": False}, Suspicion.STUCK)],
)
def test_a_suspicion_arises_when_it_is_due(fails: dict[str, bool], suspicion: Suspicion) -> None:
    story = Story()
    story.passes(60)
    story.passes(INTERVAL_S, **fails)
    due_s = story.liveness.due_s()
    while story.now_s + INTERVAL_S < due_s:
        assert story.passes(INTERVAL_S, **fails) is None
        due_s = story.liveness.due_s()
    assert story.liveness.doubt(due_s - 0.001) is None
    assert story.liveness.doubt(due_s + 0.001) is suspicion
    assert story.liveness.suspicion is None, "to doubt is not to suspect"
    assert story.liveness.look(due_s + 0.001) is suspicion
    assert story.liveness.due_s() == math.inf, "one at a time"
