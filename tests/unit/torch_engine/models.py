"""Small random models in Hugging Face layout, made by transformers and tokenizers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.actors.engines.torch.batch import Row, tile_of
from holdfast.actors.engines.torch.cache import KvCache
from holdfast.actors.engines.torch.config import read_config
from holdfast.actors.engines.torch.model import LlamaModel
from holdfast.actors.engines.torch.weights import read_weights

SHIPPED = Path(__file__).parents[3] / "actors/holdfast/actors/models/tiny"
BEGIN, END = 0, 1
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CONTEXT_TOKENS = 128
CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {%- if message['role'] not in ('user', 'assistant', 'system') %}\n"
    "        {{- raise_exception('no such role: ' + message['role']) }}\n"
    "    {%- endif %}\n"
    "    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n"
)
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun.",
    "Größe, naïve café, 東京の夜, здравствуй мир, 🙂🚀 and then some more of that.",
    "A stream of tokens that no single failure can break, and a story about a stream.",
)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def make_model(directory: Path, *, seed: int = 0, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """Write a random Llama with its tokenizer into the directory; `changes` go into its `LlamaConfig`."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = make_tokenizer(directory)
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


def make_tokenizer(directory: Path) -> int:
    """Write a byte-level BPE tokenizer with a chat template; its vocabulary's size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken("plain added", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


def logits_of(directory: Path, tokens: list[int], tile_tokens: int = 16) -> torch.Tensor:
    """The logits of every position, computed by our model in tiles."""
    config, device = read_config(directory), torch.device("cpu")
    model = LlamaModel(config, read_weights(directory, config, device, torch.float32))
    blocks = -(-len(tokens) // 16)
    cache = KvCache(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        blocks=blocks,
        block_tokens=16,
        slots=1,
        slot_blocks_max=blocks,
        device=device,
        dtype=torch.float32,
    )
    cache.assign(0, range(cache.blocks_held - blocks, cache.blocks_held))
    rows = [Row(token, position, 0) for position, token in enumerate(tokens)]
    logits = []
    for start in range(0, len(rows), tile_tokens):
        tile = rows[start : start + tile_tokens]
        logits.append(model.logits(model.forward(tile_of(tile, tile_tokens, cache), cache))[: len(tile)])
    return torch.cat(logits)
