"""Train the tiny model that Holdfast ships, from nothing but the text in this folder.

Why a model of our own: an example, a test or a demonstration needs a real engine with real weights that is
there after ``pip install``, without a download, and whose text a person can judge at a glance. So this script
writes a complete Hugging Face directory (Llama layout, bfloat16) that stays under six megabytes.

    python -m examples.tiny_model.train
    python -m examples.tiny_model.tune

The same seed, steps and library versions give the same weights on the same kind of processor. Sizes and rates
were chosen by measuring on one core: what learns most in half an hour.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from examples.tiny_model import corpus, sample

SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
BEGIN, END = 0, 1
MODEL_DIR = Path(__file__).parents[2] / "actors" / "holdfast" / "actors" / "models" / "tiny"
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
ROW_LENGTHS = (256, 512, 1024)
ROW_WEIGHTS = (80, 15, 5)
"""Most rows are short because short rows are cheap; the long ones teach the positions up to the limit."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights; it is copied into the model card."""

    seed: int = 7
    documents: int = 24_000
    steps: int = 1500
    tokens_per_step: int = 4096
    peak_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1
    vocab_size: int = 2048
    held_out: int = 200


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: every byte has a token, so any text comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", BEGIN)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[corpus.Document]) -> list[list[int]]:
    """Token ids of each document, its special tokens included exactly once."""
    encodings = tokenizer.encode_batch([d.render() for d in documents], add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def rows(documents: list[list[int]], length: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless rows of ``length + 1`` ids; each begins with the beginning of a document."""
    order = list[int]()
    while True:
        row = list[int]()
        while len(row) <= length:
            order = order or rng.sample(range(len(documents)), len(documents))
            row += documents[order.pop()]
        yield row[: length + 1]


def batches(documents: list[list[int]], recipe: Recipe) -> Iterator[torch.Tensor]:
    """One batch per step, always of the same number of tokens, in rows of mixed length."""
    rng = random.Random(recipe.seed + 1)
    sources = {length: rows(documents, length, rng) for length in ROW_LENGTHS}
    for _ in range(recipe.steps):
        length = rng.choices(ROW_LENGTHS, weights=ROW_WEIGHTS)[0]
        count = recipe.tokens_per_step // length
        yield torch.tensor([next(sources[length]) for _ in range(count)])


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with grouped-query attention and tied embeddings; about 2.4 million parameters."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=max(ROW_LENGTHS),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
    )
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(config)


def build_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95))


def rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.peak_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.peak_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token, in nats; the matrix products run in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def train(model: LlamaForCausalLM, documents: list[list[int]], recipe: Recipe) -> float:
    """Run all steps; returns the mean loss over the last fifty of them."""
    optimizer = build_optimizer(model, recipe)
    recent = list[float]()
    with _progress() as progress:
        task = progress.add_task("training", total=recipe.steps, loss="-")
        for step, batch in enumerate(batches(documents, recipe)):
            recent = [*recent[-49:], train_step(model, optimizer, batch, rate_at(step, recipe))]
            progress.update(task, advance=1, loss=f"{sum(recent) / len(recent):.3f}")
            if step % 100 == 0:
                progress.console.log(f"step {step}, loss {sum(recent) / len(recent):.3f}")
    return sum(recent) / len(recent)


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor, rate: float) -> float:
    """One gradient step at the given learning rate; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _progress() -> Progress:
    loss = TextColumn("loss {task.fields[loss]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss)
    return Progress(*columns, TimeRemainingColumn())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, documents: list[list[int]]) -> float:
    """Loss per token on documents that were not trained on, each one alone."""
    total, count = 0.0, 0
    for ids in documents:
        ids = ids[: max(ROW_LENGTHS) + 1]
        total += loss_of(model, torch.tensor([ids])).item() * (len(ids) - 1)
        count += len(ids) - 1
    return total / count


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write what ``AutoTokenizer`` reads; the chat template in both places that tools look in."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "model_max_length": max(ROW_LENGTHS),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights in bfloat16, the configuration, and how to sample."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BEGIN, eos_token_id=[END], pad_token_id=END, do_sample=True, temperature=0.7, top_p=0.95
    )
    model.bfloat16().save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def write_card(folder: Path, recipe: Recipe, facts: dict[str, str], samples: list[tuple[str, str]]) -> None:
    """Fill the card's template with what was measured in this run."""
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    numbers = {key: f"{value}" for key, value in asdict(recipe).items()}
    values = {**numbers, **facts, "samples": quoted_samples(samples)}
    for key, value in values.items():
        template = template.replace("{" + key + "}", value)
    (folder / "README.md").write_text(template, encoding="utf-8")


def quoted_samples(samples: list[tuple[str, str]]) -> str:
    """The card's samples: each prompt, and what the model made of it."""
    return "\n\n".join(f"Prompt: `{prompt}`\n\n{_quoted(text)}" for prompt, text in samples)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def main(
    steps: Annotated[int, typer.Option(help="Gradient steps of 4096 tokens each.")] = Recipe.steps,
    documents: Annotated[int, typer.Option(help="Documents to generate.")] = Recipe.documents,
    seed: Annotated[int, typer.Option(help="Seed of the corpus, the weights and the order.")] = Recipe.seed,
    peak_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = Recipe.peak_rate,
    out: Annotated[Path, typer.Option(help="Directory to write.")] = MODEL_DIR,
) -> None:
    """Generate the corpus, train tokenizer and model on one thread, and write the model directory."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = Recipe(seed=seed, documents=documents, steps=steps, peak_rate=peak_rate)
    started = time.monotonic()
    made = corpus.build_corpus(recipe.seed, recipe.documents)
    tokenizer = train_tokenizer([d.render() for d in made], recipe.vocab_size)
    encoded = encode(tokenizer, made)
    tokens = sum(map(len, encoded))
    print(f"{len(made)} documents, {tokens} tokens")

    model = build_model(recipe)
    train_loss = train(model, encoded[recipe.held_out :], recipe)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    save_model(model, out)
    loss = held_out_loss(model.float(), encoded[: recipe.held_out])  # type: ignore[no-untyped-call]
    facts = {
        "parameters": f"{model.num_parameters():,}",
        "corpus_tokens": f"{tokens:,}",
        "train_loss": f"{train_loss:.3f}",
        "held_out_loss": f"{loss:.3f}",
        "minutes": f"{(time.monotonic() - started) / 60:.0f}",
    }
    print(json.dumps(facts))
    write_card(out, recipe, facts, sample.card_samples(out))


if __name__ == "__main__":
    typer.run(main)
