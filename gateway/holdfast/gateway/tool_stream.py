"""The events of a chat whose answer may hold tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from holdfast.core.stream import Piece
from holdfast.gateway.sse import ChatEncoder, Encoder, Frame, Head, escape_line_ends
from holdfast.gateway.tool_calls import CallParser, Part, message_delta, sane

_to_json = msgspec.json.Encoder().encode
_OPEN: Final = b'"delta":{"role":"assistant","content":null},"finish_reason":null}]'


def chat_encoder(head: Head, choices: int, delivered: Sequence[int] | None = None) -> Encoder:
    """The encoder for a chat: this module's only where the answer may hold calls."""
    return (ToolEncoder if head.calls else ChatEncoder)(head, choices, delivered)


class ToolEncoder(ChatEncoder):
    """As `ChatEncoder`, with the text taken apart: an event per token still, whose delta may be empty.

    The client's text of a choice may end within a marker, which is held back; so what an event brings depends on
    all text up to it. A stream that is resumed after some tokens has to be fed their text first.
    """

    __slots__ = ("_drawn", "_parsers")

    def __init__(self, head: Head, choices: int, delivered: Sequence[int] | None = None) -> None:
        super().__init__(head, choices, delivered)
        self._parsers: dict[Frame, tuple[CallParser, int]] = {}
        self._drawn: dict[Frame, int] = {}

    def _prepare(self, frame: Frame, choice: int) -> None:
        self._parsers[frame] = CallParser(), choice

    def _known(self, frame: Frame, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._parsers[frame][0].feed(sane(piece.text))
            self._drawn[frame] = piece.count

    def _opening(self, frame: Frame, choice: int, out: list[bytes]) -> None:
        out.append(frame.event(_OPEN + self._tail()))

    def _append_pieces(self, frame: Frame, pieces: Sequence[Piece], out: list[bytes]) -> None:
        parser, _ = self._parsers[frame]
        for piece in pieces:
            frame.count = self._drawn[frame] = piece.count
            out.append(frame.event(self._inner(frame, parser.feed(sane(piece.text)), None)))

    def _finish(self, frame: Frame, reason: str) -> bytes:
        if self._drawn.get(frame, 0) < frame.count:
            # It was stopped while it was drawn again: the client has what is held back here, and what came after it.
            return self._inner(frame, [], reason)
        parts, found = self._parsers[frame][0].end(reason)
        return self._inner(frame, parts, found)

    def _inner(self, frame: Frame, parts: list[Part], reason: str | None) -> bytes:
        delta = message_delta(parts, self._head.id, self._parsers[frame][1])
        return b'"delta":%b,"finish_reason":%b}]%b' % (_delta_json(delta), _to_json(reason), self._tail())


def _delta_json(delta: msgspec.Struct) -> bytes:
    return escape_line_ends(_to_json(delta))
