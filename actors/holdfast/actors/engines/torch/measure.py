"""Prints what holds bitwise on this machine, and how fast the engine is: the figures of docs/decisions/006.

python -m holdfast.actors.engines.torch.measure actors/holdfast/actors/models/tiny
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.actors.engines.torch.config import LlamaConfig, read_config
from holdfast.actors.engines.torch.engine import TorchEngine, load_engine
from holdfast.actors.engines.torch.invariance import rows_are_independent
from holdfast.actors.engines.torch.model import LlamaModel
from holdfast.actors.engines.torch.settings import TorchSettings
from holdfast.actors.engines.torch.weights import read_weights
from holdfast.core.requests import EngineRequest, Sampling

ROWS: Final = (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 48, 64)
TILES: Final = (1, 8, 16, 32, 64)
DTYPES: Final = (torch.float32, torch.bfloat16)
BLOCK_TOKENS: Final = 16
DECODED_TOKENS: Final = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    directory: Path = parser.parse_args().model
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    config = read_config(directory)
    with torch.inference_mode():
        for line in (*_products(config), *_paddings(config), *_batches(config), *_models(directory, config)):
            print(line)
    asyncio.run(_speeds(directory))


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the model's linear layers."""
    heads = config.heads + 2 * config.kv_heads
    return {
        "qkv": (config.hidden_size, heads * config.head_dim),
        "output": (config.heads * config.head_dim, config.hidden_size),
        "gate_up": (config.hidden_size, 2 * config.intermediate_size),
        "down": (config.intermediate_size, config.hidden_size),
        "head": (config.hidden_size, config.vocab_size),
    }


def _products(config: LlamaConfig) -> Iterator[str]:
    """Does a row's result depend on how many rows the product has?"""
    yield f"\nA row of a product of M rows has the bits that it has among {ROWS[-1]} rows, for M ="
    for dtype in DTYPES:
        for name, (inputs, outputs) in _shapes(config).items():
            rows = torch.randn(ROWS[-1], inputs).to(dtype)
            weight = torch.randn(outputs, inputs).to(dtype)
            whole = functional.linear(rows, weight)
            same = [m for m in ROWS if torch.equal(functional.linear(rows[:m], weight), whole[:m])]
            yield f"  {_short(dtype):9} {name:8} {' '.join(map(str, same))}"


def _paddings(config: LlamaConfig) -> Iterator[str]:
    """Does a sum over L keys change when masked keys, which weigh zero, are appended?"""
    yield "\nWeights times values over L keys, of 100 rows: rows whose bits change when zeros pad them to 256 keys"
    for length in (5, 16, 33, 64, 100):
        weights, values = torch.rand(100, 1, length), torch.randn(100, length, config.head_dim)
        zeros = 256 - length
        padded = torch.bmm(functional.pad(weights, (0, zeros)), functional.pad(values, (0, 0, 0, zeros)))
        sums = weights.sum(-1), functional.pad(weights, (0, zeros)).sum(-1)
        yield (
            f"  L={length:<4} one product: {_different(torch.bmm(weights, values), padded):3}"
            f"   torch.sum of the weights: {_different(*sums):3}"
        )


def _batches(config: LlamaConfig) -> Iterator[str]:
    """Does one of many small products of one shape depend on how many there are, and on which one it is?"""
    group, trials = config.heads // config.kv_heads, 1024
    asked = torch.randn(trials, group, config.head_dim)
    keys = torch.randn(trials, BLOCK_TOKENS, config.head_dim).transpose(1, 2)
    whole = torch.bmm(asked, keys)
    changed = 0
    for count in (1, 2, 3, 7, 16, 100, 512):
        picked = torch.randperm(trials)[:count]
        some = torch.bmm(asked[picked], keys.transpose(1, 2)[picked].transpose(1, 2))
        changed += _different(some, whole[picked])
    yield f"\nSmall products of one shape, in batches of 1 to 512, in any order: {changed} changed"


def _models(directory: Path, config: LlamaConfig) -> Iterator[str]:
    """The whole model: a sequence in full tiles by itself against row by row in company."""
    yield "\nThe whole model, tiles of T rows: logits alone and in company are bitwise the same"
    for dtype in DTYPES:
        model = LlamaModel(config, read_weights(directory, config, torch.device("cpu"), dtype))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            held = {tile: rows_are_independent(model, tile, BLOCK_TOKENS, dtype) for tile in TILES}
            text = "  ".join(f"T={tile}: {'yes' if same else 'NO'}" for tile, same in held.items())
            yield f"  {_short(dtype):9} threads={threads}  {text}"
    torch.set_num_threads(1)


async def _speeds(directory: Path) -> None:
    print(f"\nDecoding {DECODED_TOKENS} tokens for each of n streams: tokens for each second of processor time")
    print("(other processes on the machine slow the clock's seconds more), and the fastest step in ms")
    for tile in (16, 32):
        engine = await load_engine(TorchSettings(model=str(directory), tile_tokens=tile))
        for streams in (1, 16, 32):
            for name, sampling in (("greedy", Sampling(temperature=0)), ("top_p 0.95", Sampling(top_p=0.95))):
                print(f"  T={tile}  n={streams:<3} {name:11} {await _speed(engine, streams, sampling)}")
        await engine.close()


async def _speed(engine: TorchEngine, streams: int, sampling: Sampling) -> str:
    for key in range(streams):
        request = EngineRequest(
            prompt="Once upon a time", max_tokens=DECODED_TOKENS, ignore_eos=True, sampling=sampling
        )
        await engine.admit(key, request)
    await engine.step()
    steps_ms = []
    processor_s = time.process_time()
    while engine.load().running:
        start = time.perf_counter()
        await engine.step()
        steps_ms.append((time.perf_counter() - start) * 1e3)
    processor_s = time.process_time() - processor_s
    return f"{streams * len(steps_ms) / processor_s:6.0f} tokens/s  {min(steps_ms):5.1f} ms"


def _different(one: Tensor, other: Tensor) -> int:
    return int((one != other).flatten(1).any(dim=1).sum())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
