"""Replicas, links and sessions together: right tokens, right ends, everything freed."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.actors.engines.mock import MockEngine, mock_text, parse_settings
from holdfast.core.errors import (
    Overloaded,
    RequestRefused,
    StreamLost,
    UnknownModel,
)
from holdfast.core.events import ApplicationDeleted, ReplicaStopOrdered
from holdfast.core.requests import EngineRequest, Sampling
from tests.unit.support.history import application
from tests.unit.support.replicas import (
    Answer,
    Site,
    answer_to,
    ask,
    engine_of,
    eventually,
    opened,
    replicas_ready,
)


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


# --- answers --------------------------------------------------------------------------------------------


async def test_a_stream_is_what_the_engine_says_with_its_usage(site: Site) -> None:
    async with site:
        replica = await site.replica()
        gateway = await site.gateway()
        request = ask("one two three", 20)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session)
            assert (session.prompt_tokens, session.completion_tokens) == (3, 20)
            assert await session.next() == []
        answer.check(request)
        assert replica.free


async def test_choices_run_side_by_side_and_are_told_apart(site: Site) -> None:
    async with site:
        await site.replica()
        await site.replica()
        gateway = await site.gateway()
        choices = [ask(tokens=10 + seed, sampling=Sampling(seed=seed)) for seed in range(5)]
        async with opened(gateway, *choices) as session:
            (await Answer().read(session)).check(*choices)
            assert session.completion_tokens == sum(choice.max_tokens for choice in choices)
            assert [session.prompt_tokens_of(choice) for choice in range(5)] == [2] * 5


async def test_log_probabilities_arrive_with_their_tokens(site: Site) -> None:
    async with site:
        await site.replica()
        gateway = await site.gateway()
        pieces = []
        async with opened(gateway, ask(tokens=4, logprobs=2), ask(tokens=4)) as session:
            while deltas := await session.next():
                pieces += [(delta.choice, piece) for delta in deltas for piece in delta.pieces]
        assert all((piece.logprob is not None) == (choice == 0) for choice, piece in pieces)
        assert all(piece.logprob.text.decode() == piece.text for choice, piece in pieces if piece.logprob)


async def test_two_gateways_on_one_replica_get_each_their_own(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateways = [await site.gateway(name) for name in ("g", "h")]
        requests = [ask(f"prompt {number}", 5 + number) for number in range(16)]
        answers = await asyncio.gather(
            *(answer_to(gateways[number % 2], request) for number, request in enumerate(requests))
        )
        for request, answer in zip(requests, answers, strict=True):
            answer.check(request)
        assert replica.free


async def test_a_stop_string_ends_the_stream_and_frees_the_engine(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=1000)
        words = mock_text(request, 8).split()
        answer = await answer_to(gateway, request, stops=[f"{words[5]} {words[6]}"])
        assert answer.reasons == {0: "stop"}
        assert answer.texts[0] == mock_text(request, 1000)[: len(answer.texts[0])]
        assert f"{words[5]} {words[6]}" not in answer.texts[0]
        await eventually(lambda: replica.free)


async def test_a_request_that_the_engine_refuses_is_refused_with_its_reason(site: Site) -> None:
    async with site:
        replica = await site.replica(context_tokens_max=16)
        gateway = await site.gateway()
        with pytest.raises(RequestRefused, match="maximum context length is 16") as refusal:
            await answer_to(gateway, ask(tokens=100))
        assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")
        (await answer_to(gateway, ask(tokens=4))).check(ask(tokens=4))
        assert replica.free


# --- clients that go ------------------------------------------------------------------------------------


async def test_a_client_that_goes_frees_what_its_streams_held(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1, streams_max=2)
        gateway = await site.gateway()
        choices = [ask(tokens=10_000, sampling=Sampling(seed=seed)) for seed in range(4)]
        async with opened(gateway, *choices) as session:
            await Answer().read(session, tokens=2)
            load = replica.engine.load()
            assert (load.running, load.waiting) == (2, 0)
            assert [pool.queued for pool in gateway.pools()] == [2]
        await eventually(lambda: replica.free)
        await gateway.idle()


async def test_a_client_that_goes_at_once_leaves_nothing_behind(site: Site) -> None:
    async with site:
        replica = await site.replica()
        gateway = await site.gateway()
        for _ in range(20):
            async with opened(gateway, ask(tokens=10_000)):
                pass
        (await answer_to(gateway, ask())).check(ask())
        await eventually(lambda: replica.free)


class SlowToAdmit(MockEngine):
    """Takes until it is told to let a stream in."""

    def __init__(self) -> None:
        super().__init__(parse_settings({"itl_ms": 1}), "tiny", random.Random(1))
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def admit(self, key: int, request: EngineRequest) -> int:
        self.asked.set()
        await self.go.wait()
        return await super().admit(key, request)


async def test_a_client_that_goes_while_its_prompt_is_read_frees_the_engine(site: Site) -> None:
    async with site:
        engine = SlowToAdmit()
        replica = await site.replica(engine=engine)
        gateway = await site.gateway()
        async with opened(gateway, ask(tokens=10_000)):
            await engine.asked.wait()
        done = asyncio.create_task(answer_to(gateway, ask("other")))
        await asyncio.sleep(0.05)
        engine.go.set()
        (await done).check(ask("other"))
        await eventually(lambda: replica.free)


async def test_a_gateway_that_goes_takes_its_streams_with_it(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway("g")
        other = await site.gateway("h")
        async with opened(gateway, ask(tokens=10_000)) as session, opened(other, ask(tokens=60)) as lasting:
            await Answer().read(session, tokens=2)
            for link in gateway._links.values():
                assert link._contact.connection is not None
                link._contact.connection.abort()
            gateway.standing.draining = True
            (await Answer().read(lasting)).check(ask(tokens=60))
        await eventually(lambda: replica.free)


# --- models ---------------------------------------------------------------------------------------------


async def test_a_model_that_is_not_deployed_is_unknown(site: Site) -> None:
    async with site:
        gateway = await site.gateway()
        with pytest.raises(UnknownModel, match="`huge`"):
            gateway.open("huge", [ask()], stops=[])


async def test_streams_that_wait_for_a_model_that_is_deleted_end(site: Site) -> None:
    async with site:
        gateway = await site.gateway()
        waiting = asyncio.create_task(answer_to(gateway, ask()))
        await asyncio.sleep(0.01)
        site.decide(ApplicationDeleted("app"))
        with pytest.raises(UnknownModel):
            await waiting


async def test_a_gateway_that_shuts_down_takes_nothing_new_and_finishes_what_it_has(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=1)
        gateway = await site.gateway()
        async with opened(gateway, ask()) as session:
            gateway.standing.draining = True
            with pytest.raises(Overloaded, match="is stopping"):
                gateway.open("tiny", [ask()], stops=[])
            idle = asyncio.create_task(gateway.idle())
            (await Answer().read(session)).check(ask())
            assert not idle.done()
        await idle
        assert not gateway.health().healthy


async def test_health_and_models_say_what_is_there(site: Site) -> None:
    async with site:
        gateway = await site.gateway()
        assert gateway.health().reasons == ["no replica of tiny is ready"]
        await site.replica()
        await eventually(lambda: gateway.health().healthy)
        (model,) = gateway.models()
        assert (model.id, model.application, model.replicas_running, model.replicas_wanted) == ("tiny", "app", 1, 2)
        assert model.context_tokens_max == 2048


# --- a migration at every moment ------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 7, 29])
async def test_a_stream_whose_replica_is_killed_goes_on_exactly_where_it_was(site: Site, after: int) -> None:
    async with site:
        first = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=30)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session, tokens=after)
            second = await site.replica(itl_ms=1)
            await eventually(lambda: replicas_ready(gateway) == 2)
            await first.kill()
            (await answer.read(session)).check(request)
            assert session.completion_tokens == 30
            assert session.prompt_tokens == 2
        assert gateway.migrations.total() <= 1
        await eventually(lambda: second.free)


async def test_many_streams_survive_replicas_that_are_killed_one_after_another(site: Site) -> None:
    async with site:
        for _ in range(4):
            await site.replica(itl_ms=1, jitter=0.5)
        gateways = [await site.gateway(name) for name in ("g", "h")]
        requests = [ask(f"prompt {number}", 60, logprobs=number % 2 - 1) for number in range(24)]
        streams = [
            asyncio.create_task(answer_to(gateways[number % 2], request)) for number, request in enumerate(requests)
        ]
        for name in list(site.replicas)[:3]:
            await asyncio.sleep(0.01)
            await site.replicas[name].kill()
            site.exits(name)
        for request, answer in zip(requests, await asyncio.gather(*streams), strict=True):
            answer.check(request)
        assert sum(gateway.migrations.total() for gateway in gateways) > 0
        await eventually(lambda: site.replicas["app.tiny.4"].free)


async def test_a_connection_that_is_cut_is_dialled_again_and_the_stream_goes_on(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=40)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session, tokens=5)
            replica.cut()
            (await answer.read(session)).check(request)
        assert gateway.migrations.total() == 1
        assert replica.free


async def test_a_stream_that_lost_too_many_replicas_ends_with_what_it_had(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=1)
        gateway = await site.gateway(migration_limit=1)
        request = ask(tokens=10_000)
        answer = Answer()
        async with opened(gateway, request) as session:
            for tokens in (3, 6):
                await answer.read(session, tokens=tokens)
                replica.cut()
            with pytest.raises(StreamLost, match=r"app\.tiny\.1 was lost"):
                await answer.read(session)
        assert answer.texts[0] == mock_text(request, len(answer.counts[0]))


async def test_a_replica_that_crashes_by_itself_takes_no_stream_with_it(site: Site) -> None:
    async with site:
        for _ in range(2):
            await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=30)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session, tokens=3)
            (busy,) = [replica for replica in site.replicas.values() if not replica.free]

            async def breaks() -> None:
                raise RuntimeError("the engine broke")

            busy.engine._pace = breaks  # type: ignore[method-assign]
            await asyncio.wait([busy._running])
            busy.cut()
            (await answer.read(session)).check(request)


async def test_a_draining_replica_takes_nothing_new_and_finishes_what_it_has(site: Site) -> None:
    async with site:
        first = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        request = ask(tokens=50)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session, tokens=2)
            second = await site.replica(itl_ms=1)
            await eventually(lambda: replicas_ready(gateway) == 2)
            drained = asyncio.create_task(first.replica.drain())
            others = [asyncio.create_task(answer_to(gateway, ask(f"prompt {number}"))) for number in range(4)]
            for number, other in enumerate(await asyncio.gather(*others)):
                other.check(ask(f"prompt {number}"))
            assert not drained.done()
            (await answer.read(session)).check(request)
        await drained
        assert replicas_ready(gateway) == 1
        assert second.free


async def test_a_replica_that_was_told_to_stop_is_left_when_its_streams_have_ended(site: Site) -> None:
    async with site:
        first = await site.replica(itl_ms=1)
        gateway = await site.gateway()
        async with opened(gateway, ask(tokens=40)) as session:
            answer = await Answer().read(session, tokens=2)
            site.decide(ReplicaStopOrdered(first.name, "enough"))
            await eventually(lambda: replicas_ready(gateway) == 0)
            (await answer.read(session)).check(ask(tokens=40))
        await first.replica.abandoned()


def test_the_engine_that_these_tests_compare_to_is_not_constant() -> None:
    assert mock_text(ask("one"), 8) != mock_text(ask("two"), 8)
    assert engine_of().info.deterministic
