"""Answers that are not streamed: all of a request's deltas collected into one JSON document."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.core.stream import Piece
from holdfast.gateway.backend import Delta
from holdfast.gateway.logprobs import chat_logprobs, completion_logprobs
from holdfast.gateway.openai import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    Usage,
)
from holdfast.gateway.sse import Head


class Collected:
    """What each choice has got so far. `ended` once every choice has its finish reason."""

    __slots__ = ("_open", "pieces", "reasons")

    def __init__(self, choices: int) -> None:
        self.pieces: list[list[Piece]] = [[] for _ in range(choices)]
        self.reasons = [""] * choices
        self._open = choices

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._open == 0

    def add(self, deltas: Sequence[Delta]) -> None:
        """Take what came."""
        for delta in deltas:
            self.pieces[delta.choice] += delta.pieces
            if delta.finish_reason is not None:
                self.reasons[delta.choice] = delta.finish_reason
                self._open -= 1


def chat_answer(head: Head, collected: Collected, usage: Usage) -> bytes:
    """The body of a chat's answer."""
    choices = [
        ChatChoice(
            index,
            AnswerMessage("assistant", _text(pieces)),
            chat_logprobs(pieces) if head.logprobs >= 0 else None,
            collected.reasons[index],
        )
        for index, pieces in enumerate(collected.pieces)
    ]
    return msgspec.json.encode(ChatCompletion(head.id, "chat.completion", head.created, head.model, choices, usage))


def completion_answer(head: Head, collected: Collected, usage: Usage) -> bytes:
    """The body of a completion's answer."""
    choices = []
    for index, pieces in enumerate(collected.pieces):
        echo = head.echo_of(index, len(collected.pieces))
        logprobs = None
        if head.logprobs >= 0:
            logprobs = completion_logprobs(pieces, with_top=head.logprobs > 0, offset=len(echo))
        choices.append(CompletionChoice(index, echo + _text(pieces), logprobs, collected.reasons[index]))
    return msgspec.json.encode(Completion(head.id, "text_completion", head.created, head.model, choices, usage))


def _text(pieces: Sequence[Piece]) -> str:
    text = "".join([piece.text for piece in pieces])
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()
