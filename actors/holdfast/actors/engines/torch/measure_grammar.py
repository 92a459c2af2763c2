"""Prints what keeping streams to a grammar costs: the figures of docs/decisions/008.

python -m holdfast.actors.engines.torch.measure_grammar actors/holdfast/actors/models/tiny

xgrammar is measured beside it where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from holdfast.actors.engines.torch.config import read_config
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.grammar_check import GrammarChecker
from holdfast.actors.engines.torch.grammar_text import grammar_of
from holdfast.actors.engines.torch.grammars import COMPILE_S_MAX, Grammars
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.actors.engines.torch.tokenizer import ModelTokenizer
from holdfast.core.requests import EngineRequest, Grammar, Sampling

TEXTS: Final = 200
SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "three fields": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 4},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "1000 fields": {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "pattern": f"^[a-z]{{1,{n % 50 + 1}}}$"} for n in range(1000)},
    },
}
TAKEN_FOR_MORE: Final = (
    '{"not": {"type": "string"}}',
    '{"type": "array", "uniqueItems": true}',
    '{"allOf": [{"type": "string"}, {"type": "null"}]}',
    '{"type": "string", "format": "nonsense"}',
)
"""Schemas that a library has to enforce or to refuse; to take them and not enforce them is wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    directory: Path = parser.parse_args().model
    torch.set_num_threads(1)
    tokenizer, config = ModelTokenizer(directory / "tokenizer.json"), read_config(directory)
    for line in _guides(tokenizer, config.eos_token_ids, config.vocab_size):
        print(line)
    if find_spec("xgrammar") is not None:
        for line in _xgrammar(tokenizer, config.eos_token_ids, config.vocab_size):
            print(line)
    asyncio.run(_steps(directory))


def _milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return (time.perf_counter() - began) * 1e3, found


def _guides(tokenizer: ModelTokenizer, end_tokens: Sequence[int], vocab_size: int) -> Iterator[str]:
    checker, grammars = GrammarChecker(), Grammars(tokenizer, end_tokens, vocab_size)
    start_ms, _ = _milliseconds(lambda: checker.check('{"grammars":[{"json_schema":{}}]}', COMPILE_S_MAX))
    yield f"llguidance: the checking process starts in {start_ms:.0f} ms"
    grammars.guide(_request(SCHEMAS["any object"]))
    for name, schema in SCHEMAS.items():
        grammar = grammar_of(_request(schema))
        assert grammar is not None
        check_ms, error = _milliseconds(lambda text=grammar: checker.check(text, COMPILE_S_MAX))  # type: ignore[misc]
        first_ms, _ = _milliseconds(lambda of=schema: grammars.guide(_request(of)))  # type: ignore[misc]
        again_ms, _ = _milliseconds(lambda of=schema: grammars.guide(_request(of)))  # type: ignore[misc]
        assert error is None
        yield f"  {name:13} check {check_ms:6.1f} ms  first use {first_ms:6.1f} ms  again {again_ms:5.2f} ms"
        yield "  " + " " * 14 + _masks(lambda of=schema: _walk(grammars, of, end_tokens))  # type: ignore[misc]
    refused = sum(checker.check(json.dumps({"grammars": [{"json_schema": json.loads(schema)}]}), 1.0) is not None
                  for schema in TAKEN_FOR_MORE)  # fmt: skip
    yield f"  of {len(TAKEN_FOR_MORE)} schemas that it can't enforce or that nothing satisfies it refuses {refused}"
    slow = '{"grammars":[{"json_schema":{"type":"integer","multipleOf":9999991}}]}'
    slow_ms, error = _milliseconds(lambda: checker.check(slow, COMPILE_S_MAX))
    yield f"  multipleOf 9999991: {error} ({slow_ms:.0f} ms)"
    checker.close()
    grammars.close()


def _request(schema: dict[str, Any]) -> EngineRequest:
    return EngineRequest(grammar=Grammar(json.dumps(schema)))


def _masks(walk: Callable[[], list[float]]) -> str:
    times_us = sorted(found * 1e6 for _ in range(TEXTS) for found in walk())
    p99 = times_us[int(len(times_us) * 0.99)]
    return f"mask of a token: median {statistics.median(times_us):.0f} us, p99 {p99:.0f} us ({len(times_us)} tokens)"


_rng = np.random.default_rng(0)


def _walk(grammars: Grammars, schema: dict[str, Any], end_tokens: Sequence[int], tokens_max: int = 40) -> list[float]:
    """Draw evenly from what is allowed; the seconds that each mask took."""
    guide = grammars.guide(_request(schema))
    assert guide is not None
    generated: list[int] = []
    times_s = []
    while len(generated) < tokens_max:
        began = time.perf_counter()
        allowed = guide.allowed(generated, 0)
        times_s.append(time.perf_counter() - began)
        token = int(_rng.choice(allowed.nonzero()[:, 0].numpy()))
        if token in end_tokens:
            break
        guide.accept((token,))
        generated.append(token)
    return times_s


def _xgrammar(tokenizer: ModelTokenizer, end_tokens: Sequence[int], vocab_size: int) -> Iterator[str]:
    """The same for xgrammar, whose masks go into a tensor of its own."""
    import xgrammar  # type: ignore[import-not-found, unused-ignore]

    tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
    info = xgrammar.TokenizerInfo(tokens, vocab_size=vocab_size, stop_token_ids=list(end_tokens))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    yield "xgrammar:"
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema)
        first_ms, compiled = _milliseconds(
            lambda of=text: compiler.compile_json_schema(of, any_whitespace=False)  # type: ignore[misc]
        )

        def walk(of: Any = compiled) -> list[float]:
            matcher, bits = xgrammar.GrammarMatcher(of), xgrammar.allocate_token_bitmask(1, vocab_size)
            times_s = []
            for _ in range(40):
                began = time.perf_counter()
                matcher.fill_next_token_bitmask(bits)
                mask = np.unpackbits(bits.numpy().view(np.uint8), count=vocab_size, bitorder="little")
                times_s.append(time.perf_counter() - began)
                token = int(_rng.choice(np.flatnonzero(mask)))
                matcher.accept_token(token)
                if token in end_tokens:
                    break
            return times_s

        yield f"  {name:13} first use {first_ms:6.1f} ms  {_masks(walk)}"
    taken = sum(_is_taken(compiler, schema) for schema in TAKEN_FOR_MORE)
    yield f"  of {len(TAKEN_FOR_MORE)} schemas that it can't enforce or that nothing satisfies it takes {taken}"


def _is_taken(compiler: Any, schema: str) -> bool:
    try:
        compiler.compile_json_schema(schema)
    except RuntimeError:
        return False
    return True


async def _steps(directory: Path) -> None:
    print("a step of the engine, n streams at temperature 1, all of them constrained or none (fastest, median):")
    engine = await load_engine(TorchSettings(model=str(directory)))
    for streams in (1, 16):
        for name, grammar in (("none", None), ("any object", Grammar('{"type":"object"}'))):
            print(f"  n={streams:<3} {name:11} {await _step(engine, streams, grammar)}")
    await engine.close()


async def _step(engine: TorchEngine, streams: int, grammar: Grammar | None) -> str:
    for key in range(streams):
        await engine.admit(
            key,
            EngineRequest(prompt="Once", max_tokens=48, min_tokens=48, grammar=grammar, sampling=Sampling(seed=key)),
        )
    await engine.step()
    steps_ms = []
    while engine.load().running == streams:
        began = time.perf_counter()
        await engine.step()
        steps_ms.append((time.perf_counter() - began) * 1e3)
    while engine.load().running:
        await engine.step()
    return f"{min(steps_ms):5.1f} ms  {statistics.median(steps_ms):5.1f} ms"


if __name__ == "__main__":
    main()
