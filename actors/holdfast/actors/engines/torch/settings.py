"""The torch engine's settings, as an application's configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from holdfast.core.errors import InvalidConfig


class TorchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to load and run a model.

    model: the directory in Hugging Face layout.
    model_name: the name it is served under; empty means the directory's name.
    device: `auto` is `cuda` where there is one, else `cpu`; or a device's name as PyTorch writes it (`cuda:1`).
    dtype: what the weights and the KV cache are held in.
    kv_blocks: KV cache blocks in all; one stream can't be longer than all of them together.
    block_tokens: tokens in a KV block; a power of two.
    streams_max: streams that run at the same time.
    waiting_max: streams that may wait for a running one to end; more are refused.
    prefill_tokens_max: prompt tokens computed in one step over all streams; bounds how long a step takes.
    tile_tokens: rows of every matrix product (see docs/decisions/006). All replicas of a deployment need the
        same value, as the last bits of the logits may depend on it.
    threads: CPU threads for PyTorch in this process.
    """

    model: str
    model_name: str = ""
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    kv_blocks: int = 1024
    block_tokens: int = 16
    streams_max: int = 32
    waiting_max: int = 256
    prefill_tokens_max: int = 256
    tile_tokens: int = 16
    threads: int = 1

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and is {getattr(self, name)}")
        if self.waiting_max < 0:
            raise ValueError(f"waiting_max must be at least 0, and is {self.waiting_max}")
        if self.block_tokens & (self.block_tokens - 1):
            raise ValueError(f"block_tokens must be a power of two, and is {self.block_tokens}")
        if not self.model:
            raise ValueError("model must name a directory")


_COUNTS = ("kv_blocks", "block_tokens", "streams_max", "prefill_tokens_max", "tile_tokens", "threads")


def read_settings(values: Mapping[str, Any]) -> TorchSettings:
    """The settings from decoded JSON. Raises `InvalidConfig` for a missing, unknown or ill-typed field."""
    try:
        return msgspec.convert(dict(values), TorchSettings)
    except msgspec.ValidationError as error:
        known = ", ".join(TorchSettings.__struct_fields__)
        raise InvalidConfig(f"torch engine settings: {error} (known settings: {known})") from error
