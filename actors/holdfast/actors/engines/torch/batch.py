"""Lays the rows of a step out in tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from holdfast.actors.engines.torch.cache import KvCache
from holdfast.actors.engines.torch.model import Tile
from holdfast.actors.engines.torch.scheduler import Span, Stream


class Row(NamedTuple):
    """One token to compute. `ends` is its stream where the row gives that stream's next token."""

    token: int
    position: int
    slot: int
    ends: Stream | None = None


def rows_of(spans: Iterable[Span]) -> Iterator[Row]:
    """The spans' rows, in order."""
    for stream, start, count in spans:
        stop = start + count
        for position in range(start, stop):
            ends = stream if position + 1 == len(stream.tokens) else None
            yield Row(stream.tokens[position], position, stream.slot, ends)


def tile_of(rows: list[Row], tile_tokens: int, cache: KvCache) -> Tile:
    """At most `tile_tokens` rows as a tile; padding rows are of token 0."""
    device = cache.table.device
    padding = [0] * (tile_tokens - len(rows))
    places = torch.tensor([[row.position for row in rows], [row.slot for row in rows]], device=device)
    return Tile(
        tokens=torch.tensor([row.token for row in rows] + padding, device=device),
        positions=places[0],
        slots=places[1],
        blocks=max(row.position for row in rows) // cache.block_tokens + 1,
    )
