"""The mock engine says the same from any position on any replica, and accounts for every KV block."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.actors.engines.base import FINISH_LENGTH, FINISH_STOP, StepOutput
from holdfast.actors.engines.mock import (
    CRASH_MARKER,
    TOKENS_WITHOUT_LIMIT,
    MockEngine,
    mock_text,
    parse_settings,
)
from holdfast.actors.engines.words import WORDS
from holdfast.core.errors import InvalidConfig, RequestRefused
from holdfast.core.requests import EngineRequest, Sampling
from tests.unit.support.strategies import SOME
from tests.unit.support.virtual_time import VirtualLoop, now_s, virtual_time


def engine_of(**arguments: Any) -> MockEngine:
    return MockEngine(parse_settings(arguments), "tiny", random.Random(1))


def request_of(prompt: str = "tell me", tokens: int = 5, **more: Any) -> EngineRequest:
    return EngineRequest(prompt=prompt, max_tokens=tokens, **more)


async def run_out(engine: MockEngine) -> dict[int, list[tuple[int, int, str]]]:
    """Step until nothing is left; each stream's (position, token, text)."""
    out: dict[int, list[tuple[int, int, str]]] = {}
    while engine.load().running or engine.load().waiting:
        step = await engine.step()
        for key, *token in zip(step.keys, step.positions, step.tokens, step.texts, strict=True):
            out.setdefault(key, []).append(tuple(token))  # type: ignore[arg-type]
    return out


# --- what it says ---------------------------------------------------------------------------------------


@SOME
@given(st.text(st.characters(codec="utf-8")), st.integers(0, 2**63 - 1), st.integers(1, 12), st.data())
def test_a_stream_resumed_at_any_position_goes_on_as_the_first_would_have(
    prompt: str, seed: int, tokens: int, data: st.DataObject
) -> None:
    request = request_of(prompt, tokens, sampling=Sampling(seed=seed))

    @virtual_time
    async def check() -> None:
        engine = engine_of()
        await engine.admit(1, request)
        whole = (await run_out(engine))[1]
        assert "".join(text for _, _, text in whole) == mock_text(request, tokens)
        done = data.draw(st.integers(0, tokens - 1))
        other = engine_of()
        accepted = [token for _, token, _ in whole[:done]]
        await other.admit(7, request_of(prompt, tokens, sampling=Sampling(seed=seed), accepted=accepted))
        assert (await run_out(other))[7] == whole[done:]

    check()


@virtual_time
async def test_a_stream_that_has_all_its_tokens_already_ends_without_another() -> None:
    engine = engine_of()
    await engine.admit(1, request_of(tokens=2, accepted=[3, 4]))
    assert await engine.step() == StepOutput(finished=[(1, FINISH_LENGTH)])
    assert engine.load().kv_blocks_used == 0


@virtual_time
async def test_prompts_wait_to_be_read_until_their_first_token_or_until_they_are_dropped() -> None:
    engine = engine_of(ttft_ms=50, streams_max=2)
    for key, prompt in enumerate(("one two three", "one two", "one")):
        await engine.admit(key, request_of(prompt))
    assert engine.load().prefill_tokens_waiting == 6
    engine.drop(1)
    assert engine.load().prefill_tokens_waiting == 4
    while not (await engine.step()).keys:
        pass
    assert engine.load().prefill_tokens_waiting == 0


@virtual_time
async def test_prompts_of_every_form_are_told_apart() -> None:
    requests = [
        EngineRequest(messages=[{"role": "user", "content": "hi"}]),
        EngineRequest(prompt="hi"),
        EngineRequest(prompt_tokens=[1, 2]),
        EngineRequest(prompt="hi", sampling=Sampling(seed=1)),
    ]
    assert len({mock_text(request, 8) for request in requests}) == len(requests)
    engine = engine_of()
    assert [await engine.admit(key, request) for key, request in enumerate(requests)][1:] == [1, 2, 1]


@virtual_time
async def test_log_probabilities_come_for_who_asked_and_name_the_chosen_token_first() -> None:
    engine = engine_of()
    for key, logprobs in enumerate((-1, 0, 3)):
        await engine.admit(key, request_of(logprobs=logprobs))
    step = await engine.step()
    assert step.logprobs is not None
    none, plain, three = step.logprobs
    assert none is None
    assert plain is not None
    assert plain.top == []
    assert three is not None
    assert three.top[0] == (step.tokens[2], three.text, three.logprob)
    assert three.text.decode() == step.texts[2]
    assert sorted((logprob for _, _, logprob in three.top), reverse=True) == [logprob for _, _, logprob in three.top]
    assert len({token for token, _, _ in three.top}) == 3


@virtual_time
async def test_without_logprobs_there_are_none() -> None:
    engine = engine_of()
    await engine.admit(1, request_of())
    assert (await engine.step()).logprobs is None


# --- where it ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "tokens", "reason"),
    [
        (request_of(tokens=3), 3, FINISH_LENGTH),
        (request_of(tokens=0), TOKENS_WITHOUT_LIMIT, FINISH_STOP),
        (request_of(tokens=0, ignore_eos=True), 98, FINISH_LENGTH),
        (request_of(tokens=0, min_tokens=TOKENS_WITHOUT_LIMIT + 1), 98, FINISH_LENGTH),
        (request_of(tokens=98), 98, FINISH_LENGTH),
        (request_of("word " * 99, tokens=0), 1, FINISH_STOP),
    ],
)
def test_a_stream_ends_where_it_must_for_the_right_reason(request_: EngineRequest, tokens: int, reason: str) -> None:
    @virtual_time
    async def check() -> None:
        engine = engine_of(context_tokens_max=100)
        await engine.admit(1, request_)
        steps = []
        while engine.load().running:
            steps.append(await engine.step())
        assert sum(len(step.keys) for step in steps) == tokens
        assert steps[-1].finished == [(1, reason)]

    check()


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        ({"context_tokens_max": 10}, request_of(tokens=9)),
        ({"context_tokens_max": 10}, request_of("word " * 10, tokens=0)),
        ({"context_tokens_max": 10}, EngineRequest(prompt_tokens=[1] * 10, max_tokens=1)),
        ({"kv_blocks": 2, "block_tokens": 4}, request_of(tokens=7)),
    ],
)
def test_what_can_never_be_served_is_refused_and_holds_nothing(
    arguments: dict[str, Any], request_: EngineRequest
) -> None:
    @virtual_time
    async def check() -> None:
        engine = engine_of(**arguments)
        with pytest.raises(RequestRefused) as refusal:
            await engine.admit(1, request_)
        assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")
        assert (engine.load().running, engine.load().waiting, engine.load().kv_blocks_used) == (0, 0, 0)

    check()


@pytest.mark.parametrize(
    "arguments", [{"ttft_ms": -1}, {"jitter": 2}, {"kv_blocks": 0}, {"itl": 5}, {"itl_ms": "5"}, {"faults": 1}]
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=f"mock engine arguments: .*{next(iter(arguments))}"):
        parse_settings(arguments)


# --- how fast -------------------------------------------------------------------------------------------


@virtual_time
async def test_tokens_come_at_the_pace_that_was_set() -> None:
    engine = engine_of(ttft_ms=100, itl_ms=10)
    await engine.admit(1, request_of(tokens=5))
    times = []
    while engine.load().running:
        if (await engine.step()).keys:
            times.append(now_s())
    assert times[0] == pytest.approx(0.1, abs=0.011)
    assert times[-1] - times[0] == pytest.approx(0.04)


@virtual_time
async def test_jitter_stays_within_its_part() -> None:
    engine = engine_of(itl_ms=10, jitter=0.5)
    await engine.admit(1, request_of(tokens=200))
    times = [now_s()]
    while engine.load().running:
        await engine.step()
        times.append(now_s())
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.005 - 1e-9
    assert max(gaps) <= 0.015 + 1e-9
    assert max(gaps) - min(gaps) > 0.005


@virtual_time
async def test_a_hung_engine_stands_still_until_it_is_resumed() -> None:
    engine = engine_of()
    await engine.admit(1, request_of())
    engine.hang()
    step = asyncio.ensure_future(engine.step())
    await asyncio.sleep(60)
    assert not step.done()
    engine.resume()
    assert (await step).positions == [0]


@virtual_time
async def test_a_prompt_crashes_the_engine_only_where_faults_are_on() -> None:
    tame, wild = engine_of(), engine_of(faults=True)
    for engine in (tame, wild):
        await engine.admit(1, request_of(f"please {CRASH_MARKER}"))
    assert len((await run_out(tame))[1]) == 5
    await wild.step()
    await wild.step()
    with pytest.raises(RuntimeError, match="crash"):
        await wild.step()


@virtual_time
async def test_a_prompt_kills_its_replicas_when_the_stream_is_so_long_and_says_what_it_would_have() -> None:
    plain, marked = request_of("please", 6), request_of("please[[fault:kill 2 4]]", 6)
    told = (await run_out(await admitted(engine_of(), plain)))[1]
    killed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, _signal: killed.append(pid))
        for accepted, kills in ((0, 2), (1, 2), (2, 1), (3, 1), (4, 0)):
            killed.clear()
            resumed = msgspec.structs.replace(marked, accepted=[token for _, token, *_ in told[:accepted]])
            assert (await run_out(await admitted(engine_of(faults=True), resumed)))[1] == told[accepted:]
            assert killed == [os.getpid()] * kills
        await run_out(await admitted(engine_of(), marked))
        assert killed == []


@virtual_time
async def test_a_prompt_has_a_gpu_report_an_error_once_where_its_stream_began() -> None:
    request = request_of("please [[fault:xid 79]]", 5)
    for settings, accepted, xids in (({"faults": True}, 0, [79]), ({"faults": True}, 2, []), ({}, 0, [])):
        engine = engine_of(**settings)
        heard: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.device_events, "inject", heard.append)
            told = (await run_out(await admitted(engine, request)))[1]
            heard.clear()
            resumed = msgspec.structs.replace(request, accepted=[token for _, token, *_ in told[:accepted]])
            assert (await run_out(await admitted(engine, resumed)))[1] == told[accepted:]
        assert heard == xids


async def admitted(engine: MockEngine, request: EngineRequest) -> MockEngine:
    await engine.admit(1, request)
    return engine


def test_the_vocabulary_is_256_different_words() -> None:
    assert len(set(WORDS)) == len(WORDS) == 256


# --- accounts -------------------------------------------------------------------------------------------


class Accounts(RuleBasedStateMachine):
    """Streams come, step and go in any order."""

    BLOCKS, STREAMS = 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.engine = engine_of(kv_blocks=self.BLOCKS, block_tokens=4, streams_max=self.STREAMS)
        self.lengths: dict[int, int] = {}
        self.order: list[int] = []
        self.key = 0

    def teardown(self) -> None:
        for key in list(self.lengths):
            self.drop(key)
        assert self.engine.load().kv_blocks_used == 0
        self.loop.close()

    @rule(prompt=st.integers(1, 8), tokens=st.integers(1, 30))
    def admit(self, prompt: int, tokens: int) -> None:
        self.key += 1
        request = EngineRequest(prompt_tokens=[0] * prompt, max_tokens=tokens)
        try:
            assert self.loop.run_until_complete(self.engine.admit(self.key, request)) == prompt
        except RequestRefused:
            assert prompt + tokens > 4 * self.BLOCKS
        else:
            self.lengths[self.key] = prompt + tokens
            self.order.append(self.key)

    @rule(key=st.integers(1, 20))
    def drop(self, key: int) -> None:
        self.engine.drop(key)
        self.lengths.pop(key, None)
        self.order = [other for other in self.order if other != key]

    @rule()
    def step(self) -> None:
        running = self.running()
        output = self.loop.run_until_complete(self.engine.step())
        assert output.keys == running, "every running stream gets a token in every step"
        for key, _ in output.finished:
            self.drop(key)

    def running(self) -> list[int]:
        """First come, first served, as long as there is room for the next."""
        return list(self.engine._running)

    @invariant()
    def accounts_are_right(self) -> None:
        load, running = self.engine.load(), self.running()
        used = sum(-(-self.lengths[key] // 4) for key in running)
        assert load.kv_blocks_used == used <= load.kv_blocks == self.BLOCKS
        assert load.running == len(running) <= self.STREAMS
        assert load.running + load.waiting == len(self.lengths)

    @invariant()
    def nobody_waits_without_need_and_nobody_overtakes(self) -> None:
        running = self.running()
        waiting = [key for key in self.order if key not in running]
        assert self.order[: len(running)] == running
        if waiting and len(running) < self.STREAMS:
            need = -(-self.lengths[waiting[0]] // 4)
            assert self.engine.load().kv_blocks_used + need > self.BLOCKS


Accounts.TestCase.settings = SOME
TestAccounts = Accounts.TestCase


# --- reading prompts ------------------------------------------------------------------------------------


@virtual_time
async def test_prompts_are_read_at_their_pace_one_after_the_other_and_some_of_it_in_each_step() -> None:
    engine = engine_of(prefill_tokens_per_s=1000, itl_ms=10)
    first_s: dict[int, float] = {}
    await engine.admit(1, request_of("w " * 500))
    await engine.admit(2, request_of("w " * 300))
    waiting = []
    while len(first_s) < 2:
        output = await engine.step()
        waiting.append(engine.load().prefill_tokens_waiting)
        for key in output.keys:
            first_s.setdefault(key, now_s())
    assert first_s[1] == pytest.approx(0.5, abs=0.03)
    assert first_s[2] == pytest.approx(0.8, abs=0.05)
    assert waiting == sorted(waiting, reverse=True)
    assert len(set(waiting)) > 50
    assert waiting[-1] == 0


@virtual_time
async def test_what_is_dropped_half_read_is_waited_for_no_more() -> None:
    engine = engine_of(prefill_tokens_per_s=1000)
    await engine.admit(1, request_of("w " * 500))
    for _ in range(20):
        await engine.step()
    assert 0 < engine.load().prefill_tokens_waiting < 500
    engine.drop(1)
    load = engine.load()
    assert (load.prefill_tokens_waiting, load.kv_blocks_used) == (0, 0)
    began_s = now_s()
    await engine.admit(2, request_of("w " * 100))
    while not (await engine.step()).keys:
        pass
    assert now_s() - began_s == pytest.approx(0.1, abs=0.02)
