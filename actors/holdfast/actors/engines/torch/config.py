"""What `config.json` and `generation_config.json` of a model directory say, checked before any weight is read.

Only the Llama architecture is served. Whatever would make the arithmetic differ from it (another activation,
another kind of rotary scaling, quantized weights) is refused here by name, never silently ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from holdfast.core.errors import InvalidConfig

ROPE_KINDS: Final = ("default", "linear", "llama3")
_DEFAULT_THETA: Final = 10000.0
_LLAMA3_FIELDS: Final = ("factor", "low_freq_factor", "high_freq_factor")

_File = TypeVar("_File")


class RopeConfig(msgspec.Struct, frozen=True):
    """Rotary position embedding. The last three fields count for `llama3` only, `factor` not for `default`."""

    kind: Literal["default", "linear", "llama3"] = "default"
    theta: float = _DEFAULT_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


class LlamaConfig(msgspec.Struct, frozen=True):
    """A Llama's shape. `eos_token_ids` are all ids that end a text, in ascending order."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens_max: int
    rms_norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    eos_token_ids: tuple[int, ...]


class _ConfigFile(msgspec.Struct):
    """The fields of `config.json` that are read, under their own names, with `transformers`' defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    architectures: list[str] | None = None
    model_type: str = ""
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    quantization_config: dict[str, Any] | None = None
    eos_token_id: int | list[int] | None = None


class _GenerationFile(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def read_config(directory: Path) -> LlamaConfig:
    """The model directory's configuration. Raises `InvalidConfig`, naming the file and the field."""
    path = directory / "config.json"
    file = _decode(path, _ConfigFile)
    _refuse_other_models(path, file)
    kv_heads = file.num_key_value_heads or file.num_attention_heads
    config = LlamaConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        layers=file.num_hidden_layers,
        heads=file.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=file.head_dim or file.hidden_size // file.num_attention_heads,
        context_tokens_max=file.max_position_embeddings,
        rms_norm_eps=file.rms_norm_eps,
        rope=_rope(path, file),
        tied_embeddings=file.tie_word_embeddings,
        attention_bias=file.attention_bias,
        mlp_bias=file.mlp_bias,
        eos_token_ids=_eos_token_ids(directory, file),
    )
    _check_shape(path, config)
    return config


def _decode(path: Path, kind: type[_File]) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise InvalidConfig(f"{path} can't be read: {error.strerror}; is this a model directory?") from error
    except msgspec.DecodeError as error:
        raise InvalidConfig(f"{path}: {error}") from error


def _refuse_other_models(path: Path, file: _ConfigFile) -> None:
    architectures = file.architectures or ([] if file.model_type != "llama" else ["LlamaForCausalLM"])
    if "LlamaForCausalLM" not in architectures:
        named = ", ".join(architectures) or file.model_type or "no architecture"
        raise InvalidConfig(f"{path}: architectures: {named}; the torch engine serves LlamaForCausalLM only")
    refusals = (
        (file.hidden_act != "silu", f"hidden_act: {file.hidden_act!r}; only 'silu' is supported"),
        (file.partial_rotary_factor != 1.0, "partial_rotary_factor: only 1.0 is supported"),
        (file.sliding_window is not None, "sliding_window: only full attention is supported"),
        (file.quantization_config is not None, "quantization_config: quantized weights aren't supported"),
    )
    for wrong, text in refusals:
        if wrong:
            raise InvalidConfig(f"{path}: {text}")


def _rope(path: Path, file: _ConfigFile) -> RopeConfig:
    """`rope_parameters` is how transformers 5 writes it, `rope_theta` with `rope_scaling` how older ones did."""
    table = {**(file.rope_scaling or {}), **(file.rope_parameters or {})}
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise InvalidConfig(
            f"{path}: rope_scaling: type {kind!r} isn't supported; supported are {', '.join(ROPE_KINDS)}"
        )
    theta = table.get("rope_theta", file.rope_theta)
    fields = {
        "kind": kind,
        "theta": _DEFAULT_THETA if theta is None else theta,
        "original_context_tokens": table.get("original_max_position_embeddings", file.max_position_embeddings),
    }
    needed = _LLAMA3_FIELDS if kind == "llama3" else ("factor",) if kind == "linear" else ()
    for name in needed:
        if name not in table:
            raise InvalidConfig(f"{path}: rope_scaling: type {kind!r} needs {name}")
        fields[name] = table[name]
    try:
        return msgspec.convert(fields, RopeConfig)
    except msgspec.ValidationError as error:
        raise InvalidConfig(f"{path}: rope_scaling: {error}") from error


def _eos_token_ids(directory: Path, file: _ConfigFile) -> tuple[int, ...]:
    """`generation_config.json` has the last word where it names any, as in transformers' `generate`."""
    path = directory / "generation_config.json"
    named = _decode(path, _GenerationFile).eos_token_id if path.exists() else None
    ids = file.eos_token_id if named is None else named
    if ids is None:
        return ()
    return tuple(sorted({ids} if isinstance(ids, int) else set(ids)))


def _check_shape(path: Path, config: LlamaConfig) -> None:
    sizes = (
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.layers),
        ("num_attention_heads", config.heads),
        ("num_key_value_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.context_tokens_max),
    )
    for name, size in sizes:
        if size < 1:
            raise InvalidConfig(f"{path}: {name}: {size} must be at least 1")
    if config.heads % config.kv_heads:
        raise InvalidConfig(f"{path}: num_key_value_heads: must divide num_attention_heads ({config.heads})")
    if config.head_dim % 2:
        raise InvalidConfig(f"{path}: head_dim: {config.head_dim} must be even for rotary embeddings")
    for token in config.eos_token_ids:
        if not 0 <= token < config.vocab_size:
            raise InvalidConfig(f"{path}: eos_token_id: {token} is not below vocab_size {config.vocab_size}")
