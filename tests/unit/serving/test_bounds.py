"""Streams are bounded in number and in time: who has to wait, for how long, and who is turned away."""

from __future__ import annotations

import asyncio
import random
from typing import cast

import pytest

from holdfast.actors.engines.base import ENGINE_OVERLOADED
from holdfast.actors.engines.mock import MockEngine, mock_text, parse_settings
from holdfast.core.errors import (
    DeadlineExceeded,
    NoReplica,
    Overloaded,
    RequestRefused,
)
from holdfast.core.requests import EngineRequest
from holdfast.gateway.backend import DEFAULT_CLAIM, Resumption
from holdfast.gateway.session import StreamRun
from tests.unit.support.history import application
from tests.unit.support.replicas import (
    Answer,
    Site,
    answer_to,
    ask,
    eventually,
    opened,
    replicas_ready,
)


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


async def test_no_more_streams_run_on_a_replica_than_may_and_the_rest_wait_their_turn(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=3, max_queued_requests=20))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        seen = 0
        admit = replica.engine.admit

        async def counted(key: int, request: EngineRequest) -> int:
            nonlocal seen
            prompt_tokens = await admit(key, request)
            seen = max(seen, replica.engine.load().running + replica.engine.load().waiting)
            return prompt_tokens

        replica.engine.admit = counted  # type: ignore[method-assign]
        requests = [ask(f"prompt {number}") for number in range(12)]
        answers = await asyncio.gather(*(answer_to(gateway, request) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            answer.check(request)
        assert seen == 3


async def test_who_would_wait_in_a_full_queue_is_turned_away_at_once(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=1, max_queued_requests=2))
        replica = await site.replica()
        replica.engine.hang()
        gateway = await site.gateway()
        requests = [ask(f"prompt {number}") for number in range(3)]
        waiting = [asyncio.create_task(answer_to(gateway, request)) for request in requests]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="queue_full") as refusal:
            gateway.open("tiny", [ask()], stops=[])
        assert refusal.value.retry_after_s > 0
        replica.engine.resume()
        for request, answer in zip(requests, await asyncio.gather(*waiting), strict=True):
            answer.check(request)


async def test_streams_that_are_looked_for_count_among_those_that_wait(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=1, max_queued_requests=2))
        replica = await site.replica()
        replica.engine.hang()
        gateway = await site.gateway()
        busy = asyncio.create_task(answer_to(gateway, ask()))
        await asyncio.sleep(0)
        requests, counts = [ask("one"), ask("two")], Resumption((0, 0), replay=False)
        resumed = gateway.open("tiny", requests, stops=[], name="cmpl-1", resumption=counts)
        async with resumed:
            with pytest.raises(Overloaded, match="queue_full"):
                gateway.open("tiny", [ask()], stops=[])
            replica.engine.resume()
            (await Answer().read(resumed)).check(*requests)
        (await busy).check(ask())


async def test_a_request_of_many_choices_must_fit_as_a_whole(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=2, max_queued_requests=2))
        await site.replica()
        gateway = await site.gateway()
        with pytest.raises(Overloaded):
            gateway.open("tiny", [ask()] * 5, stops=[])
        choices = [ask(f"prompt {number}") for number in range(4)]
        (await answer_to(gateway, *choices)).check(*choices)


class Stuck:
    claim = DEFAULT_CLAIM


async def test_room_at_replicas_does_not_count_while_somebody_waits_for_something_else(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=2, max_queued_requests=2))
        await site.replica()
        gateway = await site.gateway()
        first = cast(StreamRun, Stuck())  # one that no replica may be given just now, though there is room
        gateway._pools["tiny"].queue.append(first)
        with pytest.raises(Overloaded, match="queue_full"):
            gateway.open("tiny", [ask()] * 2, stops=[])
        gateway.open("tiny", [ask()], stops=[])
        gateway._pools["tiny"].queue.remove(first)


async def test_a_higher_bound_holds_for_replicas_that_run_already(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=1))
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        async with opened(gateway, *[ask(tokens=10_000)] * 3) as session:
            await Answer().read(session, tokens=1)
            assert replica.engine.load().running == 1
            site.deploy(application(replicas=1, max_ongoing_requests=3))
            await eventually(lambda: replica.engine.load().running == 3)


async def test_a_stream_waits_only_so_long_for_a_replica(site: Site) -> None:
    async with site:
        gateway = await site.gateway(replica_wait_s=0.05)
        with pytest.raises(NoReplica, match=r"within 0\.05 seconds") as refusal:
            await answer_to(gateway, ask())
        assert isinstance(refusal.value, Overloaded)
        await gateway.idle()


async def test_a_stream_that_waits_is_served_when_a_replica_comes(site: Site) -> None:
    async with site:
        gateway = await site.gateway()
        waiting = asyncio.create_task(answer_to(gateway, ask()))
        await asyncio.sleep(0.01)
        await site.replica()
        (await waiting).check(ask())


async def test_a_request_ends_at_its_deadline_after_all_it_had_got(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=10_000)
        answer = Answer()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 seconds"):
            async with opened(gateway, request, timeout_s=0.1) as session:
                await answer.read(session)
        got = len(answer.counts[0])
        assert answer.texts[0] == mock_text(request, got)
        assert 0 < got == session.completion_tokens
        await eventually(lambda: replica.free)


async def test_a_stream_whose_deadline_passed_in_the_queue_harms_nobody(site: Site) -> None:
    """Its handler is busy elsewhere and has not noticed yet."""
    async with site:
        site.deploy(application(replicas=1, max_ongoing_requests=1))
        replica = await site.replica()
        replica.engine.hang()
        gateway = await site.gateway()
        first = asyncio.create_task(answer_to(gateway, ask("first")))
        await asyncio.sleep(0)
        async with opened(gateway, ask("late"), timeout_s=0.02) as late:
            third = asyncio.create_task(answer_to(gateway, ask("third")))
            await asyncio.sleep(0.05)
            replica.engine.resume()
            (await first).check(ask("first"))
            (await third).check(ask("third"))
            with pytest.raises(DeadlineExceeded):
                await late.next()
        assert replicas_ready(gateway) == 1
        assert gateway.migrations.total() == 0
        assert replica.free


class FullAtFirst(MockEngine):
    """Has no room for the first few streams that ask."""

    def __init__(self, refusals: int) -> None:
        super().__init__(parse_settings({}), "tiny", random.Random(1))
        self.refusals = refusals
        self.asked = 0

    async def admit(self, key: int, request: EngineRequest) -> int:
        self.asked += 1
        if self.asked <= self.refusals:
            raise RequestRefused("the engine is full", code=ENGINE_OVERLOADED)
        return await super().admit(key, request)


async def test_a_full_replica_is_asked_again_later_which_is_no_migration(site: Site) -> None:
    async with site:
        engine = FullAtFirst(refusals=8)
        await site.replica(engine=engine)
        gateway = await site.gateway(migration_limit=0)
        (await answer_to(gateway, ask())).check(ask())
        assert engine.asked == 9
        assert gateway.migrations.total() == 0


async def test_a_stream_that_meets_only_full_replicas_waits_no_longer_than_it_may(site: Site) -> None:
    async with site:
        await site.replica(engine=FullAtFirst(refusals=10**6))
        await site.replica(engine=FullAtFirst(refusals=10**6))
        gateway = await site.gateway(replica_wait_s=0.2)
        with pytest.raises(NoReplica):
            await answer_to(gateway, ask())
