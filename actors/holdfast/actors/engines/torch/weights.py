"""Reads a Llama's weights from safetensors files, and fuses what is multiplied with the same input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from holdfast.actors.engines.torch.config import LlamaConfig
from holdfast.core.errors import InvalidConfig


class Linear(NamedTuple):
    """A weight of [out, in] and its bias of [out], if any."""

    weight: Tensor
    bias: Tensor | None


class LayerWeights(NamedTuple):
    """One decoder layer. `qkv` and `gate_up` are several projections of the same input in one matrix."""

    input_norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class LlamaWeights(NamedTuple):
    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor


def read_weights(directory: Path, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> LlamaWeights:
    """The model's weights on the device. Raises `InvalidConfig` for a missing file, name or a wrong shape."""
    return _Reader(directory, device, dtype).read(config)


class _Reader:
    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._directory = directory
        self._device = device
        self._dtype = dtype
        self._tensors: dict[str, Tensor] = {}
        for path in _files(directory):
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (no iterator)
                    self._tensors[name] = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InvalidConfig(f"{path} can't be read as safetensors: {error}") from error

    def read(self, config: LlamaConfig) -> LlamaWeights:
        embedding = self._take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        layers = [self._layer(f"model.layers.{n}", config) for n in range(config.layers)]
        norm = self._take("model.norm.weight", config.hidden_size)
        if config.tied_embeddings:
            return LlamaWeights(embedding, layers, norm, embedding)
        head = self._take("lm_head.weight", config.vocab_size, config.hidden_size)
        return LlamaWeights(embedding, layers, norm, head)

    def _layer(self, prefix: str, config: LlamaConfig) -> LayerWeights:
        hidden, inner = config.hidden_size, config.intermediate_size
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = ((f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys))
        return LayerWeights(
            input_norm=self._take(f"{prefix}.input_layernorm.weight", hidden),
            qkv=self._linear(qkv, hidden, config.attention_bias),
            output=self._linear(((f"{attention}.o_proj", hidden),), queries, config.attention_bias),
            mlp_norm=self._take(f"{prefix}.post_attention_layernorm.weight", hidden),
            gate_up=self._linear(((f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)), hidden, config.mlp_bias),
            down=self._linear(((f"{mlp}.down_proj", hidden),), inner, config.mlp_bias),
        )

    def _linear(self, parts: tuple[tuple[str, int], ...], inputs: int, has_bias: bool) -> Linear:
        weight = torch.cat([self._take(f"{name}.weight", outputs, inputs) for name, outputs in parts])
        if not has_bias:
            return Linear(weight, None)
        return Linear(weight, torch.cat([self._take(f"{name}.bias", outputs) for name, outputs in parts]))

    def _take(self, name: str, *shape: int) -> Tensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise InvalidConfig(f"{self._directory}: the weights have no {name!r}, which config.json asks for")
        if tuple(tensor.shape) != shape:
            raise InvalidConfig(
                f"{self._directory}: {name!r} has shape {tuple(tensor.shape)}, and config.json says {shape}"
            )
        return tensor.to(device=self._device, dtype=self._dtype)


def _files(directory: Path) -> list[Path]:
    """One file, or the shards that the index names."""
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        raise InvalidConfig(f"{directory} has neither {single.name} nor {index.name}")
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidConfig(f"{index} is no index of safetensors shards: {error!r}") from error
    return [directory / str(name) for name in sorted(names)]
