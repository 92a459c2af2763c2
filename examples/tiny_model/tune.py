"""Teach the trained model to look back at the question; the second and last part of its training.

After ``train`` the model writes good sentences, but asked for a dog it may write about a cat: the one word
that matters is lost among hundreds of easy ones. Here each row holds little but a question and the first
sentence of its answer, so that copying the right word is most of what is left to learn.

    python -m examples.tiny_model.tune
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from examples.tiny_model import corpus, sample, train

LESSONS = (
    (12.0, corpus.story_turn),
    (2.0, corpus.sum_turn),
    (2.0, corpus.count_turn),
    (2.0, corpus.copy_turn),
    (2.0, corpus.grammar_turn("qa_small")),
    (2.0, corpus.grammar_turn("qa_unknown")),
    (1.0, corpus.grammar_turn("qa_self")),
    (1.0, corpus.grammar_turn("qa_holdfast")),
    (1.0, corpus.grammar_turn("qa_facts")),
)
LESSON_LENGTH = 64
REVIEW_LENGTH = 256
REVIEW_EVERY = 4
"""One step in four repeats whole documents, so that the rest is not forgotten."""


@dataclass(frozen=True)
class TuneRecipe:
    """What decides the second part; the seed differs from the first part's."""

    seed: int = 11
    lessons: int = 16_000
    reviews: int = 1_500
    steps: int = 280
    tokens_per_step: int = 4096
    peak_rate: float = 1.5e-3
    warmup_steps: int = 20

    def schedule(self) -> train.Recipe:
        """The same numbers as the first part's recipe, for its optimizer and its rates."""
        return train.Recipe(steps=self.steps, peak_rate=self.peak_rate, warmup_steps=self.warmup_steps)


def lesson(grammar: corpus.Grammar, rng: random.Random) -> corpus.Document:
    """One question and its answer."""
    make = rng.choices([made for _, made in LESSONS], weights=[weight for weight, _ in LESSONS])[0]
    writer = corpus.Writer(grammar, rng, {"stranger": corpus.made_up_name(rng)})
    question, answer = make(writer)
    return corpus.Document(messages=(corpus.Message("user", question), corpus.Message("assistant", answer)))


def batches(tokenizer: Tokenizer, recipe: TuneRecipe) -> Iterator[torch.Tensor]:
    """Short rows of lessons, and every few steps a batch of whole documents."""
    rng = random.Random(recipe.seed)
    grammar = corpus.Grammar.load()
    lessons = train.encode(tokenizer, [lesson(grammar, rng) for _ in range(recipe.lessons)])
    reviews = train.encode(tokenizer, corpus.build_corpus(recipe.seed, recipe.reviews, prose_repeats=1))
    short, whole = train.rows(lessons, LESSON_LENGTH, rng), train.rows(reviews, REVIEW_LENGTH, rng)
    for step in range(recipe.steps):
        review = step % REVIEW_EVERY == REVIEW_EVERY - 1
        source, length = (whole, REVIEW_LENGTH) if review else (short, LESSON_LENGTH)
        yield torch.tensor([next(source) for _ in range(recipe.tokens_per_step // length)])


def tune(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: TuneRecipe) -> None:
    """Run all steps, with a line for every twenty of them."""
    schedule = recipe.schedule()
    optimizer = train.build_optimizer(model, schedule)
    for step, batch in enumerate(batches(tokenizer, recipe)):
        loss = train.train_step(model, optimizer, batch, train.rate_at(step, schedule))
        if step % 20 == 0:
            print(f"step {step}, loss {loss:.3f}", flush=True)


def refresh_samples(card: Path, samples: list[tuple[str, str]]) -> None:
    """Put what the tuned model writes in the place of what the first part wrote."""
    text = card.read_text(encoding="utf-8")
    before, after = text.index("Prompt: "), text.index("## Licence")
    card.write_text(f"{text[:before]}{train.quoted_samples(samples)}\n\n{text[after:]}", encoding="utf-8")


def main(
    start: Annotated[Path, typer.Option(help="Directory that the first part wrote.")] = train.MODEL_DIR,
    out: Annotated[Path, typer.Option(help="Directory to write.")] = train.MODEL_DIR,
    steps: Annotated[int, typer.Option(help="Gradient steps of 4096 tokens each.")] = TuneRecipe.steps,
) -> None:
    """Go on from the first part's weights, on one thread, and write the weights back."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = TuneRecipe(steps=steps)
    started = time.monotonic()
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    tune(model, tokenizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    train.save_model(model, out)
    print(json.dumps({**asdict(recipe), "seconds": round(time.monotonic() - started)}))
    refresh_samples(out / "README.md", sample.card_samples(out))


if __name__ == "__main__":
    typer.run(main)
