"""What the torch engine holds for streams that nobody wants any more: nothing, after the step under way."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

import holdfast.actors
from holdfast.actors.engines.mock import MockEngine
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.core.requests import EngineRequest
from tests.unit.support.history import application
from tests.unit.support.replicas import LocalReplica, Site, eventually, opened
from tests.unit.support.stepped import Stepped, freed_after_one_step

MODEL = Path(holdfast.actors.__file__).parent / "models" / "tiny"
PROMPT_TOKENS = 600
CHUNK = 64
LONG = EngineRequest(prompt_tokens=[5 + at % 50 for at in range(PROMPT_TOKENS)], max_tokens=200, ignore_eos=True)


async def engine_of() -> TorchEngine:
    return await load_engine(TorchSettings(str(MODEL), prefill_tokens_max=CHUNK))


def all_blocks_free(engine: TorchEngine) -> bool:
    """Each block once in the pool's list."""
    return sorted(engine._pool._free) == list(range(1, engine._pool.blocks + 1))


@pytest.fixture
async def bed() -> AsyncIterator[tuple[Site, LocalReplica, Stepped]]:
    """A replica over a torch engine that steps only when it is let."""
    engine = await engine_of()
    stepped = Stepped(engine)
    async with Site() as site:
        site.deploy(application(replicas=1, engine_stall_timeout_s=600.0))
        yield site, await site.replica(engine=cast(MockEngine, stepped)), stepped
    await engine.close()


@pytest.mark.parametrize("steps", [1, 4, 12])
async def test_a_dropped_stream_has_its_blocks_back_at_once_wherever_it_is(steps: int) -> None:
    """In the first chunk of its prompt, in the middle, and behind its first tokens."""
    engine = await engine_of()
    await engine.admit(1, LONG)
    for _ in range(steps):
        await engine.step()
    assert engine.load().kv_blocks_used > 0
    assert (engine.load().prefill_tokens_waiting > 0) == (steps * CHUNK < PROMPT_TOKENS)
    engine.drop(1)
    load = engine.load()
    assert (load.kv_blocks_used, load.running, load.waiting, load.prefill_tokens_waiting) == (0, 0, 0, 0)
    assert all_blocks_free(engine)
    await engine.close()


@pytest.mark.parametrize("way", ["leave", "stop", "fail"])
async def test_a_client_that_is_gone_in_the_middle_of_its_prompt(
    bed: tuple[Site, LocalReplica, Stepped], way: str
) -> None:
    site, replica, stepped = bed
    gateway = await site.gateway()
    async with opened(gateway, LONG) as session:
        await stepped.let(3)
        assert 0 < stepped.load().prefill_tokens_waiting < PROMPT_TOKENS
        if way == "stop":
            session.stop()
        elif way == "fail":
            session.fail(RuntimeError("killed"))
    await freed_after_one_step(replica, stepped)
    assert all_blocks_free(cast(TorchEngine, stepped.engine))


async def test_a_client_that_is_gone_while_its_prompt_is_cut_into_tokens_takes_no_block(
    bed: tuple[Site, LocalReplica, Stepped], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, replica, stepped = bed
    gateway = await site.gateway()
    goes_on = False
    encode = ModelTokenizer.encode

    def slow(self: ModelTokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        while not goes_on:
            time.sleep(0.001)
        return encode(self, text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(ModelTokenizer, "encode", slow)
    async with opened(gateway, EngineRequest(prompt="Once upon a time", max_tokens=20)):
        await eventually(lambda: replica.replica._admitting is not None)
    await eventually(lambda: replica.replica._admitting is None)
    goes_on = True
    await eventually(lambda: stepped.admitted == 1)
    await eventually(lambda: not replica.replica._live)
    load = stepped.load()
    assert (stepped.steps, load.kv_blocks_used, load.running, load.waiting) == (0, 0, 0, 0)
    assert all_blocks_free(cast(TorchEngine, stepped.engine))
