"""The Llama architecture, computed in tiles so that a row's result never depends on its company.

Theory of operation. A row is one token of one stream at one position. Rows are computed in tiles of always the
same number of rows; missing ones are padding. So every matrix product has the same shape whatever the load is,
and therefore runs the same kernel with the same order of additions; and within a product of a given shape a
row's result depends on that row alone. Attention reads the streams' KV blocks as many small products of one
shape (one for each row, block and head, however many those are); their partial sums are added in a tree of
which a row's masked blocks are exact zeros, so its value doesn't depend on how many blocks the longest row of
the tile needs.

What of this is guaranteed (IEEE addition) and what is only measured (the kernels of BLAS) is told in
docs/decisions/006-batch-invariant-arithmetic.md; `holdfast.actors.engines.torch.invariance` measures it each
time a model is loaded.

The architecture: https://arxiv.org/abs/2302.13971 (RMSNorm, SwiGLU, RoPE), grouped queries
https://arxiv.org/abs/2305.13245, in the form of transformers' `LlamaForCausalLM`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.actors.engines.torch.cache import KvCache
from holdfast.actors.engines.torch.config import LlamaConfig, RopeConfig
from holdfast.actors.engines.torch.weights import LayerWeights, Linear, LlamaWeights


class Tile(NamedTuple):
    """The rows of one pass: token ids, padded; positions in the streams and slots in the cache's table, not padded.

    A stream's rows come in ascending order, over tiles as within one. `blocks` is how many KV blocks the
    longest row reads. Padding rows have no place in the cache and no attention.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    blocks: int


class LlamaModel:
    """A loaded model. Stateless: all that a stream has computed is in the cache."""

    def __init__(self, config: LlamaConfig, weights: LlamaWeights) -> None:
        self.config = config
        self._weights = weights
        self._cosines, self._sines = _rotations(config, weights.embedding.device)

    @property
    def device(self) -> torch.device:
        return self._weights.embedding.device

    @torch.inference_mode()
    def forward(self, tile: Tile, cache: KvCache) -> Tensor:
        """The rows' last hidden states, [row, hidden]; their keys and values go into the cache."""
        view = _CacheView.of(tile, cache)
        turn = self._cosines[tile.positions][:, None], self._sines[tile.positions][:, None]
        hidden = functional.embedding(tile.tokens, self._weights.embedding)
        for layer, kv in zip(self._weights.layers, cache.layers, strict=True):
            hidden = hidden + self._attention(layer, hidden, turn, kv, view)
            hidden = hidden + self._mlp(layer, hidden)
        return _rms_norm(hidden, self._weights.norm, self.config.rms_norm_eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[row, vocabulary], in float32 whatever the weights are."""
        return functional.linear(hidden, self._weights.head).float()

    def _attention(
        self, layer: LayerWeights, hidden: Tensor, turn: tuple[Tensor, Tensor], kv: Tensor, view: _CacheView
    ) -> Tensor:
        config = self.config
        normed = _rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
        padded, rows = hidden.shape[0], view.mask.shape[0]
        qkv = _linear(normed, layer.qkv)[:rows].view(rows, -1, config.head_dim)
        turned = _rotate(qkv[:, : config.heads + config.kv_heads].float(), *turn)
        queries = turned[:, : config.heads].view(rows, config.kv_heads, -1, config.head_dim)
        queries = queries * config.head_dim**-0.5
        keys_values = torch.cat((turned[:, config.heads :].to(kv.dtype), qkv[:, -config.kv_heads :]), dim=1)
        kv.view(-1, config.head_dim).index_copy_(0, view.write, keys_values.view(-1, config.head_dim))
        mixed = _attend(queries, kv, view).reshape(rows, -1).to(hidden.dtype)
        return _linear(functional.pad(mixed, (0, 0, 0, padded - rows)), layer.output)

    def _mlp(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        normed = _rms_norm(hidden, layer.mlp_norm, self.config.rms_norm_eps)
        gate, up = _linear(normed, layer.gate_up).chunk(2, dim=-1)
        # Not functional.silu: its vectorised loop and its tail differ in the last bit.
        return _linear(gate * torch.sigmoid(gate) * up, layer.down)


class _CacheView(NamedTuple):
    """What a tile reads and writes, the same in every layer. `mask` is [row, block, 1, 1, token]: 0 or -inf."""

    write: Tensor
    read: Tensor
    mask: Tensor

    @classmethod
    def of(cls, tile: Tile, cache: KvCache) -> _CacheView:
        tokens = torch.arange(tile.blocks * cache.block_tokens, device=tile.positions.device)
        beyond = tokens > tile.positions[:, None]
        mask = torch.zeros(beyond.shape, device=beyond.device).masked_fill_(beyond, -math.inf)
        return cls(
            write=cache.write_index(tile.slots, tile.positions),
            read=cache.read_index(tile.slots, tile.blocks),
            mask=mask.view(beyond.shape[0], tile.blocks, 1, 1, cache.block_tokens),
        )


def _attend(queries: Tensor, kv: Tensor, view: _CacheView) -> Tensor:
    """Softmax attention of [row, kv head, query of its group, element] over the rows' blocks."""
    rows, kv_heads, group, head_dim = queries.shape
    blocks, block_tokens = view.mask.shape[1], view.mask.shape[4]
    read = kv.view(-1, kv_heads, block_tokens, head_dim).index_select(0, view.read).float()
    keys, values = read.view(2, -1, block_tokens, head_dim).unbind(0)
    asked = queries[:, None].expand(rows, blocks, kv_heads, group, head_dim).reshape(-1, group, head_dim)
    scores = torch.bmm(asked, keys.transpose(1, 2)).view(rows, blocks, kv_heads, group, block_tokens)
    scores = scores + view.mask
    peak = scores.amax(dim=4, keepdim=True).amax(dim=1, keepdim=True)
    weights = torch.exp(scores - peak)
    mixed = torch.bmm(weights.view(-1, group, block_tokens), values)
    mixed = mixed.view(rows, blocks, kv_heads, group, head_dim)
    # One tree for both: what the weights mix, and in the last element what they sum up to.
    summed = _tree_sum(torch.cat((mixed, weights.sum(dim=4, keepdim=True)), dim=4))
    return summed[..., :head_dim] / summed[..., head_dim:]


def _tree_sum(terms: Tensor) -> Tensor:
    """The sum over dimension 1 as a tree of pairs: terms of zero at its end never change a bit of it."""
    while (count := terms.shape[1]) > 1:
        summed = terms[:, 0 : count - 1 : 2] + terms[:, 1::2]
        terms = summed if count % 2 == 0 else torch.cat((summed, terms[:, -1:]), dim=1)
    return terms[:, 0]


def _linear(inputs: Tensor, linear: Linear) -> Tensor:
    return functional.linear(inputs, linear.weight, linear.bias)


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(hidden.dtype)


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def _rotations(config: LlamaConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of [position, element of a head], in float32."""
    positions = torch.arange(config.context_tokens_max, dtype=torch.float32)
    angles = torch.outer(positions, _frequencies(config.rope, config.head_dim))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(device), angles.sin().to(device)


def _frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Rotations per token for each pair of elements, scaled for long contexts as the configuration says."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    return _llama3_frequencies(plain, rope)


def _llama3_frequencies(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3.1's: short wavelengths stay, long ones are stretched, those between are blended."""
    wavelengths = 2 * math.pi / plain
    long = rope.original_context_tokens / rope.low_freq_factor
    short = rope.original_context_tokens / rope.high_freq_factor
    blend = (rope.original_context_tokens / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * plain / rope.factor + blend * plain
    stretched = torch.where(wavelengths > long, plain / rope.factor, plain)
    return torch.where((wavelengths >= short) & (wavelengths <= long), blended, stretched)
