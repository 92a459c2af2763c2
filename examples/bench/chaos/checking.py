"""Holds answers against what the mock engine must say: every token, in order, each once, and its usage."""

from __future__ import annotations

import re
from typing import Any, Final

from examples.bench.chaos.questions import Expected, Question, expected, prompt_tokens
from holdfast.actors.engines.words import WORDS
from holdfast.gateway.client import Answer, Event

AROUND: Final = 5
"""So many tokens before and behind a difference are shown."""

SHOWN_MAX: Final = 500
"""So many characters of what differs are shown."""

LOGPROB: Final = -0.25
"""The mock's log probability of the token that it chose; alternative k (from 1) has k times that."""

_ID: Final = re.compile(r"(chatcmpl|cmpl)-[0-9a-f]{16}(?P<seed>[0-9a-f]{16})")


class Wrong(Exception):
    """An answer is not what it must be. The text says where, what came and what was due."""


def check_answer(question: Question, answer: Answer) -> None:
    """A whole answer. Raises `Wrong`."""
    data = answer.data
    due = expected(question, _seed(question, str(data.get("id"))))
    choices = data["choices"]
    _same("choices", [choice["index"] for choice in choices], list(range(len(due))))
    for choice, wanted in zip(choices, due, strict=True):
        where = f"choice {choice['index']}"
        text = choice["message"]["content"] if question.chat else choice["text"]
        _same(f"{where}: text", text, "".join(wanted.pieces))
        _same(f"{where}: finish reason", choice["finish_reason"], wanted.finish)
        _same(f"{where}: logprobs", choice["logprobs"], _logprobs(question, wanted, 0, len(wanted.tokens)))
    _same("usage", data["usage"], _usage(question, due))


class StreamCheck:
    """One stream's events, as they come. `take` and `end` raise `Wrong`."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._id = ""
        self._due: list[Expected] = []
        self._counts = [0] * question.choices
        self._open = set(range(question.choices))
        self._opened: set[int] = set()
        self._usage: Any = None

    @property
    def tokens(self) -> int:
        """How many came so far."""
        return sum(self._counts)

    def take(self, event: Event) -> None:
        """The next event."""
        data = event.data
        if not self._id:
            self._id = str(data.get("id"))
            self._due = expected(self._question, _seed(self._question, self._id))
        _same("the answer's id", data.get("id"), self._id)
        if self._usage is not None:
            raise Wrong(f"an event came behind the usage: {data}")
        choices = data["choices"]
        if not choices:
            self._usage = data.get("usage")
        for choice in choices:
            self._choice(choice)
        _same("the event's id", event.id, f"{self._id}:{','.join(map(str, self._counts))}")

    def end(self) -> None:
        """The client says that the stream is complete."""
        if self._open or not self._id:
            raise Wrong(f"the stream ended while choices {sorted(self._open)} had no finish reason")
        _same("usage", self._usage, _usage(self._question, self._due) if self._question.usage else None)

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        if index not in self._open:
            raise Wrong(f"choice {index} went on behind its end, or was never asked for: {choice}")
        if self._question.chat and "role" in choice["delta"]:
            if index in self._opened:
                raise Wrong(f"choice {index} began twice")
            self._opened.add(index)
        elif choice["finish_reason"] is not None:
            self._finish(index, choice["finish_reason"])
        else:
            self._token(index, choice)

    def _token(self, index: int, choice: dict[str, Any]) -> None:
        due, at = self._due[index], self._counts[index]
        text = choice["delta"]["content"] if self._question.chat else choice["text"]
        if at >= len(due.pieces):
            raise Wrong(f"choice {index}: token {at} {text!r} came, and the last one due was {len(due.pieces) - 1}")
        if text != due.pieces[at]:
            around = due.pieces[max(0, at - AROUND) : at + AROUND + 1]
            raise Wrong(f"choice {index}: token {at} is {text!r} and must be {due.pieces[at]!r}, within {around}")
        logprobs = _logprobs(self._question, due, at, at + 1)
        _same(f"choice {index}: logprobs of token {at}", choice.get("logprobs"), logprobs)
        self._counts[index] = at + 1

    def _finish(self, index: int, reason: str) -> None:
        due = self._due[index]
        where = f"choice {index}, which ended after {self._counts[index]} tokens"
        _same(f"tokens of {where}", self._counts[index], len(due.pieces))
        _same(f"finish reason of {where}", reason, due.finish)
        self._open.remove(index)


def _same(what: str, found: Any, wanted: Any) -> None:
    if found == wanted:
        return
    if isinstance(found, str) and isinstance(wanted, str):
        at = next((at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(found), len(wanted)) if at is None else at
        window = slice(max(0, at - 60), at + 60)
        raise Wrong(f"{what}: differs from character {at}: is {found[window]!r}, must be {wanted[window]!r}")
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        for key in wanted:
            _same(f"{what}.{key}", found[key], wanted[key])
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for at, pair in enumerate(zip(found, wanted, strict=True)):
            _same(f"{what}[{at}]", *pair)
    raise Wrong(f"{what}: is {repr(found)[:SHOWN_MAX]}, must be {repr(wanted)[:SHOWN_MAX]}")


def _seed(question: Question, response_id: str) -> int:
    """The first choice's seed, which the answer's id must hold. Raises `Wrong`."""
    match = _ID.fullmatch(response_id)
    if match is None:
        raise Wrong(f"the answer's id {response_id!r} is none")
    seed = int(match["seed"], 16)
    seed = seed - (1 << 64) if seed >> 63 else seed
    _same("the seed in the answer's id", seed, question.body.get("seed", seed))
    return seed


def _usage(question: Question, due: list[Expected]) -> dict[str, int]:
    prompt, completion = prompt_tokens(question), sum(len(choice.tokens) for choice in due)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprobs(question: Question, due: Expected, begin: int, end: int) -> dict[str, Any] | None:
    """What must stand with the tokens from `begin` to `end`, if it was asked for."""
    if question.logprobs < 0:
        return None
    tokens = due.tokens[begin:end]
    tops = [[(token + step) % len(WORDS) for step in range(question.logprobs)] for token in tokens]
    if question.chat:
        content = []
        for token, top in zip(tokens, tops, strict=True):
            others = [_chat_token(other, LOGPROB * (rank + 1)) for rank, other in enumerate(top)]
            content.append({**_chat_token(token, LOGPROB), "top_logprobs": others})
        return {"content": content, "refusal": None}
    offsets = [sum(map(len, due.pieces[:at])) for at in range(begin, end)]
    return {
        "tokens": [_text(token) for token in tokens],
        "token_logprobs": [LOGPROB] * len(tokens),
        "top_logprobs": [{_text(o): LOGPROB * (rank + 1) for rank, o in enumerate(top)} for top in tops]
        if question.logprobs
        else None,
        "text_offset": offsets,
    }


def _chat_token(token: int, logprob: float) -> dict[str, Any]:
    text = _text(token)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text(token: int) -> str:
    return f" {WORDS[token]}"
