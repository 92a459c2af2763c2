"""Log probabilities in the two shapes that OpenAI gives them: a chat's and a completion's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from holdfast.core.stream import Piece
from holdfast.gateway.openai import ChatLogprobs, CompletionLogprobs, TokenInfo, TopLogprob

_LEAST: Final = -9999.0
"""What OpenAI gives for a token that is all but impossible; JSON has no minus infinity."""


def token_text(token: bytes) -> str:
    r"""A token as text. A token that is only part of a character is given as OpenAI does: `bytes:\xe2\x80`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def chat_logprobs(pieces: Sequence[Piece]) -> ChatLogprobs | None:
    """A chat's log probabilities; None if the engine gave none. Pieces without any are left out."""
    infos = [
        TokenInfo(
            token_text(found.text),
            _finite(found.logprob),
            list(found.text),
            [TopLogprob(token_text(text), _finite(logprob), list(text)) for _, text, logprob in found.top],
        )
        for piece in pieces
        if (found := piece.logprob) is not None
    ]
    return ChatLogprobs(infos) if infos else None


def completion_logprobs(pieces: Sequence[Piece], *, with_top: bool, offset: int) -> CompletionLogprobs | None:
    """A completion's log probabilities, its text beginning at character `offset`; None if the engine gave none."""
    tokens: list[str] = []
    logprobs: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for piece in pieces:
        if (found := piece.logprob) is not None:
            tokens.append(token_text(found.text))
            logprobs.append(_finite(found.logprob))
            tops.append({token_text(text): _finite(logprob) for _, text, logprob in found.top})
            offsets.append(offset)
        offset += len(piece.text)
    return CompletionLogprobs(tokens, logprobs, tops if with_top else None, offsets) if tokens else None


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST
