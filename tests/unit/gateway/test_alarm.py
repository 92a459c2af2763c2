"""A wait that ends by itself, or because somebody ends it."""

from __future__ import annotations

import asyncio

from holdfast.gateway.alarm import Alarm
from tests.unit.support.virtual_time import now_s, virtual_time


@virtual_time
async def test_a_wait_ends_in_its_time() -> None:
    alarm = Alarm()
    await alarm.wait(5.0)
    assert now_s() == 5.0


@virtual_time
async def test_who_is_roused_waits_no_longer() -> None:
    alarm = Alarm()
    asyncio.get_running_loop().call_later(2.0, alarm.rouse)
    await alarm.wait(5.0)
    assert now_s() == 2.0
    await alarm.wait(5.0)
    assert now_s() == 7.0, "the timer of the first wait must not end the second"


@virtual_time
async def test_a_wait_without_an_end_is_ended_by_rousing_only() -> None:
    alarm = Alarm()
    asyncio.get_running_loop().call_later(1_000.0, alarm.rouse)
    await alarm.wait()
    assert now_s() == 1_000.0


@virtual_time
async def test_rousing_nobody_is_not_remembered() -> None:
    alarm = Alarm()
    alarm.rouse()
    await alarm.wait(3.0)
    assert now_s() == 3.0


@virtual_time
async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    alarm = Alarm()
    waiting = asyncio.create_task(alarm.wait(5.0))
    await asyncio.sleep(1.0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    alarm.rouse()
    await alarm.wait(1.0)
    assert now_s() == 2.0
