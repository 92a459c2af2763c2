"""What benches make of what they measured: what the issue asks for can fail, and what is only shown can't."""

from __future__ import annotations

import asyncio
import itertools
import random

import msgspec
import pytest

from examples.bench import faults, leaving, overload, slow_readers, vanish
from examples.bench.load import Lag, Outcome
from examples.bench.overload import opened
from examples.bench.shots import Shot

# --- faults -----------------------------------------------------------------------------------------------------


def row(own_pause_ms: float, *, strict: bool = True, first_ms: float = 30.0) -> faults.Row:
    """Of a row that allows 50 ms, compared with an undisturbed one whose longest pause was 8 ms."""
    one = faults.Row("one", 32, 0, 0, 0, own_pause_ms, 8, 0, own_pause_ms, first_ms, 0.5, None, "")
    one.allowed_ms, one.strict = 50.0, strict
    undisturbed = msgspec.structs.replace(one, longest_pause_ms=8.0, own_pause_ms=8.0, longest_first_ms=30.0)
    faults._compare(one, undisturbed)
    return one


def test_a_pause_that_is_too_long_fails_where_somebody_leaves_in_order() -> None:
    assert row(58.0).failures() == []
    (failure,) = row(59.0).failures()
    assert "51 ms longer where 50 ms are allowed" in failure


def test_elsewhere_pauses_are_only_shown_and_waits_for_first_tokens_everywhere() -> None:
    assert row(500.0, strict=False).failures() == []
    late = row(8.0, first_ms=500.0)
    assert (late.met, late.failures()) == (False, [])


def test_what_the_observer_missed_itself_is_no_pause() -> None:
    one = msgspec.structs.replace(row(20.0), longest_pause_ms=150.0, observer_lag_ms=130.0)
    assert one.failures() == []


def test_broken_and_wrong_streams_fail_everywhere() -> None:
    for change in ({"broken": 1}, {"wrong": 1}):
        assert msgspec.structs.replace(row(0.0, strict=False), **change).failures()


def test_every_row_of_who_leaves_in_order_is_strict() -> None:
    assert leaving.LEAVING
    assert all(scenario.strict and scenario.allowed_ms == 50.0 for scenario in leaving.LEAVING)


def test_a_pause_that_the_observer_saw_hides_no_other() -> None:
    lag = Lag()
    lag._seen.append((10.0, 0.5))
    seen, missed = Outcome(None, False, 1, 0, 0.4, 20.0), Outcome(None, False, 1, 0, 0.6, 10.1)
    assert lag.longest_without([seen, missed]) == pytest.approx(0.4)
    assert lag.longest_without([missed]) == pytest.approx(0.1)
    assert lag.longest_without([]) == 0.0


# --- overload ---------------------------------------------------------------------------------------------------


def loaded() -> overload.Report:
    """All as it must be."""
    return overload.Report(
        light_first_p99_s=0.2,
        full_per_s=28.0,
        wanted_per_s=280.0,
        offered_per_s=280.0,
        left_out=0,
        answers={"200": 800, "503": 7600},
        rejections={"queue_age": 7600},
        rejected_p99_s=0.01,
        rejected_max_s=0.04,
        first_p99_s=0.5,
        accepted_per_s=27.0,
        shed={"batch": 5000, "default": 2600},
        critical_lost=0,
        wrong=[],
        memory_mib=[70.0, 71.0],
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"left_out": 1}, "did not keep up"),
        ({"offered_per_s": 270.0}, "did not keep up"),
        ({"shed": {"default": 2600}}, "no batch request was shed"),
        ({"critical_lost": 1}, "critical"),
        ({"rejected_max_s": 0.051}, "longest rejection"),
        ({"first_p99_s": 0.61}, "first tokens"),
        ({"accepted_per_s": 25.0}, "throughput"),
        ({"wrong": ["x"]}, "wrong"),
        ({"memory_mib": [70.0, 103.0]}, "memory"),
    ],
)
def test_an_overload_fails_by_each_of_what_is_asked_for(change: dict[str, object], named: str) -> None:
    assert loaded().failures() == []
    (failure,) = msgspec.structs.replace(loaded(), **change).failures()
    assert named in failure


def test_a_load_that_the_cluster_can_do_need_not_shed_anything() -> None:
    assert msgspec.structs.replace(loaded(), wanted_per_s=28.0, offered_per_s=28.0, shed={}).failures() == []


class FakeGun:
    """Answers at once."""

    async def shoot(self, priority: str) -> Shot:
        return Shot(priority, asyncio.get_running_loop().time(), 200, 0.0, 0.0)


async def test_as_many_requests_are_sent_as_were_asked_for_and_at_random_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overload, "LEAD_S", 0.0)
    shots, left_out = await opened(FakeGun(), 400.0, 0.5, random.Random(1))  # type: ignore[arg-type]
    assert (len(shots), left_out) == (200, 0)
    assert len({round(later.asked_s - one.asked_s, 4) for one, later in itertools.pairwise(shots)}) > 10


def test_a_load_that_took_longer_to_send_was_less_per_second() -> None:
    shots = [Shot("default", at_s, 200, 0.0, 0.0) for at_s in (0.0, 1.0, 4.0)]
    assert overload.sent_per_s(shots, 1.0) == 0.75
    assert overload.sent_per_s([], 1.0) == 0.0


# --- slow readers -----------------------------------------------------------------------------------------------

FAST = slow_readers.Part(first_p99_s=0.1, per_s=80.0, memory_mib=80.0)


def slow(**change: object) -> slow_readers.Slow:
    """Beside 100 slow readers that cost 512 KiB each."""
    full = slow_readers.Part(0.1, 80.0, 110.0)
    one = slow_readers.Slow(60.0, FAST, full, held=0, there=100, running=0, allowed_kib=1024.0, wrong=[])
    return msgspec.structs.replace(one, **change)


def test_slow_readers_pass_where_the_others_see_nothing_of_them() -> None:
    assert slow_readers.Report(100, FAST, FAST, slow(held=100), slow()).failures() == []


@pytest.mark.parametrize(
    ("holding", "default", "named"),
    [
        ({"held": 99}, {}, "only 99 of 100"),
        ({}, {"held": 1}, "which is off"),
        ({}, {"running": 1}, "still ran"),
        ({"there": 99}, {}, "held back: 1 slow readers were cut"),
        ({}, {"there": 98}, "by default: 2 slow readers were cut"),
        ({}, {"filling": slow_readers.Part(0.2, 80.0, 60.0)}, "by default: others' first tokens took 2.0 times"),
        ({}, {"filling": slow_readers.Part(0.1, 60.0, 60.0)}, "by default: others' answers were 75%"),
        ({}, {"before_mib": 9.0}, "by default: each slow reader costs"),
        ({}, {"wrong": ["x"]}, "by default: 1 answers are wrong"),
    ],
)
def test_slow_readers_fail_by_each_of_what_is_asked_for(
    holding: dict[str, object], default: dict[str, object], named: str
) -> None:
    report = slow_readers.Report(100, FAST, FAST, slow(**{"held": 100, **holding}), slow(**default))
    (failure,) = report.failures()
    assert named in failure


# --- vanish -----------------------------------------------------------------------------------------------------

SAMPLE = vanish.Sample(files=20, tasks=30, memory_mib=60.0)


def vanished(between_mib: float, **after: float) -> list[str]:
    """What is left of clients, by the memory between the two loads and what is there after them."""
    between = msgspec.structs.replace(SAMPLE, memory_mib=between_mib)
    end = msgspec.structs.replace(between, **after)
    one = vanish.Row("gateway", SAMPLE, SAMPLE, between, end)
    return vanish.Report(1, [{}, {}], 1.0, [one]).failures()


def test_the_second_load_may_leave_no_more_memory_and_the_first_is_only_shown() -> None:
    assert vanished(90.0) == []
    assert vanished(90.0, memory_mib=94.0) == []
    assert vanished(90.0, memory_mib=94.1) == ["gateway keeps 4.1 MiB of memory"]


@pytest.mark.parametrize("name", ["requests", "streams", "kv_blocks", "tasks", "files"])
def test_whatever_else_is_left_fails(name: str) -> None:
    assert len(vanished(60.0, **{name: getattr(SAMPLE, name) + 1})) == 1
