"""What of a model's and an engine's configuration is understood, and what is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast.actors.engines.torch.config import RopeConfig, read_config
from holdfast.actors.engines.torch.settings import read_settings
from holdfast.core.errors import InvalidConfig
from tests.unit.torch_engine.running import load

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 2,
}


def write(directory: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(LLAMA | changes))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_what_the_file_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.kv_heads, config.head_dim, config.context_tokens_max) == (4, 8, 2048)
    assert (config.tied_embeddings, config.attention_bias, config.mlp_bias) == (False, False, False)
    assert config.rope == RopeConfig(original_context_tokens=2048)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5, original_context_tokens=2048)),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            RopeConfig(kind="linear", factor=2, original_context_tokens=2048),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 64),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 64),
        ),
    ],
)
def test_rotary_scaling_is_read_from_old_and_new_files(
    tmp_path: Path, fields: dict[str, Any], rope: RopeConfig
) -> None:
    assert read_config(write(tmp_path, **fields)).rope == rope


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; the torch engine serves LlamaForCausalLM only"),
        ({"architectures": None}, "no architecture"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "type 'yarn' isn't supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' needs factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "much"}}, "rope_scaling: Expected `float`"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"sliding_window": 512}, "sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide"),
        ({"head_dim": 7}, "head_dim: 7 must be even"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: -1"),
        ({"vocab_size": "many"}, r"vocab_size"),
        ({"eos_token_id": 100}, "eos_token_id: 100"),
    ],
)
def test_what_can_t_be_served_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        read_config(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("in_config", "generation", "ids"),
    [
        (2, None, (2,)),
        ([5, 3], None, (3, 5)),
        (2, {"eos_token_id": [7, 2]}, (2, 7)),
        (2, {"eos_token_id": 9}, (9,)),
        (2, {"temperature": 0.7}, (2,)),
        (None, {}, ()),
    ],
)
def test_ends_of_text_come_from_either_file(
    tmp_path: Path, in_config: Any, generation: dict[str, Any] | None, ids: tuple[int, ...]
) -> None:
    assert read_config(write(tmp_path, generation, eos_token_id=in_config)).eos_token_ids == ids


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.json can't be read.*model directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidConfig, match=r"config\.json: Input data was truncated"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "missing required field `model`.*known settings: model, "),
        ({"model": "m", "kv_block": 3}, "unknown field `kv_block`"),
        ({"model": "m", "kv_blocks": "3"}, r"Expected `int`, got `str` - at `\$.kv_blocks`"),
        ({"model": "m", "dtype": "int8"}, "Invalid enum value 'int8'"),
        ({"model": "m", "streams_max": 0}, "streams_max must be at least 1, and is 0"),
        ({"model": "m", "waiting_max": -1}, "waiting_max must be at least 0"),
        ({"model": "m", "block_tokens": 24}, "block_tokens must be a power of two"),
        ({"model": ""}, "model must name a directory"),
    ],
)
def test_settings_are_strict_and_say_what_is_wrong(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        read_settings(values)


@pytest.mark.parametrize(("device", "text"), [("abacus", "no device of PyTorch's"), ("cuda", "no CUDA device")])
def test_a_device_that_isn_t_there_is_refused(
    tmp_path: Path, device: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InvalidConfig, match=text):
        load(tmp_path, device=device)


def test_importing_the_engines_package_does_not_import_torch() -> None:
    code = (
        "import sys, holdfast.actors, holdfast.actors.engines, holdfast.actors.engines.torch\n"
        "assert 'torch' not in sys.modules"
    )
    path = [entry for entry in sys.path if entry.endswith(("core", "actors"))]
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(path)}, timeout=240)
