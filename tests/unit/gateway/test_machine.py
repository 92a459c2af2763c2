"""All that an answer owes to its machine is given: two machines alike give the same bytes."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import count

import pytest

from holdfast.gateway.app import HttpSettings, create_app
from holdfast.gateway.machine import Machine
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
from tests.unit.gateway.fakes import FakeBackend

BEGAN = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
BODIES = [
    (CHAT, {**chat(stream=True), "seed": None}),
    (CHAT, {**chat(), "seed": None}),
    (COMPLETIONS, {**completion(stream=True), "seed": None}),
]


class StoppedClock:
    """As `Clock`."""

    def now(self) -> datetime:
        return BEGAN


def machine(seed: int) -> Machine:
    """A machine whose time and chance follow from a number."""
    rng, ticks = random.Random(seed), count()
    return Machine(clock=StoppedClock(), monotonic_s=lambda: float(next(ticks)), entropy=rng.randbytes, rng=rng)


async def answers(told: Machine) -> list[tuple[Answer, bytes]]:
    app = create_app(FakeBackend(), HttpSettings(), "g", told)
    return [(await ask(app, path, body), app.metrics.text()) for path, body in BODIES]


async def test_machines_alike_give_the_same_bytes() -> None:
    assert await answers(machine(1)) == await answers(machine(1))


async def test_what_is_drawn_shows_in_the_ids() -> None:
    for (one, _), (other, _) in zip(await answers(machine(1)), await answers(machine(2)), strict=True):
        assert one.headers["x-request-id"] != other.headers["x-request-id"]
        assert one.body != other.body


async def test_the_answer_is_dated_by_the_machines_clock() -> None:
    (_, (chat_answer, _), _) = await answers(machine(1))
    assert chat_answer.json["created"] == BEGAN.timestamp()


async def test_durations_are_measured_by_the_machines_clock() -> None:
    (_, text), *_ = await answers(machine(1))
    (line,) = [line for line in text.decode().splitlines() if line.startswith("holdfast_request_duration_seconds_sum")]
    assert float(line.split()[-1]) == pytest.approx(int(float(line.split()[-1]))), "whole ticks of the given clock"
    assert float(line.split()[-1]) > 0


async def test_real_machines_draw_ids_that_differ() -> None:
    ids = {answer.headers["x-request-id"] for _ in range(3) for answer, _ in await answers(Machine())}
    assert len(ids) == 9
