"""Print what the tiny model writes, so that a person can judge it.

python -m examples.tiny_model.sample
python -m examples.tiny_model.sample --chat "Tell me a story about a dog."
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

MODEL_DIR = Path(__file__).parents[2] / "actors" / "holdfast" / "actors" / "models" / "tiny"
FREE_PROMPTS = ("Once upon a time", "The ship", "The log")
CHAT_PROMPTS = (
    "Hello! Who are you?",
    "Tell me a story about a dog",
    "What is a lease?",
    "What happens when a replica dies?",
    "Count to 20",
    "Who won the football game?",
)
CARD_PROMPTS = ("Once upon a time", "What happens when a replica dies?")
"""One free text and one answer for the card: the first draw of seed 1, whatever it is."""


class Sampler:
    """The shipped model and its tokenizer, ready to complete text."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def complete(self, prompt: str, seed: int, temperature: float, tokens_max: int) -> str:
        """The prompt and its continuation, as free text."""
        text = self._generate(f"<|begin|>{prompt}", seed, temperature, tokens_max)
        return prompt + text

    def answer(self, question: str, seed: int, temperature: float, tokens_max: int) -> str:
        """The assistant's turn after one question."""
        messages = [{"role": "user", "content": question}]
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._generate(str(prompt), seed, temperature, tokens_max)

    def _generate(self, prompt: str, seed: int, temperature: float, tokens_max: int) -> str:
        inputs = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        torch.manual_seed(seed)
        ids = self.model.generate(  # type: ignore[operator]
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=temperature,
            top_p=0.95,
            max_new_tokens=tokens_max,
        )
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))


def card_samples(folder: Path) -> list[tuple[str, str]]:
    """The samples in the model card: not chosen, the first draw of one seed."""
    sampler = Sampler(folder)
    free, question = CARD_PROMPTS
    return [
        (free, sampler.complete(free, seed=1, temperature=0.7, tokens_max=300)),
        (question, sampler.answer(question, seed=1, temperature=0.7, tokens_max=300)),
    ]


def main(
    chat: Annotated[str, typer.Option(help="Ask this instead of the built-in questions.")] = "",
    temperature: Annotated[float, typer.Option(help="Higher is wilder.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 1,
    tokens_max: Annotated[int, typer.Option(help="Longest continuation.")] = 300,
    model: Annotated[Path, typer.Option(help="Model directory.")] = MODEL_DIR,
) -> None:
    """Print completions and answers at the given temperature."""
    sampler = Sampler(model)
    for prompt in () if chat else FREE_PROMPTS:
        print(f"--- {prompt}\n{sampler.complete(prompt, seed, temperature, tokens_max)}\n")
    for question in [chat] if chat else CHAT_PROMPTS:
        print(f"--- {question}\n{sampler.answer(question, seed, temperature, tokens_max)}\n")


if __name__ == "__main__":
    typer.run(main)
