"""The engine's promises to the replica: how streams end, what is refused, who waits, and what it reports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from holdfast.actors.engines.base import Engine
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.settings import read_settings
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineLoad, EngineRequest, Sampling
from tests.unit.torch_engine.models import CONTEXT_TOKENS, END, make_model
from tests.unit.torch_engine.running import Recorder, load, run, run_alone, run_one, run_to_end

GREEDY = Sampling(temperature=0)
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def ending(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model for which the fourth greedy token after `PROMPT` ends the text; and that token.

    It is the same random model; only its `generation_config.json` names another token.
    """
    tokens = run_alone(directory, request(max_tokens=40)).tokens
    end = next(token for n, token in enumerate(tokens) if n >= 3 and token not in tokens[:n])
    path = make_model(tmp_path_factory.mktemp("ending"))
    (path / "generation_config.json").write_bytes(msgspec.json.encode({"eos_token_id": [END, end]}))
    return path, end


@pytest.fixture
async def engine(directory: Path) -> AsyncIterator[TorchEngine]:
    engine = await load_engine(
        read_settings({"model": str(directory), "streams_max": 2, "waiting_max": 1, "kv_blocks": 8, "block_tokens": 16})
    )
    yield engine
    await engine.close()


@pytest.fixture
def ender(ending: tuple[Path, int]) -> Iterator[TorchEngine]:
    engine = load(ending[0])
    yield engine
    asyncio.run(engine.close())


def request(**fields: Any) -> EngineRequest:
    return EngineRequest(**{"prompt_tokens": PROMPT, "sampling": GREEDY, **fields})


def test_the_end_of_a_text_is_not_reported_as_a_token(ender: TorchEngine, ending: tuple[Path, int]) -> None:
    stream = run_one(ender, request(max_tokens=40))
    assert stream.finish == "stop"
    assert ending[1] not in stream.tokens
    assert len(stream.tokens) >= 3


def test_ignored_ends_are_tokens_like_any_other(ender: TorchEngine, ending: tuple[Path, int]) -> None:
    stream = run_one(ender, request(max_tokens=40, ignore_eos=True))
    assert (stream.finish, len(stream.tokens)) == ("length", 40)
    assert ending[1] in stream.tokens


def test_no_text_ends_before_its_minimum(ender: TorchEngine, ending: tuple[Path, int]) -> None:
    length = len(run_one(ender, request(max_tokens=40)).tokens)
    stream = run_one(ender, request(max_tokens=40, min_tokens=length + 1))
    assert len(stream.tokens) > length
    assert ending[1] not in stream.tokens[: length + 1]


def test_a_resumed_stream_counts_what_was_accepted_towards_its_limits(ender: TorchEngine) -> None:
    whole = run_one(ender, request(max_tokens=20, min_tokens=20))
    rest = run_one(ender, request(max_tokens=20, min_tokens=20, accepted=whole.tokens[:15]))
    assert rest.tokens == whole.tokens[15:]
    assert rest.positions == [15, 16, 17, 18, 19]
    nothing = run_one(ender, request(max_tokens=20, accepted=whole.tokens))
    assert (nothing.tokens, nothing.finish) == ([], "length")


def test_without_a_limit_a_text_goes_on_to_the_end_of_the_context(directory: Path) -> None:
    stream = run_alone(directory, request(ignore_eos=True))
    assert (stream.finish, len(stream.tokens)) == ("length", CONTEXT_TOKENS - len(PROMPT))


def test_fewer_kv_blocks_than_the_context_make_the_context_shorter(directory: Path) -> None:
    stream = run_alone(directory, request(ignore_eos=True), kv_blocks=2, block_tokens=16)
    assert len(stream.tokens) == 32 - len(PROMPT)


async def refusal(engine: TorchEngine, refused: EngineRequest) -> RequestRefused:
    with pytest.raises(RequestRefused) as info:
        await engine.admit(1, refused)
    assert engine.load().waiting == 0
    return info.value


async def test_a_prompt_that_fills_the_context_is_refused_in_openai_s_words(engine: TorchEngine) -> None:
    error = await refusal(engine, EngineRequest(prompt_tokens=[5] * 128))
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")
    assert error.message == (
        "This model's maximum context length is 128 tokens. However, your prompt resulted in 128 tokens. "
        "Please reduce the length of the prompt."
    )


async def test_a_limit_beyond_the_context_is_refused_in_openai_s_words(engine: TorchEngine) -> None:
    error = await refusal(
        engine, EngineRequest(messages=[{"role": "user", "content": "hi"}], max_tokens=CONTEXT_TOKENS)
    )
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "However, you requested 1" in error.message
    assert "in the messages, 128 in the completion)" in error.message
    assert await engine.admit(1, EngineRequest(prompt_tokens=[5] * 120, max_tokens=8)) == 120


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt_tokens": [5, 100_000]}, "invalid_token", "prompt"),
        ({"prompt_tokens": [-1]}, "invalid_token", "prompt"),
        ({"accepted": [100_000]}, "invalid_token", "accepted"),
        ({"prompt_tokens": []}, "empty_prompt", "prompt"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"sampling": Sampling(temperature=float("nan"))}, "invalid_value", "temperature"),
        ({"sampling": Sampling(top_p=0)}, "invalid_value", "top_p"),
        ({"sampling": Sampling(top_k=-1)}, "invalid_value", "top_k"),
        ({"sampling": Sampling(presence_penalty=3)}, "invalid_value", "presence_penalty"),
        (
            {"prompt_tokens": None, "messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "unsupported_content",
            "messages",
        ),
    ],
)
async def test_what_can_never_be_served_is_refused_before_any_work(
    engine: TorchEngine, fields: dict[str, Any], code: str, param: str
) -> None:
    error = await refusal(engine, request(**fields))
    assert (error.code, error.param) == (code, param)


async def test_streams_wait_for_a_slot_and_more_are_refused(engine: TorchEngine) -> None:
    for key in (1, 2, 3):
        await engine.admit(key, request(max_tokens=4))
    with pytest.raises(RequestRefused) as info:
        await engine.admit(4, request(max_tokens=4))
    assert info.value.code == "engine_overloaded"
    assert engine.load().prefill_tokens_waiting == 3 * len(PROMPT)
    recorder = Recorder()
    recorder.take(await engine.step())
    assert engine.load() == EngineLoad(2, 1, kv_blocks_used=2, kv_blocks=8, step=1, prefill_tokens_waiting=len(PROMPT))
    await run_to_end(engine, recorder)
    assert [len(recorder.streams[key].tokens) for key in (1, 2, 3)] == [4, 4, 4]
    assert engine.load() == EngineLoad(running=0, waiting=0, kv_blocks_used=0, kv_blocks=8, step=8)


async def test_a_stream_holds_the_blocks_of_its_longest_length_until_it_ends(engine: TorchEngine) -> None:
    await engine.admit(1, request(max_tokens=28))
    await engine.admit(2, request(max_tokens=29))
    await engine.step()
    # The last token is never fed back: 5 + 28 - 1 tokens are two blocks, 5 + 29 - 1 are three.
    assert engine.load().kv_blocks_used == 2 + 3
    engine.drop(1)
    assert engine.load().kv_blocks_used == 3
    engine.drop(1)
    engine.drop(99)
    engine.drop(2)
    assert engine.load() == EngineLoad(running=0, waiting=0, kv_blocks_used=0, kv_blocks=8, step=1)


async def test_a_dropped_stream_is_never_heard_of_again(engine: TorchEngine) -> None:
    for key in (1, 2, 3):
        await engine.admit(key, request(max_tokens=6))
    await engine.step()
    engine.drop(2)
    engine.drop(3)
    recorder = Recorder()
    await run_to_end(engine, recorder)
    assert set(recorder.streams) == {1}


async def test_a_step_is_bounded_by_the_prefill_limit(directory: Path) -> None:
    engine = await load_engine(read_settings({"model": str(directory), "prefill_tokens_max": 10}))
    await engine.admit(1, EngineRequest(prompt_tokens=[5] * 35, max_tokens=2, sampling=GREEDY))
    outputs = [await engine.step() for _ in range(5)]
    assert [len(output.tokens) for output in outputs] == [0, 0, 0, 1, 1]
    await engine.close()


async def test_a_step_without_streams_is_empty_and_counted(engine: TorchEngine) -> None:
    output = await engine.step()
    assert (output.keys, output.finished, output.logprobs) == ([], [], None)
    assert engine.load().step == 1


async def test_logprobs_go_to_those_who_ask(engine: TorchEngine) -> None:
    streams = await run(engine, {1: request(max_tokens=3, logprobs=2), 2: request(max_tokens=3)})
    assert streams[2].logprobs == [None, None, None]
    for token, logprob in zip(streams[1].tokens, streams[1].logprobs, strict=True):
        assert logprob is not None
        assert logprob.top[0] == (token, logprob.text, logprob.logprob)
        assert len(logprob.top) == 2


async def test_a_seed_decides_the_text(engine: TorchEngine) -> None:
    async def text(seed: int) -> str:
        drawn = request(max_tokens=20, sampling=Sampling(seed=seed), ignore_eos=True)
        return (await run(engine, {1: drawn}))[1].text

    assert await text(1) == await text(1)
    assert await text(1) != await text(2)


async def test_the_event_loop_turns_during_a_step(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, entered, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    forward = engine._model.forward

    def held_forward(*arguments: Any) -> torch.Tensor:
        loop.call_soon_threadsafe(entered.set)
        assert released.wait(timeout=240)
        return forward(*arguments)

    monkeypatch.setattr(engine._model, "forward", held_forward)
    await engine.admit(1, request(max_tokens=1))
    step = asyncio.create_task(engine.step())
    await entered.wait()
    assert not step.done()
    released.set()
    assert len((await step).tokens) == 1


async def test_a_failed_step_is_raised_and_changes_nothing(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (await run(engine, {1: request(max_tokens=5)}))[1]
    await engine.admit(1, request(max_tokens=5))
    recorder = Recorder()
    recorder.take(await engine.step())
    with monkeypatch.context() as broken:
        broken.setattr(engine._model, "logits", _out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            await engine.step()
    await run_to_end(engine, recorder)
    assert recorder.streams[1] == expected


def _out_of_memory(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("no memory")


async def test_one_stream_s_overflow_does_not_reach_another(engine: TorchEngine) -> None:
    """Blocks that held infinities are wiped before another stream reads them."""
    expected = (await run(engine, {1: request(max_tokens=8)}))[1]
    for layer in engine._cache.layers:
        layer[:, 1:] = torch.inf
    assert (await run(engine, {1: request(max_tokens=8)}))[1] == expected


async def test_the_engine_says_what_it_serves(engine: TorchEngine, directory: Path) -> None:
    port: Engine = engine
    assert port.info.model == directory.name
    assert port.info.context_tokens_max == CONTEXT_TOKENS
    assert (port.info.kv_blocks, port.info.streams_max) == (8, 2)
    assert port.info.deterministic
    assert port.info.device.startswith(("cpu", "cuda"))


def test_half_precision_models_run(directory: Path) -> None:
    stream = run_alone(directory, request(max_tokens=5), dtype="bfloat16", model_name="half")
    assert len(stream.tokens) == 5
