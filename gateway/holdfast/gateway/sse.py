"""Server-sent events: one per token, written with as little work per token as Python allows.

Everything of an event that does not change within a choice is put together once, when its first token comes.
A token's event is then five pieces of bytes: what stands before the token's number, the number, what stands
before the text, the text as JSON, and what stands behind it. The events of all deltas that wait together are
joined once and sent together.

An event's id is `<response id>:<count>`, with one count for each choice, separated by commas: so many tokens of it
are delivered when the client has this event. So one id says where all choices stand, and a stream can be taken up
there. Events that bring no token of their own repeat the id of the event before them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from holdfast.core.stream import Piece
from holdfast.gateway.backend import Delta
from holdfast.gateway.logprobs import chat_logprobs, completion_logprobs
from holdfast.gateway.openai import Usage

_to_json = msgspec.json.Encoder().encode
_NUMBERS_END: Final = 8192
_NUMBERS: Final = tuple(b"%d" % n for n in range(_NUMBERS_END))
_LINE_ENDS: Final = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")
_NULL_USAGE: Final = b',"usage":null'
_OPEN_CHAT: Final = b'"delta":{"role":"assistant","content":""},"finish_reason":null}]'


@dataclass(frozen=True, slots=True)
class Head:
    """What all events of a response share. `calls`: its text may hold tool calls, to be told apart from it."""

    id: str
    created: int
    model: str
    include_usage: bool
    logprobs: int
    echo: Sequence[str] = ()
    calls: bool = False

    def echo_of(self, choice: int, choices: int) -> str:
        """The prompt's text that goes before one of `choices` answers; nothing where no echo was asked for."""
        return self.echo[choice * len(self.echo) // choices] if self.echo else ""


class Frame:
    """One choice's constant bytes, and how far it has come."""

    __slots__ = ("_around", "_inner", "after", "bare", "before", "between", "count", "offset")

    def __init__(self, bare: bytes, between: bytes, after: bytes) -> None:
        self._inner = bare
        self._around = between
        self.before = b""
        self.bare = bare
        self.between = bare + between
        self.after = after
        self.count = 0
        self.offset = 0

    def place(self, before: bytes, behind: bytes) -> None:
        """What stands before this choice's count in an event's id, and behind it."""
        self.before = before
        self.bare = behind + self._inner
        self.between = self.bare + self._around

    def event(self, inner: bytes) -> bytes:
        """An event with this choice's last id. `inner` is the rest of the choice, and of the object after it."""
        return b"%b%d%b%b\n\n" % (self.before, self.count, self.bare, inner)


class Encoder(ABC):
    """Encodes one response's events. `ended` once every choice has its finish reason."""

    __slots__ = ("_counts", "_created", "_frames", "_head", "_open", "_plain", "_prefix", "_resumed", "ended")

    OBJECT = ""

    def __init__(self, head: Head, choices: int, delivered: Sequence[int] | None = None) -> None:
        """`delivered` tokens of each choice are the client's already; those choices have had their opening.

        Where an event depends on the text before it, those tokens have to be encoded all the same, without an event.
        """
        self._head = head
        self._prefix = b"id: %b:" % head.id.encode()
        self._frames: list[Frame | None] = [None] * choices
        self._counts = list(delivered or [0] * choices)
        self._resumed = delivered is not None
        self._open = choices
        self._plain = head.logprobs < 0 and not head.calls
        self._created = b'{"id":"%b","object":"%b","created":%d,"model":%b,"choices":[' % (
            head.id.encode(),
            self.OBJECT.encode(),
            head.created,
            _to_json(head.model),
        )
        self.ended = False

    def encode(self, deltas: Sequence[Delta]) -> bytes:
        """All events for what came, in order: bytes to be sent in one piece."""
        out: list[bytes] = []
        for delta in deltas:
            frame = self._frames[delta.choice] or self._start(delta.choice, out)
            if len(self._counts) > 1:
                self._place(frame, delta.choice)
            pieces = self._new(frame, delta) if self._resumed else delta.pieces
            if pieces:
                if self._plain:
                    _append_texts(frame, pieces, out)
                else:
                    self._append_pieces(frame, pieces, out)
                frame.count = self._counts[delta.choice] = pieces[-1].count
            if delta.finish_reason is not None:
                out.append(frame.event(self._finish(frame, delta.finish_reason)))
                self._open -= 1
        self.ended = self._open == 0
        return b"".join(out)

    def done(self, usage: Usage) -> bytes:
        """The end of a response that went well, with the usage if it was asked for."""
        last = self._last_id()
        end = b"id: %b\ndata: [DONE]\n\n" % last
        if not self._head.include_usage:
            return end
        return b'id: %b\ndata: %b],"usage":%b}\n\n%b' % (last, self._created, _to_json(usage), end)

    def error(self, body: bytes) -> bytes:
        """The end of a response that broke: `body` is the error as JSON. No `[DONE]` comes after it."""
        return b"id: %b\ndata: %b\n\n" % (self._last_id(), body)

    def _last_id(self) -> bytes:
        return b"%b:%b" % (self._head.id.encode(), b",".join(b"%d" % count for count in self._counts))

    def _start(self, choice: int, out: list[bytes]) -> Frame:
        frame = self._frame(choice)
        self._frames[choice] = frame
        frame.count = self._counts[choice]
        self._place(frame, choice)
        self._prepare(frame, choice)
        if not frame.count:
            self._opening(frame, choice, out)
        return frame

    def _new(self, frame: Frame, delta: Delta) -> Sequence[Piece]:
        """What the client does not have yet."""
        known = sum(piece.count <= self._counts[delta.choice] for piece in delta.pieces)
        self._known(frame, delta.pieces[:known])
        return delta.pieces[known:]

    def _prepare(self, frame: Frame, choice: int) -> None:  # noqa: B027 - most have nothing to do
        """Set up what a choice needs before its first token, resumed or not."""

    def _known(self, frame: Frame, pieces: Sequence[Piece]) -> None:  # noqa: B027 - most have nothing to do
        """Take note of tokens that the client has."""

    def _place(self, frame: Frame, choice: int) -> None:
        """Put the other choices' counts around this one's, as they are now."""
        before = b"".join(b"%d," % count for count in self._counts[:choice])
        after = b"".join(b",%d" % count for count in self._counts[choice + 1 :])
        frame.place(self._prefix + before, after)

    def _frame(self, choice: int) -> Frame:
        bare = b'\ndata: %b{"index":%d,' % (self._created, choice)
        between, after = self._around_text()
        return Frame(bare, between, after + self._tail() + b"\n\n")

    def _tail(self) -> bytes:
        return _NULL_USAGE + b"}" if self._head.include_usage else b"}"

    @abstractmethod
    def _around_text(self) -> tuple[bytes, bytes]:
        """What stands in the choice before a token's text and behind it, up to the end of the choices."""

    @abstractmethod
    def _opening(self, frame: Frame, choice: int, out: list[bytes]) -> None:
        """Events that come before a choice's first token."""

    @abstractmethod
    def _finish(self, frame: Frame, reason: str) -> bytes:
        """What stands in the choice of the event that ends it, and behind it."""

    @abstractmethod
    def _append_pieces(self, frame: Frame, pieces: Sequence[Piece], out: list[bytes]) -> None:
        """Events of tokens that bring more than their text."""


class ChatEncoder(Encoder):
    """`chat.completion.chunk` events: the role, then a delta per token, then an empty one with the reason."""

    __slots__ = ()

    OBJECT = "chat.completion.chunk"

    def _around_text(self) -> tuple[bytes, bytes]:
        return b'"delta":{"content":', b'},"finish_reason":null}]'

    def _opening(self, frame: Frame, choice: int, out: list[bytes]) -> None:
        out.append(frame.event(_OPEN_CHAT + self._tail()))

    def _finish(self, frame: Frame, reason: str) -> bytes:
        return b'"delta":{},"finish_reason":%b}]%b' % (_to_json(reason), self._tail())

    def _append_pieces(self, frame: Frame, pieces: Sequence[Piece], out: list[bytes]) -> None:
        inner = b'"delta":{"content":%b},"logprobs":%b,"finish_reason":null}]%b'
        for piece in pieces:
            frame.count = piece.count
            logprobs = _to_json(chat_logprobs([piece]))
            out.append(frame.event(inner % (_text_json(piece.text), logprobs, self._tail())))


class CompletionEncoder(Encoder):
    """`text_completion` events: the echoed prompt if asked for, then a text per token, then an empty one."""

    __slots__ = ()

    OBJECT = "text_completion"

    def _around_text(self) -> tuple[bytes, bytes]:
        return b'"text":', b',"logprobs":null,"finish_reason":null}]'

    def _prepare(self, frame: Frame, choice: int) -> None:
        frame.offset = len(self._head.echo_of(choice, len(self._frames)))

    def _known(self, frame: Frame, pieces: Sequence[Piece]) -> None:
        frame.offset += sum(len(piece.text) for piece in pieces)

    def _opening(self, frame: Frame, choice: int, out: list[bytes]) -> None:
        if self._head.echo:
            echo = self._head.echo_of(choice, len(self._frames))
            inner = b'"text":%b,"logprobs":null,"finish_reason":null}]%b'
            out.append(frame.event(inner % (_text_json(echo), self._tail())))

    def _finish(self, frame: Frame, reason: str) -> bytes:
        return b'"text":"","logprobs":null,"finish_reason":%b}]%b' % (_to_json(reason), self._tail())

    def _append_pieces(self, frame: Frame, pieces: Sequence[Piece], out: list[bytes]) -> None:
        inner = b'"text":%b,"logprobs":%b,"finish_reason":null}]%b'
        for piece in pieces:
            frame.count = piece.count
            logprobs = completion_logprobs([piece], with_top=self._head.logprobs > 0, offset=frame.offset)
            frame.offset += len(piece.text)
            out.append(frame.event(inner % (_text_json(piece.text), _to_json(logprobs), self._tail())))


def _append_texts(frame: Frame, pieces: Sequence[Piece], out: list[bytes]) -> None:
    """The hot loop."""
    before, between, after = frame.before, frame.between, frame.after
    for piece in pieces:
        count, text = piece.count, piece.text
        number = _NUMBERS[count] if count < _NUMBERS_END else b"%d" % count
        out += (before, number, between, _to_json(text) if text.isascii() else _text_json(text), after)


def _text_json(text: str) -> bytes:
    """Text as a JSON string that every client can take apart.

    What Unicode calls a line's end beside CR and LF (U+0085, U+2028, U+2029) may stand in JSON and in an event,
    but many a client splits events with a `splitlines` that splits there: they are escaped. Half a surrogate
    pair, a broken engine's, can't be sent at all and becomes a question mark.
    """
    if text.isprintable():
        return _to_json(text)
    return escape_line_ends(_to_json(text.encode("utf-8", "replace").decode()))


def escape_line_ends(json: bytes) -> bytes:
    """The same JSON without the characters at which a client may split lines."""
    for end, escape in _LINE_ENDS:
        json = json.replace(end, escape)
    return json
