"""A stream's tokens, texts and logprobs are bitwise the same whatever happens around it.

The reference is each request by itself in an engine of its own. Against it: crowds that come and go at random
steps, prompts in chunks of any size, scarce KV blocks, and resumption after any number of accepted tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.actors.engines.torch import engine as engine_module
from holdfast.actors.engines.torch.batch import Row, tile_of
from holdfast.actors.engines.torch.cache import KvCache
from holdfast.actors.engines.torch.engine import TorchEngine
from holdfast.actors.engines.torch.model import Tile
from holdfast.core.requests import EngineRequest, Sampling
from tests.unit.torch_engine.models import SHIPPED, make_model
from tests.unit.torch_engine.running import Recorded, Recorder, load, run_alone, run_one, run_to_end

PREFILLS = (1, 3, 16, 37, 256)
TEXT = "A stream of tokens, größer und größer 🙂 "


def _request(
    prompt_tokens: int, max_tokens: int, sampling: Sampling, *, min_tokens: int = 0, ignore_eos: bool = True
) -> EngineRequest:
    return EngineRequest(
        prompt_tokens=[(7 * n + prompt_tokens) % 300 for n in range(prompt_tokens)],
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
        logprobs=3,
        sampling=sampling,
    )


REQUESTS = (
    _request(1, 20, Sampling(temperature=0.0), ignore_eos=False),
    _request(40, 12, Sampling(temperature=0.0)),
    _request(17, 25, Sampling(seed=1)),
    _request(33, 20, Sampling(seed=2, temperature=0.7, top_p=0.8)),
    _request(5, 30, Sampling(seed=3, temperature=1.5, top_k=20), min_tokens=4, ignore_eos=False),
    _request(64, 9, Sampling(seed=4, presence_penalty=0.8, frequency_penalty=0.5)),
    _request(16, 16, Sampling(seed=5, top_p=0.5, top_k=50, frequency_penalty=1.1)),
)
numbers = st.integers(0, len(REQUESTS) - 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("exactness"))


@pytest.fixture(scope="module")
def alone(directory: Path) -> tuple[Recorded, ...]:
    return tuple(run_alone(directory, request) for request in REQUESTS)


@pytest.fixture(scope="module")
def engines(directory: Path) -> Iterator[dict[tuple[int, int], TorchEngine]]:
    """By prefill limit and KV blocks: plenty, and so few that streams have to wait."""
    loaded = {
        (prefill, blocks): load(directory, prefill_tokens_max=prefill, kv_blocks=blocks, streams_max=8)
        for prefill in PREFILLS
        for blocks in (9, 200)
    }
    yield loaded
    for engine in loaded.values():
        asyncio.run(engine.close())


class Guest(msgspec.Struct, frozen=True):
    """A stream that comes at a step, resumed after a share of its tokens, and perhaps goes some steps later."""

    number: int
    joins: int
    resumed: float
    leaves: int | None


guests = st.builds(
    Guest, number=numbers, joins=st.integers(0, 25), resumed=st.sampled_from([0, 0, 0.3, 0.9, 1.0]), leaves=st.none()
)
leavers = st.builds(Guest, number=numbers, joins=st.integers(0, 25), resumed=st.just(0.0), leaves=st.integers(0, 12))


def _resumed(request: EngineRequest, whole: Recorded, accepted: int) -> EngineRequest:
    return msgspec.structs.replace(request, accepted=whole.tokens[:accepted])


def _assert_rest(stream: Recorded, whole: Recorded, accepted: int) -> None:
    assert stream.tokens == whole.tokens[accepted:]
    assert stream.positions == list(range(accepted, len(whole.tokens)))
    assert stream.texts == whole.texts[accepted:]
    assert stream.logprobs == whole.logprobs[accepted:]
    assert stream.finish == whole.finish


async def _crowd(engine: TorchEngine, guests: list[Guest], alone: tuple[Recorded, ...]) -> dict[int, Recorded]:
    """Let the guests come and go; what each got that stayed."""
    recorder = Recorder()
    for step in range(40):
        for key, guest in enumerate(guests):
            if guest.joins == step:
                whole = alone[guest.number]
                accepted = int(guest.resumed * len(whole.tokens))
                await engine.admit(key, _resumed(REQUESTS[guest.number], whole, accepted))
            if guest.leaves is not None and guest.joins + guest.leaves == step:
                engine.drop(key)
        recorder.take(await engine.step())
    await run_to_end(engine, recorder)
    assert engine.load().kv_blocks_used == 0
    return recorder.streams


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(st.one_of(guests, leavers), min_size=1, max_size=12),
    st.sampled_from(PREFILLS),
    st.sampled_from([9, 200]),
)
def test_a_crowd_that_comes_and_goes_changes_no_bit_of_a_stream(
    engines: dict[tuple[int, int], TorchEngine],
    alone: tuple[Recorded, ...],
    guests: list[Guest],
    prefill: int,
    blocks: int,
) -> None:
    streams = asyncio.run(_crowd(engines[prefill, blocks], guests, alone))
    for key, guest in enumerate(guests):
        if guest.leaves is None:
            whole = alone[guest.number]
            _assert_rest(streams[key], whole, int(guest.resumed * len(whole.tokens)))


@pytest.mark.parametrize("number", range(len(REQUESTS)))
@pytest.mark.parametrize("prefill", [16, 256])
def test_a_stream_resumed_at_any_position_goes_on_as_if_nothing_had_happened(
    engines: dict[tuple[int, int], TorchEngine], alone: tuple[Recorded, ...], number: int, prefill: int
) -> None:
    whole = alone[number]
    for accepted in range(len(whole.tokens) + 1):
        resumed = run_one(engines[prefill, 200], _resumed(REQUESTS[number], whole, accepted))
        _assert_rest(resumed, whole, accepted)


@pytest.mark.parametrize("prefill", PREFILLS)
def test_the_chunks_of_the_prompt_change_no_bit(
    engines: dict[tuple[int, int], TorchEngine], alone: tuple[Recorded, ...], prefill: int
) -> None:
    for request, whole in zip(REQUESTS, alone, strict=True):
        _assert_rest(run_one(engines[prefill, 200], request), whole, 0)


def test_another_engine_s_limits_change_no_bit(directory: Path, alone: tuple[Recorded, ...]) -> None:
    for number in (3, 5):
        other = run_alone(directory, REQUESTS[number], streams_max=1, kv_blocks=11, prefill_tokens_max=2)
        _assert_rest(other, alone[number], 0)


async def _one_after_another(engine: TorchEngine, requests: list[EngineRequest]) -> dict[int, Recorded]:
    """Each joins a step after the one before."""
    recorder = Recorder()
    for key, request in enumerate(requests):
        await engine.admit(key, request)
        recorder.take(await engine.step())
    await run_to_end(engine, recorder)
    await engine.close()
    return recorder.streams


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_shipped_model_is_exact_too(dtype: str) -> None:
    requests = [
        EngineRequest(
            prompt=TEXT * (1 + n % 3),
            max_tokens=12,
            logprobs=2,
            sampling=Sampling(seed=n, temperature=n % 3 / 2),
            ignore_eos=True,
        )
        for n in range(9)
    ]
    engine = load(SHIPPED, dtype=dtype)
    assert engine.info.deterministic
    alone = [run_one(engine, request) for request in requests]
    for request, whole in zip(requests, alone, strict=True):
        _assert_rest(run_one(engine, _resumed(request, whole, 5)), whole, 5)
    asyncio.run(engine.close())
    together = asyncio.run(_one_after_another(load(SHIPPED, dtype=dtype, prefill_tokens_max=7), requests))
    for key, stream in together.items():
        _assert_rest(stream, alone[key], 0)


def _unpadded(rows: list[Row], tile_tokens: int, cache: KvCache) -> Tile:
    return tile_of(rows, len(rows), cache)


def test_without_the_fixed_shape_of_tiles_the_bits_do_change(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks the arithmetic on purpose, to know that the tests above would notice."""
    rows, weight = torch.randn(64, 48), torch.randn(128, 48)
    if torch.equal((rows @ weight.T)[:1], rows[:1] @ weight.T):
        pytest.skip("this machine's kernels compute one row as they compute many")
    monkeypatch.setattr(engine_module, "tile_of", _unpadded)
    whole = run_alone(directory, REQUESTS[1])
    resumed = run_alone(directory, _resumed(REQUESTS[1], whole, 6))
    assert resumed.logprobs != whole.logprobs[6:]
