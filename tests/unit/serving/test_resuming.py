"""Streams that outlive their gateway: found by name, attached to, drawn again, fenced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from holdfast.actors.engines.mock import MockEngine, mock_text
from holdfast.actors.metric_families import RESUMPTIONS
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineInfo, EngineRequest
from holdfast.gateway.backend import Resumption
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.serving import Serving
from holdfast.gateway.session import StreamSession
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, LocalReplica, Site, ask, engine_of, eventually, replicas_ready

NAME = "cmpl-00112233445566778899aabbccddeeff"
SLOW: dict[str, Any] = {"itl_ms": 5}
MODEL = "tiny"


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


class ErraticEngine(MockEngine):
    """Says of itself that it would not draw the same tokens again."""

    @property
    def info(self) -> EngineInfo:
        return msgspec.structs.replace(super().info, deterministic=False)


def erratic(**arguments: Any) -> MockEngine:
    engine = engine_of(**arguments)
    engine.__class__ = ErraticEngine
    return engine


async def begin_and_lose(gateway: Serving, *choices: EngineRequest, tokens: int, stops: Sequence[str] = ()) -> Answer:
    """Begin a stream, and lose it together with its gateway after so many tokens of the first choice."""
    session = gateway.open(MODEL, choices, stops=stops, name=NAME)
    await session.__aenter__()
    answer = await Answer().read(session, tokens=tokens)
    for link in gateway._links.values():
        assert link._contact.connection is not None
        link._contact.connection.abort()
        link._on_orphans = lambda _runs, _cause: None
        link.retire()
    return answer


async def resume(gateway: Serving, answer: Answer, *choices: EngineRequest, stops: Sequence[str] = ()) -> Answer:
    """Go on after what the answer has, to the end."""
    counts = tuple(len(answer.counts.get(number, [])) for number in range(len(choices)))
    async with gateway.open(
        MODEL, choices, stops=stops, name=NAME, resumption=Resumption(counts, replay=False)
    ) as session:
        return await answer.read(session)


def outcomes(gateway: Serving) -> dict[str, int]:
    counts = {one: int(gateway.ledger.value(RESUMPTIONS, MODEL, one)) for one in ("attached", "redrawn", "refused")}
    return {outcome: count for outcome, count in counts.items() if count}


async def test_another_gateway_attaches_to_the_stream_and_goes_on_at_the_next_token(site: Site) -> None:
    async with site:
        replicas = [await site.replica(**SLOW), await site.replica(**SLOW)]
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=60)
        answer = await begin_and_lose(first, request, tokens=10)
        await resume(second, answer, request)
        answer.check(request)
        assert outcomes(second) == {"attached": 1}
        await eventually(lambda: all(replica.free for replica in replicas))


async def test_the_engine_goes_on_while_nobody_listens_and_what_it_finished_is_kept(site: Site) -> None:
    async with site:
        replica = await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=40)
        answer = await begin_and_lose(first, request, tokens=5)
        await eventually(lambda: replica.free)
        steps = replica.engine.load().step
        await resume(second, answer, request)
        answer.check(request)
        assert outcomes(second) == {"attached": 1}
        assert replica.engine.load().step == steps, "nothing was drawn again"


async def test_choices_logprobs_and_a_stop_string_are_right_after_attaching(site: Site) -> None:
    async with site:
        await site.replica(**SLOW)
        await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        choices = [ask(f"choice {number}", 50, logprobs=2) for number in range(4)]
        stop = mock_text(choices[0], 30)[-9:]
        end = mock_text(choices[0], 50).index(stop)
        answer = await begin_and_lose(first, *choices, tokens=8, stops=[stop])
        await resume(second, answer, *choices, stops=[stop])
        assert answer.texts[0] == mock_text(choices[0], 50)[:end]
        assert answer.reasons[0] == "stop"
        for number in (1, 2, 3):
            assert answer.texts[number] == mock_text(choices[number], 50)
        assert outcomes(second) == {"attached": 4}


async def test_a_stream_that_no_replica_holds_is_drawn_again(site: Site) -> None:
    async with site:
        one = await site.replica(**SLOW)
        first = await site.gateway("g1")
        request = ask(tokens=30)
        answer = await begin_and_lose(first, request, tokens=10)
        await one.kill()
        site.exits(one.name)
        await site.replica(**SLOW)
        second = await site.gateway("g2", ready=1)
        await resume(second, answer, request)
        answer.check(request)
        assert outcomes(second) == {"redrawn": 1}


async def test_another_request_under_the_same_id_does_not_get_the_stream(site: Site) -> None:
    async with site:
        await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        await begin_and_lose(first, ask("a secret", tokens=30), tokens=10)
        other = ask("what was it?", tokens=30)
        answer = await resume(second, Answer(), other)
        answer.check(other)
        assert outcomes(second) == {"redrawn": 1}


async def test_engines_that_draw_differently_can_be_attached_to_but_not_asked_again(site: Site) -> None:
    async with site:
        one = await site.replica(engine=erratic(**SLOW))
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=30)
        answer = await begin_and_lose(first, request, tokens=10)
        await resume(second, answer, request)
        answer.check(request)
        assert outcomes(second) == {"attached": 1}
        one.replica._held.shelf.expire(float("inf"))
        with pytest.raises(RequestRefused) as refused:
            await resume(second, answer, request)
        assert refused.value.code == "cannot_resume"
        assert outcomes(second) == {"attached": 1, "refused": 1}


async def test_a_replica_that_does_not_answer_delays_but_does_not_prevent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site:
        replicas = [await site.replica(**SLOW) for _ in range(2)]
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=60)
        answer = await begin_and_lose(first, request, tokens=10)
        (idle,) = (replica for replica in replicas if replica.free)
        monkeypatch.setattr(idle.replica, "_on_frame", lambda _peer, _frame: None)
        await resume(second, answer, request)
        answer.check(request)
        assert outcomes(second) == {"attached": 1}


async def test_a_search_does_not_wait_for_a_replica_that_the_log_says_is_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.gateway.search.SEARCH_MAX_S", 60.0)
    async with site:
        holder = await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=30)
        answer = await begin_and_lose(first, request, tokens=10)
        await holder.kill()
        await eventually(lambda: replicas_ready(second) == 0)
        await site.replica(**SLOW)
        await eventually(lambda: replicas_ready(second) == 1)
        resuming = asyncio.create_task(resume(second, answer, request))
        await eventually(lambda: bool(second._pools[MODEL].searches))
        site.exits(holder.name)
        (await resuming).check(request)
        assert outcomes(second) == {"redrawn": 1}


async def test_a_stream_that_was_resumed_migrates_like_any_other(site: Site) -> None:
    async with site:
        replicas = [await site.replica(**SLOW) for _ in range(2)]
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=120)
        answer = await begin_and_lose(first, request, tokens=10)
        (holder,) = (replica for replica in replicas if not replica.free)
        counts = (len(answer.counts[0]),)
        async with second.open(
            MODEL, [request], stops=[], name=NAME, resumption=Resumption(counts, replay=False)
        ) as session:
            await answer.read(session, tokens=40)
            await holder.kill()
            await answer.read(session)
        answer.check(request)
        assert sum(second.migrations.values()) == 1


async def test_replayed_tokens_are_handed_out_again_where_the_gateway_asks_for_them(site: Site) -> None:
    async with site:
        await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=30)
        await begin_and_lose(first, request, tokens=10)
        async with second.open(
            MODEL, [request], stops=[], name=NAME, resumption=Resumption((10,), replay=True)
        ) as session:
            (await Answer().read(session)).check(request)
        assert outcomes(second) == {"attached": 1}


async def test_the_gateway_that_had_the_stream_is_told_that_it_was_taken_over(site: Site) -> None:
    async with site:
        await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=100)
        async with first.open(MODEL, [request], stops=[], name=NAME) as session:
            answer = await Answer().read(session, tokens=10)
            await resume(second, answer, request)
            answer.check(request)
            with pytest.raises(RequestRefused) as refused:
                await Answer().read(session)
            assert refused.value.code == "taken_over"


async def test_streams_without_a_name_end_with_their_connection(site: Site) -> None:
    async with site:
        replica = await site.replica(**SLOW)
        gateway = await site.gateway("g1", replica_wait_s=0)
        async with gateway.open(MODEL, [ask(tokens=500)], stops=[]) as session:
            await Answer().read(session, tokens=5)
            replica.cut()
            await eventually(lambda: len(replica.replica._held.by_key) == 0)


async def test_what_migrated_while_its_replica_was_not_reached_is_fenced_when_it_is_back(site: Site) -> None:
    async with site:
        replicas = [await site.replica(**SLOW) for _ in range(2)]
        reports: list[Any] = []
        for replica in replicas:
            replica.replica._report = reports.append
        gateway = await site.gateway("g1")
        request = ask(tokens=400)
        async with gateway.open(MODEL, [request], stops=[], name=NAME) as session:
            answer = await Answer().read(session, tokens=10)
            (holder,) = (replica for replica in replicas if not replica.free)
            holder.cut()
            await eventually(lambda: bool(reports))
            assert [(report.gateway, report.streams) for report in reports] == [("g1", 1)]
            await eventually(lambda: holder.free)
            await answer.read(session)
        answer.check(request)


async def test_a_stream_that_stands_still_migrates_alone(site: Site) -> None:
    async with site:
        replicas: list[LocalReplica] = [await site.replica(**SLOW, faults=True) for _ in range(2)]
        gateway = await site.gateway("g1", stream_stall_timeout_s=0.2)
        stalled, other = ask("[[fault:stall]]", 30), ask("goes on", 400)
        async with asyncio.timeout(20), gateway.open(MODEL, [other] * 4, stops=[]) as others:
            async with gateway.open(MODEL, [stalled], stops=[]) as session:
                (await Answer().read(session)).check(stalled)
            (await Answer().read(others)).check(*[other] * 4)
        assert gateway.migrations == {(MODEL, "stalled"): 1}
        await eventually(lambda: all(replica.free for replica in replicas))


async def test_a_second_beginning_of_a_stream_ends_the_first_instead_of_leaving_it_to_wait(site: Site) -> None:
    async with site:
        await site.replica(**SLOW)
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=400)
        async with first.open(MODEL, [request], stops=[], name=NAME) as session:
            await Answer().read(session, tokens=5)
            async with second.open(MODEL, [request], stops=[], name=NAME) as again:
                with pytest.raises(RequestRefused) as refused:
                    await Answer().read(session)
                assert refused.value.code == "taken_over"
                (await Answer().read(again)).check(request)


async def test_what_is_drawn_again_counts_as_later_than_the_copy_that_was_of_no_use(site: Site) -> None:
    async with site:
        replicas = [await site.replica(**SLOW) for _ in range(2)]
        first, second = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=400)
        session = first.open(MODEL, [request], stops=[], name=NAME)
        await session.__aenter__()
        answer = await Answer().read(session, tokens=10)
        (holder,) = (replica for replica in replicas if not replica.free)
        await holder.kill()
        await answer.read(session, tokens=20)
        for link in first._links.values():
            link._on_orphans = lambda _runs, _cause: None
            link._contact.cut()
            link.retire()
        nothing = Resumption((0,), replay=False)
        async with second.open(MODEL, [request], stops=[], name=NAME, resumption=nothing) as again:
            await Answer().read(again, tokens=5)
            assert outcomes(second) == {"redrawn": 1}, "the texts of the first tokens are nowhere"
            (alive,) = (replica for replica in replicas if replica is not holder)
            (held,) = alive.replica._held.by_key.values()
            assert held.gateway == "g2"
            assert held.tokens.ordinal > 3


async def test_the_gateway_that_its_client_left_takes_no_resumed_stream_back(site: Site) -> None:
    """It has not noticed yet, and goes on with the stream elsewhere once it has lost its replica."""
    async with site:
        replicas = [await site.replica(**SLOW) for _ in range(2)]
        left, resumed = await site.gateway("g1"), await site.gateway("g2")
        request = ask(tokens=300)
        async with left.open(MODEL, [request], stops=[], name=NAME) as session:
            answer = await Answer().read(session, tokens=10)
            (holder,) = (replica for replica in replicas if not replica.free)
            # The other gateway does not reach the holder, and draws the stream again on the other replica.
            (unreached,) = (link for link in resumed._links.values() if link.replica == holder.name)
            resumed._retire(unreached)
            counts = Resumption((len(answer.counts[0]),), replay=False)
            async with resumed.open(MODEL, [request], stops=[], name=NAME, resumption=counts) as again:
                await answer.read(again, tokens=20)
                await holder.kill()
                with pytest.raises(RequestRefused) as refused:
                    await Answer().read(session)
                assert refused.value.code == "taken_over"
                (await answer.read(again)).check(request)


async def test_a_gateway_that_queues_nothing_still_lets_a_replica_read_prompts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = ReplicaLink._look_for_stalls
    engine = engine_of(**SLOW)
    admit = engine.admit

    def counted(link: ReplicaLink, now_s: float) -> None:
        looks.append(now_s)
        look(link, now_s)

    async def slowly(key: int, request: EngineRequest) -> int:
        begun = len(looks)
        await eventually(lambda: len(looks) > begun + 5)
        return await admit(key, request)

    monkeypatch.setattr("holdfast.gateway.link.STALL_LOOK_S", 0.01)
    monkeypatch.setattr(ReplicaLink, "_look_for_stalls", counted)
    monkeypatch.setattr(engine, "admit", slowly)
    async with site:
        await site.replica(engine=engine)
        gateway = await site.gateway("g1", replica_wait_s=0)
        async with gateway.open(MODEL, [ask()], stops=[]) as session:
            (await Answer().read(session)).check(ask())
        assert not gateway.migrations


@pytest.mark.parametrize("replay", [False, True])
def test_what_a_client_has_counts_also_while_it_is_drawn_again(replay: bool) -> None:
    session = StreamSession(
        [EngineRequest(prompt="x")],
        [],
        3,
        lambda _run: None,
        lambda _run: None,
        5.0,
        "cmpl-1",
        Resumption((8,), replay=replay),
    )
    stream = session._runs[0].stream
    assert session._runs[0].has_tokens, "it makes no room for others: its client must not lose the rest"
    stream.start()
    for position in range(5):
        stream.token(position, position, "a")
    assert (session.completion_tokens, session.drawn_tokens) == (8, 5)
    for position in range(5, 10):
        stream.token(position, position, "a")
    assert (session.completion_tokens, session.drawn_tokens) == (10, 10)
