"""Answers that are not streamed: all of a request's deltas collected into one JSON document."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.core.stream import Piece
from holdfast.gateway.backend import Delta
from holdfast.gateway.logprobs import chat_logprobs, completion_logprobs
from holdfast.gateway.openai import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    ToolCall,
    Usage,
)
from holdfast.gateway.sse import Head
from holdfast.gateway.tool_calls import whole_message


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
    choices = [_chat_choice(head, collected, index) for index in range(len(collected.pieces))]
    return msgspec.json.encode(ChatCompletion(head.id, "chat.completion", head.created, head.model, choices, usage))


def _chat_choice(head: Head, collected: Collected, index: int) -> ChatChoice:
    pieces, reason = collected.pieces[index], collected.reasons[index]
    if head.calls:
        content, found, reason = whole_message([piece.text for piece in pieces], reason, head.id, index)
        calls = [ToolCall(call.id, "function", CalledFunction(call.name, call.arguments)) for call in found]
        message = AnswerMessage("assistant", content, tool_calls=calls or msgspec.UNSET)
    else:
        message = AnswerMessage("assistant", _text(pieces))
    return ChatChoice(index, message, chat_logprobs(pieces) if head.logprobs >= 0 else None, reason)


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
