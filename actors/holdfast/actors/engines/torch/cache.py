"""The paged KV cache: who owns which block, and the tensors behind the blocks.

A stream's blocks are reserved all at once, for the longest that it can become, before it runs. The other way,
handing out blocks as streams grow and preempting one when they run out, packs more streams into the same
memory but needs a proof that it always makes progress. With reservation a running stream never waits for
anything, so it ends; its blocks come back, so the stream at the head of the queue runs. There is nothing else
to prove.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

ZERO_BLOCK: Final = 0
"""Holds zeros for ever: what a row reads where its stream has no block."""
_FIRST_BLOCK: Final = 1


class BlockPool:
    """Exact accounting of `blocks` KV blocks. Holds no tensors."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._free = list(range(blocks + _FIRST_BLOCK - 1, _FIRST_BLOCK - 1, -1))

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-tokens // self.block_tokens)

    def reserve(self, tokens: int) -> list[int] | None:
        """Blocks for that many tokens, or None when there aren't enough free ones."""
        count = self.blocks_for(tokens)
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: Sequence[int]) -> None:
        self._free.extend(reversed(blocks))
        assert len(self._free) <= self.blocks, "a block was released twice"


class KvCache:
    """Keys and values of all layers, in blocks of `block_tokens` tokens, and the table of who reads which.

    Each layer's tensor is [keys or values, block, head, token, element]: one index reads whole blocks, ready to
    be multiplied. The table is [slot, n-th block].
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        blocks: int,
        block_tokens: int,
        slots: int,
        slot_blocks_max: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.blocks_held = blocks + _FIRST_BLOCK
        self.block_tokens = block_tokens
        self.kv_heads = kv_heads
        shape = (2, self.blocks_held, kv_heads, block_tokens, head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.table = torch.full((slots, slot_blocks_max), ZERO_BLOCK, device=device, dtype=torch.long)

    def assign(self, slot: int, blocks: Sequence[int]) -> None:
        """Give the blocks to the slot, wiped.

        What an earlier stream left behind lies beyond the reader's position and is weighed with zero; but zero
        times infinity isn't zero, and one stream's overflow must not reach another's tokens.
        """
        ids = torch.tensor(blocks, device=self.table.device, dtype=torch.long)
        self.table[slot] = ZERO_BLOCK
        self.table[slot, : len(blocks)] = ids
        for layer in self.layers:
            layer.index_fill_(1, ids, 0)

    def write_index(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where the rows' keys and values go, in a layer seen as [vector, element]: [row, 2, head], flattened."""
        block = self.table[slots, positions // self.block_tokens]
        heads = torch.arange(self.kv_heads, device=slots.device)
        sides = torch.arange(2, device=slots.device) * self.blocks_held
        vector = (sides[None, :, None] + block[:, None, None]) * self.kv_heads + heads
        offset = (positions % self.block_tokens)[:, None, None]
        return (vector * self.block_tokens + offset).reshape(-1)

    def read_index(self, slots: Tensor, blocks: int) -> Tensor:
        """Which blocks the rows read, in a layer seen as [block, ...]: all the keys', then all the values'."""
        keys = self.table[slots, :blocks].reshape(-1)
        return torch.cat((keys, keys + self.blocks_held))
