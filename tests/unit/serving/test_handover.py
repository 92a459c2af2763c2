"""Streams leave a replica that asks for it while they go on there: none stops, none is lost, no token comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from holdfast.core.events import Fact, StreamsMigrated
from holdfast.gateway.handover import AT_ONCE
from holdfast.gateway.serving import Serving
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, LocalReplica, Site, ask, eventually, opened

STREAMS = 3 * AT_ONCE
TOKENS = 150


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


async def run_streams(gateway: Serving, fault: Callable[[], object], streams: int = STREAMS) -> list[Answer]:
    """Begin streams, do `fault` once each has brought something, read them to their ends; what each brought."""
    begun = 0
    all_begun = asyncio.Event()

    async def one(number: int) -> Answer:
        nonlocal begun
        async with opened(gateway, ask(f"stream {number}", tokens=TOKENS)) as session:
            answer = await Answer().read(session, tokens=2)
            begun += 1
            if begun == streams:
                all_begun.set()
            return await answer.read(session)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(streams)]
        await all_begun.wait()
        fault()
    return [task.result() for task in tasks]


def assert_right(answers: list[Answer]) -> None:
    for number, answer in enumerate(answers):
        answer.check(ask(f"stream {number}", tokens=TOKENS))


@pytest.mark.parametrize("deterministic", [True, False])
async def test_dismissed_streams_go_on_elsewhere_and_their_replica_is_idle_before_they_end(
    site: Site, deterministic: bool
) -> None:
    async with site:
        leaving = await site.replica(itl_ms=5)
        staying = await site.replica(itl_ms=5)
        gateway = await site.gateway()
        if not deterministic:
            for link in gateway._links.values():
                assert link.info is not None
                link.info = msgspec.structs.replace(link.info, deterministic=False)
        told = list[StreamsMigrated]()

        def report(fact: Fact, _cause: str | None) -> None:
            if isinstance(fact, StreamsMigrated):
                told.append(fact)

        gateway._dispatch._report = report
        drained: list[asyncio.Task[None]] = []

        def leave() -> None:
            assert not leaving.free
            leaving.replica.dismiss()
            drained.append(asyncio.create_task(leaving.replica.drain()))

        answers = await run_streams(gateway, leave)
        assert_right(answers)
        async with asyncio.timeout(1.0):
            await drained[0]
        assert leaving.free
        await eventually(lambda: staying.free)
        moved = gateway.migrations["tiny", "drained"]
        assert moved > 0
        assert sum(fact.streams for fact in told) == moved


async def test_streams_that_nobody_has_room_for_stay_until_somebody_has(site: Site) -> None:
    async with site:
        leaving = await site.replica(itl_ms=5)
        gateway = await site.gateway()

        async def make_room() -> None:
            await asyncio.sleep(0.2)
            await site.replica(itl_ms=5)

        room: list[asyncio.Task[None]] = []

        def leave() -> None:
            leaving.replica.dismiss()
            room.append(asyncio.create_task(make_room()))

        answers = await run_streams(gateway, leave)
        assert_right(answers)
        await room[0]
        assert gateway.migrations["tiny", "drained"] > 0
        assert sum(gateway.migrations.values()) == gateway.migrations["tiny", "drained"]


async def test_streams_that_are_refused_elsewhere_stay(site: Site) -> None:
    async with site:
        leaving = await site.replica(itl_ms=5)
        gateway = await site.gateway()
        refusing: list[LocalReplica] = []

        async def refuse() -> None:
            """Somebody who looks as if it had room, and has none by the time that it is asked."""
            refusing.append(await site.replica(itl_ms=5))
            refusing[0].replica._draining = True
            leaving.replica.dismiss()

        asked: list[asyncio.Task[None]] = []
        answers = await run_streams(gateway, lambda: asked.append(asyncio.create_task(refuse())))
        assert_right(answers)
        assert not gateway.migrations


@pytest.mark.parametrize("who", ["source", "target"])
async def test_a_replica_that_dies_in_the_middle_of_it_loses_no_token(site: Site, who: str) -> None:
    async with site:
        leaving = await site.replica(itl_ms=5)
        target = await site.replica(itl_ms=5, ttft_ms=50)
        await site.replica(itl_ms=5)
        gateway = await site.gateway()

        def break_it() -> None:
            leaving.replica.dismiss()
            victim = leaving if who == "source" else target
            asyncio.get_running_loop().call_later(0.03, lambda: killed.append(asyncio.create_task(victim.kill())))

        killed: list[asyncio.Task[None]] = []
        assert_right(await run_streams(gateway, break_it))


async def test_clients_that_leave_in_the_middle_of_it_leave_nothing_behind(site: Site) -> None:
    async with site:
        leaving = await site.replica(itl_ms=5)
        staying = await site.replica(itl_ms=5, ttft_ms=100)
        gateway = await site.gateway()
        async with opened(gateway, *(ask(f"stream {number}", tokens=TOKENS) for number in range(STREAMS))) as session:
            await Answer().read(session, tokens=2)
            leaving.replica.dismiss()
            await asyncio.sleep(0.02)
        await eventually(lambda: leaving.free and staying.free)
        assert all(link.in_flight == 0 for link in gateway._links.values())
