"""Our Llama computes what transformers' does, from the same directory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaForCausalLM

from holdfast.actors.engines.torch.config import LlamaConfig, read_config
from holdfast.actors.engines.torch.weights import read_weights
from holdfast.core.errors import InvalidConfig
from holdfast.core.requests import EngineRequest, Sampling
from tests.unit.torch_engine.models import SHIPPED, logits_of, make_model
from tests.unit.torch_engine.running import run_alone

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one head for all": {"num_key_value_heads": 1},
    "as many heads": {"num_key_value_heads": 4},
    "tied embeddings": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 24, "rms_norm_eps": 1e-3},
    "linear rope": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    },
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
}
LENGTHS = (1, 2, 15, 16, 17, 33, 100)


def reference_model(directory: Path) -> Any:
    model: Any = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def assert_same_logits(directory: Path, vocab_size: int, lengths: tuple[int, ...]) -> None:
    model = reference_model(directory)
    for length in lengths:
        tokens = random.Random(length).choices(range(vocab_size), k=length)
        with torch.inference_mode():
            expected = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits_of(directory, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    directory = make_model(tmp_path, **VARIANTS[variant])
    assert_same_logits(directory, read_config(directory).vocab_size, LENGTHS)


def test_logits_of_the_shipped_model_are_those_of_transformers() -> None:
    assert_same_logits(SHIPPED, read_config(SHIPPED).vocab_size, (1, 16, 50, 200))


@pytest.mark.parametrize("directory", ["random", "shipped"])
def test_greedy_generation_is_that_of_transformers(tmp_path: Path, directory: str) -> None:
    path = SHIPPED if directory == "shipped" else make_model(tmp_path)
    prompt = [5, 17, 100, 42, 99, 23]
    expected = reference_model(path).generate(
        torch.tensor([prompt]), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    request = EngineRequest(prompt_tokens=prompt, max_tokens=50, ignore_eos=True, sampling=Sampling(temperature=0))
    stream = run_alone(path, request)
    assert stream.tokens == expected[0, len(prompt) :].tolist()
    assert stream.finish == "length"


def test_shards_give_the_same_weights_as_one_file(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole")
    shards = make_model(tmp_path / "shards", max_shard_size="60KB")
    assert not (shards / "model.safetensors").exists()
    config, device = read_config(whole), torch.device("cpu")
    expected = read_weights(whole, config, device, torch.float32)
    actual = read_weights(shards, config, device, torch.float32)
    assert torch.equal(actual.head, expected.head)
    for layer, expected_layer in zip(actual.layers, expected.layers, strict=True):
        assert torch.equal(layer.qkv.weight, expected_layer.qkv.weight)
        assert torch.equal(layer.down.weight, expected_layer.down.weight)


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    directory = make_model(tmp_path)
    config, device = read_config(directory), torch.device("cpu")
    with pytest.raises(InvalidConfig, match=r"no 'model\.layers\.2\.input_layernorm\.weight'"):
        _read_with(directory, config, device, "layers", 3)
    with pytest.raises(InvalidConfig, match=r"q_proj.*config\.json says \(64, 48\)"):
        _read_with(directory, config, device, "head_dim", 16)
    (directory / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InvalidConfig, match="safetensors"):
        read_weights(directory, config, device, torch.float32)
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidConfig, match=r"neither model\.safetensors nor"):
        read_weights(directory, config, device, torch.float32)


def _read_with(directory: Path, config: LlamaConfig, device: torch.device, field: str, value: int) -> None:
    read_weights(directory, msgspec.structs.replace(config, **{field: value}), device, torch.float32)
