"""A prompt that is far too long is refused at once, and holds up nobody while it is looked at."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import holdfast.actors
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.actors.engines.torch.tokenizer import LONG_TEXT_CHARS, ModelTokenizer
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineRequest

MODEL = Path(holdfast.actors.__file__).parent / "models" / "tiny"


async def engine() -> TorchEngine:
    return await load_engine(TorchSettings(str(MODEL)))


@pytest.mark.parametrize("text", ["a " * 2_000_000, "word " * 5_000, "\u20ac" * 1_000_000])
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await engine()
    monkeypatch.setattr(ModelTokenizer, "encode", None)  # calling it would raise a TypeError
    with pytest.raises(RequestRefused) as refused:
        await one.admit(1, EngineRequest(prompt=text))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    await one.close()


def test_a_long_text_has_the_same_ids_as_its_pieces_would_have_together() -> None:
    tokenizer = ModelTokenizer(MODEL / "tokenizer.json")
    line = "The ship came home.\n"
    long = line * (LONG_TEXT_CHARS // len(line) + 1)
    ids = tokenizer.encode(long, add_special_tokens=True)
    assert tokenizer.decoder().feed(ids[1]) == "The"
    assert len(ids) >= tokenizer.fewest_tokens(long)
    assert "".join(map(tokenizer.decoder().feed, ids)) == long


async def test_streams_go_on_while_a_long_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    one = await engine()
    started, goes_on = asyncio.Event(), False
    loop = asyncio.get_running_loop()

    def slow(_self: ModelTokenizer, _text: str, *, add_special_tokens: bool) -> list[int]:
        assert add_special_tokens
        loop.call_soon_threadsafe(started.set)
        while not goes_on:
            time.sleep(0.001)
        return [5, 6, 7]

    await one.admit(1, EngineRequest(prompt="Once upon a time", max_tokens=20, ignore_eos=True))
    monkeypatch.setattr(ModelTokenizer, "encode", slow)
    admission = asyncio.create_task(one.admit(2, EngineRequest(prompt="long", max_tokens=2, ignore_eos=True)))
    await started.wait()
    tokens = 0
    while tokens < 10:
        tokens += len((await one.step()).tokens)
    assert not admission.done()
    goes_on = True
    assert await admission == 3
    keys: set[int] = set()
    while 2 not in keys:
        keys.update((await one.step()).keys)
    await one.close()
