"""A client that is far behind holds its stream back: no engine works ahead for it, and it still gets all tokens."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.actors.engines.mock import mock_text
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, eventually, opened

TOKENS = 20_000
UNSENT_MAX = 100


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


async def test_no_engine_works_ahead_for_a_client_that_takes_nothing(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX)
        asked = ask(tokens=TOKENS)
        async with opened(gateway, asked) as session:
            answer = await Answer().read(session, tokens=1)
            for _ in range(3):
                await eventually(lambda: gateway.held_back() == {"tiny": 1})
                await eventually(lambda: replica.free)
                ahead = session.completion_tokens - len(answer.counts[0])
                assert UNSENT_MAX < ahead < TOKENS / 4
                answer.add(await session.next())
            assert session.completion_tokens < TOKENS
        count = len(answer.counts[0])
        assert answer.counts[0] == list(range(1, count + 1))
        assert answer.texts[0] == mock_text(asked, count)
        assert not gateway.held_back()
        assert not gateway.migrations


async def test_a_stream_that_was_held_back_waits_for_the_place_that_another_took(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=5, streams_max=1)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX)
        asked = ask(tokens=400)
        async with opened(gateway, asked) as session:
            answer = await Answer().read(session, tokens=1)
            await eventually(lambda: replica.free and gateway.held_back() == {"tiny": 1})
            another = ask("another", tokens=100)
            beside = asyncio.create_task(answer_to(gateway, another))
            await eventually(lambda: not replica.free)
            await answer.read(session)
            answer.check(asked)
            (await beside).check(another)


async def test_a_client_that_goes_while_its_stream_is_held_back_leaves_nothing(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=5)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX)
        async with opened(gateway, ask(tokens=TOKENS)) as session:
            await Answer().read(session, tokens=1)
            await eventually(lambda: gateway.held_back() == {"tiny": 1})
        assert not gateway.held_back()
        await eventually(lambda: replica.free)
        await asyncio.wait_for(gateway.idle(), 5)


async def test_a_stream_that_may_not_move_is_not_held_back(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=3)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX, migration_max_seq_len=50)
        asked = ask(tokens=500)
        async with opened(gateway, asked) as session:
            answer = await Answer().read(session, tokens=1)
            await eventually(lambda: session.completion_tokens == 500)
            assert not gateway.held_back()
            await answer.read(session)
        answer.check(asked)
