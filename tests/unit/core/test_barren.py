"""An engine is barren while it steps with work, gives nobody anything, and reads nothing."""

from __future__ import annotations

import pytest

from holdfast.core.barren import UNSHOWN_S, Barren, BarrenMeter
from holdfast.core.requests import EngineLoad


def load(waiting: int = 0, *, blocks: int = 1, prompt_tokens: int = 0, running: int = 1) -> EngineLoad:
    return EngineLoad(running, waiting, blocks, 100, 1, prompt_tokens)


def shown() -> BarrenMeter:
    """One whose engine has shown that it reads prompts."""
    meter = BarrenMeter()
    meter.admitted(lambda: load(prompt_tokens=9))
    return meter


def step(
    meter: BarrenMeter, at_s: float, before: EngineLoad, after: EngineLoad, came: EngineLoad | None = None
) -> None:
    """A step that brings nobody anything, in which a stream comes or none."""
    meter.begins(at_s, lambda: before)
    if came is not None:
        meter.admitted(lambda: came)
    meter.bore_nothing(after)


def after(*loads: EngineLoad) -> Barren:
    """A meter's word after a second's step from each load to the next, the last of which is just over."""
    meter = shown()
    for number, one in enumerate(loads[1:]):
        step(meter, float(number), loads[number], one)
    return meter.tell(len(loads) - 1.0)


def test_steps_that_bring_nothing_are_counted_from_the_beginning_of_the_first() -> None:
    assert after(load()) == Barren()
    assert after(load(), load(), load(), load()) == Barren(3.0, 3)


def test_what_comes_of_a_step_and_rest_end_it() -> None:
    for end in (BarrenMeter.rest, BarrenMeter.bore):
        meter = shown()
        step(meter, 0.0, load(), load())
        end(meter)
        assert meter.tell(9.0) == Barren()
        step(meter, 9.0, load(), load())
        assert meter.tell(10.0) == Barren(1.0, 1)


def test_a_prompt_that_is_read_ends_it_also_where_only_its_blocks_show_that() -> None:
    assert after(load(prompt_tokens=9), load(prompt_tokens=8)) == Barren()
    assert after(load(prompt_tokens=9), load(prompt_tokens=8), load(prompt_tokens=8)) == Barren(1.0, 1)
    assert after(load(blocks=1), load(blocks=2)) == Barren()


def test_a_load_is_asked_for_before_a_step_only_while_the_last_one_brought_nothing() -> None:
    asked: list[float] = []

    def ask() -> EngineLoad:
        asked.append(at_s)
        return load()

    meter = shown()
    for at_s in (0.0, 1.0, 2.0):
        meter.begins(at_s, ask)
        meter.bore()
    assert asked == [0.0]
    for at_s in (3.0, 4.0, 5.0):
        meter.begins(at_s, ask)
        meter.bore_nothing(load())
    assert asked == [0.0, 4.0, 5.0]


def test_a_step_after_a_stream_left_neither_counts_nor_rests() -> None:
    meter = shown()
    step(meter, 0.0, load(), load())
    meter.dropped()
    step(meter, 1.0, load(prompt_tokens=9), load(prompt_tokens=4))
    assert meter.tell(2.0) == Barren(2.0, 1)
    step(meter, 2.0, load(prompt_tokens=4), load(prompt_tokens=4))
    assert meter.tell(3.0) == Barren(3.0, 2)


def test_a_step_in_which_a_stream_came_does_not_count_and_rests_if_it_read_more_than_that_brought() -> None:
    meter = shown()
    step(meter, 0.0, load(), load())
    step(meter, 1.0, load(prompt_tokens=9), load(1, blocks=2, prompt_tokens=9), came=load())
    assert meter.tell(2.0) == Barren(2.0, 1)
    step(meter, 2.0, load(prompt_tokens=9), load(1, prompt_tokens=8), came=load())
    assert meter.tell(3.0) == Barren()


@pytest.mark.parametrize("meanwhile", ["one leaves", "one comes", "one comes before"])
def test_a_long_prompt_among_streams_that_come_and_go_is_seen_to_be_read(meanwhile: str) -> None:
    """Each step reads 2,048 tokens, and as many come or go at each second one."""
    chunk, left, meter = 2_048, 1_000_000, shown()
    for number in range(80):
        strikes = number % 2 == 1
        if strikes and meanwhile == "one leaves":
            meter.dropped()
            left -= chunk
        if strikes and meanwhile == "one comes before":
            left += chunk
            meter.admitted(lambda: load(prompt_tokens=chunk))
        before, left = left, left - chunk
        come = strikes and meanwhile == "one comes"
        left += chunk * come
        came = load(1, prompt_tokens=left) if come else None
        step(meter, 0.2 * number, load(prompt_tokens=before), load(prompt_tokens=left), came)
        assert meter.tell(0.2 * number + 0.2).steps <= 1
    assert meter.tell(16.0).for_s < 0.5


def test_an_engine_that_never_showed_that_it_reads_is_told_to_its_node_alone_and_late() -> None:
    meter = BarrenMeter()
    meter.admitted(load)
    for number in range(int(UNSHOWN_S)):
        assert meter.tell_node(float(number)) == Barren()
        step(meter, float(number), load(), load())
    assert meter.tell(UNSHOWN_S) == Barren()
    assert meter.tell_node(UNSHOWN_S) == Barren(UNSHOWN_S, int(UNSHOWN_S))


@pytest.mark.parametrize(
    ("before", "then", "shows"),
    [
        (load(prompt_tokens=1), load(prompt_tokens=1), True),
        (load(blocks=1), load(blocks=2), True),
        (load(1, blocks=1), load(blocks=2, running=2), False),  # it began to run
        (load(blocks=1), load(1, blocks=2), False),  # it came
    ],
)
def test_prompt_tokens_that_wait_and_blocks_that_grow_show_that_it_reads(
    before: EngineLoad, then: EngineLoad, shows: bool
) -> None:
    meter = BarrenMeter()
    step(meter, 0.0, before, then)
    step(meter, 1.0, then, then)
    assert (meter.tell(2.0) != Barren()) == shows
