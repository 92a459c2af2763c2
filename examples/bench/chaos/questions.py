"""The requests of the long run, drawn from its seed, and what the mock engine must answer to each."""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

from holdfast.actors.engines.mock import TOKENS_WITHOUT_LIMIT, base_hash, token_at
from holdfast.actors.engines.words import WORDS
from holdfast.core.sampling import derive
from holdfast.gateway.client.setup import CHAT, COMPLETIONS

MODEL: Final = "mock"
CHOICES_MAX: Final = 3
STOP_WORDS: Final = (1, 3)
"""A stop string spans so many words, the first and the last of them cut, so that it begins and ends within tokens."""


class Question(msgspec.Struct, frozen=True):
    """One request. `prompt` is what the engine sees of it, `tokens` its limit (0: none is given)."""

    number: int
    path: str
    body: dict[str, Any]
    streamed: bool
    prompt: str
    tokens: int
    stops: list[str]
    logprobs: int
    """How many alternatives are asked for with each token; -1 for no log probabilities."""

    leaves: int = 0
    """After so many tokens the client goes away; 0 for never."""

    @property
    def chat(self) -> bool:
        """Whether it is a chat; else it is a completion."""
        return self.path == CHAT

    @property
    def choices(self) -> int:
        """How many answers it asks for."""
        return int(self.body.get("n", 1))

    @property
    def usage(self) -> bool:
        """Whether the answer must tell the usage."""
        return not self.streamed or "stream_options" in self.body


class Expected(msgspec.Struct, frozen=True):
    """What one choice must be: a token and a piece of text for each that is generated, and why it ends.

    Of a token in which a stop string begins there is only the text before it, and of those behind it none.
    """

    tokens: list[int]
    pieces: list[str]
    finish: str


def draw(rng: random.Random, number: int, tokens_max: int) -> Question:
    """The next request of the run."""
    chat, streamed = rng.random() < 0.5, rng.random() < 0.8
    limited = not chat or rng.random() < 0.9
    tokens = int(tokens_max ** rng.uniform(0.2, 1.0)) if limited else 0
    text = f"question {number}: " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
    logprobs = rng.randint(0, 4) if rng.random() < 0.2 else -1
    seed = rng.getrandbits(62) if rng.random() < 0.8 else None
    prompt = prompt_of(chat, text)
    stop = draw_stop(rng, prompt, seed, tokens) if seed is not None and rng.random() < 0.2 else None
    body: dict[str, Any] = {"model": MODEL}
    body |= {"messages": messages_of(text)} if chat else {"prompt": text}
    if tokens:
        body["max_tokens"] = tokens
    if seed is not None:
        body["seed"] = seed
    if rng.random() < 0.25:
        body["n"] = rng.randint(2, CHOICES_MAX)
    if stop is not None:
        body["stop"] = [stop, "no word of the mock"]
    if logprobs >= 0:
        body |= {"logprobs": True, "top_logprobs": logprobs} if chat else {"logprobs": logprobs}
    if streamed and rng.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    leaves = rng.randint(1, tokens or TOKENS_WITHOUT_LIMIT) if streamed and rng.random() < 0.05 else 0
    path = CHAT if chat else COMPLETIONS
    return Question(number, path, body, streamed, prompt, tokens, body.get("stop", []), logprobs, leaves)


def messages_of(text: str) -> list[dict[str, str]]:
    """A chat that asks this."""
    return [{"role": "system", "content": "Hold fast."}, {"role": "user", "content": text}]


def prompt_of(chat: bool, text: str) -> str:
    """What the mock engine makes of it: of a chat, the messages as JSON."""
    return msgspec.json.encode(messages_of(text)).decode() if chat else text


def draw_stop(rng: random.Random, prompt: str, seed: int, tokens: int) -> str:
    """Something that the first choice will say, from within one token to within another."""
    words = [f" {WORDS[token]}" for token in _tokens(prompt, seed, tokens or TOKENS_WITHOUT_LIMIT)]
    count = rng.randint(*STOP_WORDS)
    at = rng.randrange(len(words))
    text = "".join(words[at : at + count])
    return text[rng.randint(0, 1) : len(text) - rng.randint(0, 1)] or text


def expected(question: Question, seed: int) -> list[Expected]:
    """All choices of the answer. `seed` is the request's or the gateway's: it is in the answer's id."""
    return [_expected(question, derive(seed, choice)) for choice in range(question.choices)]


def prompt_tokens(question: Question) -> int:
    """As the mock engine counts them."""
    return max(1, len(question.prompt.split()))


def _tokens(prompt: str, seed: int, count: int) -> list[int]:
    base = base_hash(prompt, seed)
    return [token_at(base, position) for position in range(count)]


def _expected(question: Question, seed: int) -> Expected:
    tokens = _tokens(question.prompt, seed, question.tokens or TOKENS_WITHOUT_LIMIT)
    pieces: list[str] = []
    text = ""
    for count, token in enumerate(tokens, 1):
        pieces.append(f" {WORDS[token]}")
        text += pieces[-1]
        found = [at for stop in question.stops if (at := text.find(stop)) >= 0]
        if found:
            return Expected(tokens[:count], _cut(pieces, min(found)), "stop")
    return Expected(tokens, pieces, "length" if question.tokens else "stop")


def _cut(pieces: list[str], characters: int) -> list[str]:
    """The pieces of the first so many characters; those behind are empty."""
    kept = []
    for piece in pieces:
        kept.append(piece[:characters])
        characters -= len(kept[-1])
    return kept
