"""A gateway without streams, on replicas that another gateway fills: it goes by what they tell in their heartbeats."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from holdfast.core.admission import RETRY_AFTER_MIN_S, Priority
from holdfast.core.errors import Overloaded
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, eventually, opened


async def test_it_lets_no_more_wait_than_get_others_places_and_says_when_to_come_again() -> None:
    async with Site() as site, AsyncExitStack() as stack:
        site.deploy(application(replicas=1))
        replica = await site.replica(itl_ms=1, streams_max=2)
        busy, idle = await site.gateway("busy"), await site.gateway("idle")
        await answer_to(busy, ask(tokens=5))
        held = await stack.enter_async_context(opened(busy, *[ask(tokens=10_000)] * 2))
        await Answer().read(held, tokens=1)
        replica.engine.hang()
        link = idle._links[replica.name]
        await eventually(lambda: link.load == 2 and link.pressure.pace.gateways == 1)
        assert link.pressure.pace.first_s > 0
        assert link.pressure.others_end_per_s == pytest.approx(2 / link.pressure.pace.stay_s / 2)
        replica.replica._pace._measured.stay_s = 30.0
        await eventually(lambda: link.pressure.pace.stay_s == 30.0)
        pool = idle._pools["tiny"]
        await eventually(lambda: (pool.admission._bounds(Priority.DEFAULT)[1] or 1.0) < 0.1)
        await stack.enter_async_context(opened(idle, ask()))
        with pytest.raises(Overloaded) as rejection:
            idle.open("tiny", [ask()], stops=[])
        assert rejection.value.retry_after_s > 10 * RETRY_AFTER_MIN_S
        assert idle.pools()[0].queued == 1
