"""Measures, on this machine and with this model, that a row's logits don't depend on its company.

The tiles of `model` make it so wherever the kernels of BLAS compute the rows of a product of one shape alike.
No library promises that, so it is tried out each time a model is loaded, and `EngineInfo.deterministic` says
what came out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.actors.engines.torch.batch import Row, tile_of
from holdfast.actors.engines.torch.cache import KvCache
from holdfast.actors.engines.torch.model import LlamaModel
from holdfast.core.sampling import derive

_BEYOND_TILE = 3
"""Tokens that don't fit the first tile, so that a sequence spans two."""


def rows_are_independent(model: LlamaModel, tile_tokens: int, block_tokens: int, dtype: torch.dtype) -> bool:
    """Whether a sequence gets bitwise the same logits in full tiles by itself, and row by row in company.

    Costs about `tile_tokens` passes of the model.
    """
    length = min(tile_tokens + _BEYOND_TILE, model.config.context_tokens_max)
    alone = _prefilled(model, _cache(model, length, block_tokens, dtype), length, tile_tokens)
    in_company = _decoded(model, _cache(model, length, block_tokens, dtype), length, tile_tokens)
    return torch.equal(alone, in_company)


def _cache(model: LlamaModel, length: int, block_tokens: int, dtype: torch.dtype) -> KvCache:
    blocks = -(-length // block_tokens)
    config = model.config
    cache = KvCache(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        blocks=2 * blocks,
        block_tokens=block_tokens,
        slots=2,
        slot_blocks_max=blocks,
        device=model.device,
        dtype=dtype,
    )
    first = cache.blocks_held - 2 * blocks
    cache.assign(0, range(first, first + blocks))
    cache.assign(1, range(first + blocks, first + 2 * blocks))
    return cache


def _prefilled(model: LlamaModel, cache: KvCache, length: int, tile_tokens: int) -> Tensor:
    rows = [_row(model, position, 0) for position in range(length)]
    tiles = [rows[start : start + tile_tokens] for start in range(0, length, tile_tokens)]
    logits = [model.logits(model.forward(tile_of(tile, tile_tokens, cache), cache))[: len(tile)] for tile in tiles]
    return torch.cat(logits)


def _decoded(model: LlamaModel, cache: KvCache, length: int, tile_tokens: int) -> Tensor:
    """The same sequence a row at a time, each time in another row of the tile, among rows of another."""
    logits = []
    others = 0
    for position in range(length):
        above = min(position % tile_tokens, length - others)
        company = [_row(model, others + n, 1) for n in range(above)]
        others = (others + above) % length
        tile = tile_of([*company, _row(model, position, 0)], tile_tokens, cache)
        logits.append(model.logits(model.forward(tile, cache))[above])
    return torch.stack(logits)


def _row(model: LlamaModel, position: int, slot: int) -> Row:
    return Row(derive(slot, position + 1) % model.config.vocab_size, position, slot)
