"""An engine is barren while it steps with work, gives nobody anything, and reads nothing."""

from __future__ import annotations

from holdfast.core.barren import Barren, BarrenMeter
from holdfast.core.requests import EngineLoad


def load(waiting: int = 0, *, blocks: int = 1, prompt_tokens: int = 0) -> EngineLoad:
    return EngineLoad(1, waiting, blocks, 100, 1, prompt_tokens)


def after(*loads: EngineLoad) -> Barren:
    """A meter's word after a second's step for each load, the last of which is just over."""
    meter = BarrenMeter()
    for number, one in enumerate(loads):
        meter.stepped(float(number), one)
    return meter.tell(float(len(loads)))


def test_steps_that_bring_nothing_are_counted_from_the_beginning_of_the_first() -> None:
    assert after() == Barren()
    assert after(load(), load(), load()) == Barren(3.0, 3)


def test_what_comes_of_a_step_and_rest_end_it() -> None:
    meter = BarrenMeter()
    meter.stepped(0.0, load())
    meter.rest()
    assert meter.tell(9.0) == Barren()
    meter.stepped(9.0, load())
    assert meter.tell(10.0) == Barren(1.0, 1)


def test_a_prompt_that_is_read_ends_it_also_where_only_its_blocks_show_that() -> None:
    assert after(load(prompt_tokens=9), load(prompt_tokens=8)) == Barren()
    assert after(load(prompt_tokens=9), load(prompt_tokens=8), load(prompt_tokens=8)) == Barren(1.0, 1)
    assert after(load(blocks=1), load(blocks=2)) == Barren()


def test_streams_that_come_and_go_show_nothing() -> None:
    assert after(load(), load(1, blocks=2, prompt_tokens=5)) == Barren(2.0, 2)
    meter = BarrenMeter()
    meter.stepped(0.0, load(1, prompt_tokens=9))
    meter.dropped()
    meter.stepped(1.0, load(prompt_tokens=4))
    assert meter.tell(2.0) == Barren(2.0, 2)
