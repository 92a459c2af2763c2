"""A client that is far behind holds its stream back: no engine works ahead for it, and it still gets all tokens."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from holdfast.actors.engines.mock import MockEngine, mock_text
from holdfast.actors.metric_families import MIGRATION_PAUSE, MIGRATIONS
from holdfast.core.admission import Priority
from holdfast.core.requests import EngineInfo
from holdfast.gateway.backend import Claim
from holdfast.gateway.moves import CANCELLED, Move
from holdfast.gateway.serving import Serving
from holdfast.gateway.session import StreamSession
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, answer_to, ask, engine_of, eventually, opened

TOKENS = 20_000
MODEL = "tiny"
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
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX, replica_wait_s=0.05)
        asked = ask(tokens=400)
        async with opened(gateway, asked) as session:
            answer = await Answer().read(session, tokens=1)
            await eventually(lambda: replica.free and gateway.held_back() == {"tiny": 1})
            another = ask("another", tokens=100)
            beside = asyncio.create_task(answer_to(gateway, another))
            await eventually(lambda: not replica.free)
            answer.add(await session.next())
            assert gateway.pools()[0].queued == 1
            await answer.read(session)  # after longer than `replica_wait_s`
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


class ErraticEngine(MockEngine):
    """Says of itself that it would not draw the same tokens again."""

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, deterministic=False)


async def check_runs_on(gateway: Serving, prompt: str, tokens: int) -> None:
    """A client that takes nothing holds nothing back: all is drawn meanwhile."""
    asked = ask(prompt, tokens=tokens)
    async with opened(gateway, asked) as session:
        answer = await Answer().read(session, tokens=1)
        await eventually(lambda: session.completion_tokens == tokens)
        assert not gateway.held_back()
        await answer.read(session)
    answer.check(asked)


async def test_nothing_is_held_back_unless_that_is_asked_for(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=1)
        await check_runs_on(await site.gateway(), "all of it", 1_500)


async def test_nothing_is_held_back_that_only_its_replica_could_go_on_with(site: Site) -> None:
    async with site:
        engine = engine_of(itl_ms=3)
        engine.__class__ = ErraticEngine
        await site.replica(engine=engine)
        await check_runs_on(await site.gateway(unsent_tokens_max=UNSENT_MAX), "by chance", 500)


async def test_nothing_is_held_back_that_would_cost_more_than_what_waits(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=3)
        await check_runs_on(await site.gateway(unsent_tokens_max=1), "much to read " * 4_000, 500)


async def held(gateway: Serving, prompt: str, claim: Claim) -> StreamSession:
    """A session whose stream is held back."""
    before = gateway.held_back()[MODEL]
    session = gateway.open(MODEL, [ask(prompt, tokens=400)], stops=[], claim=claim)
    await session.__aenter__()
    await Answer().read(session, tokens=1)
    await eventually(lambda: gateway.held_back()[MODEL] == before + 1)
    return session


async def test_held_back_streams_wait_in_turn_and_behind_higher_priorities(site: Site) -> None:
    site = Site()
    site.deploy(application(replicas=1, max_ongoing_requests=1))
    batch, critical = Claim(Priority.BATCH), Claim(Priority.CRITICAL)
    async with site:
        replica = await site.replica(itl_ms=3)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX)
        first, second = await held(gateway, "first", batch), await held(gateway, "second", batch)
        replica.engine.hang()
        async with opened(gateway, ask("in the place")) as taker:
            await eventually(lambda: gateway.pools()[0].in_flight == {replica.name: 1})
            for session in (first, second):
                await session.next()
            async with gateway.open(MODEL, [ask("urgent")], stops=[], claim=critical) as urgent:
                queue, order = gateway._pools[MODEL].queue, []
                while queue:
                    run = queue.head()
                    order.append(run)
                    queue.begun(run)
                assert order == [urgent._runs[0], first._runs[0], second._runs[0]]
            taker.stop()
        for session in (first, second):
            await session.__aexit__()


async def test_a_stream_that_is_held_back_right_after_it_moved_moves_no_longer(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=1)
        gateway = await site.gateway(unsent_tokens_max=UNSENT_MAX)
        asked = ask(tokens=50)
        async with gateway.open(MODEL, [asked], stops=[]) as session:
            answer = await Answer().read(session, tokens=1)
            (run,) = session._runs
            assert run.link is not None
            run.move = Move(gateway.ledger, MODEL, "lost", 0.0)
            gateway._dispatch.holding.hold(run.link, run)
            answer.add(session._collect())
            await answer.read(session)
        answer.check(asked)
        assert gateway.ledger.histogram(MIGRATION_PAUSE, MODEL, "lost").count == 0
        assert gateway.ledger.value(MIGRATIONS, MODEL, "lost", CANCELLED) == 1
