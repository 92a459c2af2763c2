"""A replica that has no room for a stream just now: that is no failure, and the stream waits on."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from holdfast.actors.engines.base import ENGINE_OVERLOADED
from holdfast.actors.metric_families import REJECTIONS
from holdfast.core.admission import Reason
from holdfast.core.budget import RetryBudget
from holdfast.core.errors import NoReplica, Overloaded
from holdfast.core.frames import Refused
from holdfast.gateway.backend import Claim, Session
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.serving import Serving
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, LocalReplica, Site, ask, eventually

REQUEST = ask(tokens=12)


@pytest.fixture
def site() -> Site:
    return Site()


async def enter(gateway: Serving, stack: AsyncExitStack) -> Session:
    return await stack.enter_async_context(gateway.open("tiny", [REQUEST], stops=[], claim=Claim()))


async def held_up(site: Site, *, replicas: int = 1, **settings: Any) -> tuple[list[LocalReplica], Serving]:
    """Replicas whose engines don't step, and a gateway that may begin nothing again."""
    site.deploy(application(replicas=replicas))
    found = [await site.replica() for _ in range(replicas)]
    for replica in found:
        replica.engine.hang()
    gateway = await site.gateway(**settings)
    gateway._dispatch._retries = RetryBudget(0.0, 0.0)
    gateway._dispatch._retries._held = 0.0
    return found, gateway


def turn_away(link: ReplicaLink) -> None:
    """As a replica does that has no room for the stream that came last."""
    link._on_refused(Refused(link.runs()[-1].attempt, ENGINE_OVERLOADED, "no room", None, retry=True))


def test_nothing_is_left_of_a_budget_that_earns_nothing() -> None:
    budget = RetryBudget(0.0, 0.0)
    budget._held = 0.0
    assert not budget.spend(1_000, 1e9)


async def test_a_stream_that_is_turned_away_waits_and_spends_no_retries(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        (replica,), gateway = await held_up(site)
        link = gateway._links[replica.name]
        session = await enter(gateway, stack)
        for _ in range(20):
            await eventually(lambda: link.in_flight == 1)
            turn_away(link)
            assert gateway.pools()[0].queued == 1
        replica.engine.resume()
        (await Answer().read(session)).check(REQUEST)
        assert link.record.failed == 0


async def test_it_begins_at_once_where_there_is_room(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        replicas, gateway = await held_up(site, replicas=2)
        session = await enter(gateway, stack)
        (full,) = (link for link in gateway._links.values() if link.in_flight)
        (other,) = (link for link in gateway._links.values() if link is not full)
        turn_away(full)
        assert (full.in_flight, other.in_flight, gateway.pools()[0].queued) == (0, 1, 0)
        for replica in replicas:
            replica.engine.resume()
        (await Answer().read(session)).check(REQUEST)


async def test_it_waits_no_longer_than_any_other_however_often_replicas_turn_it_away(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        (replica,), gateway = await held_up(site, replica_wait_s=0.1)
        link = gateway._links[replica.name]
        session = await enter(gateway, stack)
        run = link.runs()[0]
        while not run.stream.ended:
            if link.in_flight:
                turn_away(link)
            await asyncio.sleep(0.002)
        with pytest.raises(NoReplica) as rejection:
            await session.next()
        assert rejection.value.reason == Reason.NO_REPLICA
        assert gateway.ledger.value(REJECTIONS, "tiny", "no_replica") == 1


async def test_one_that_was_turned_away_gives_way_once_it_has_waited_too_long(site: Site) -> None:
    async with site, AsyncExitStack() as stack:
        (replica,), gateway = await held_up(site)
        link = gateway._links[replica.name]
        service = gateway._pools["tiny"].service
        service.stayed(0.001)
        service.first_token(0.001)
        await enter(gateway, stack)
        session = await enter(gateway, stack)
        run = link.runs()[-1]
        turn_away(link)
        assert run.patience_s is not None
        run.patience_s = 0.0
        link._full = True
        await enter(gateway, stack)
        with pytest.raises(Overloaded) as rejection:
            async with asyncio.timeout(5):
                await session.next()
        assert rejection.value.reason == Reason.QUEUE_AGE
