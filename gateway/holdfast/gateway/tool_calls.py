"""Tool calls, taken out of the text that a model writes.

What is content and what is a call is a function of the text alone, fed in any pieces: so a stream that migrated,
or that a client resumes, is told apart exactly as an undisturbed one. The format is `requests.CALL_MARKER`'s.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from holdfast.core.requests import CALL_END, CALL_HEAD, CALL_MARKER, CALL_MIDDLE, CALL_SEPARATOR
from holdfast.core.stream import FINISH_STOP

FINISH_TOOL_CALLS: Final = "tool_calls"
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{0,64}")


class Text(NamedTuple):
    """Content."""

    text: str


class Began(NamedTuple):
    """The call with this number has begun."""

    call: int
    name: str


class Arguments(NamedTuple):
    """More of the arguments' JSON of the call with this number."""

    call: int
    text: str


Part = Text | Began | Arguments


class CallParser:
    """Splits one choice's text. Text that may turn out to be part of a marker is held back until that is known."""

    __slots__ = ("_held", "_inside", "calls")

    def __init__(self) -> None:
        self.calls = 0
        self._inside = False
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        """What is known now that was not before, in order."""
        self._held += text
        parts: list[Part] = []
        while self._arguments(parts) if self._inside else self._content(parts):
            pass
        return parts

    def end(self, reason: str) -> tuple[list[Part], str]:
        """What was held back when the text ended, and the choice's reason in OpenAI's terms.

        After a call it can only be the beginning of another that got no name: there is nothing to show of that.
        """
        held, self._held = self._held, ""
        if self._inside:
            return ([Arguments(self.calls - 1, held)] if held else []), reason
        complete = self.calls > 0 and not held and reason == FINISH_STOP
        return ([Text(held)] if held and self.calls == 0 else []), FINISH_TOOL_CALLS if complete else reason

    def _content(self, parts: list[Part]) -> bool:
        """Give out content up to where a call may begin; whether a call has begun."""
        marker = CALL_MARKER if self.calls == 0 else CALL_SEPARATOR + CALL_MARKER
        at = self._held.find(marker)
        if at < 0:
            self._give(parts, len(self._held) - _beginning(self._held, marker))
            return False
        self._give(parts, at)
        name, length = _head(self._held, len(marker))
        if length == 0:
            return False
        if name is None:
            self._give(parts, len(marker))
            return True
        parts.append(Began(self.calls, name))
        self.calls += 1
        self._inside = True
        self._held = self._held[length:]
        return True

    def _arguments(self, parts: list[Part]) -> bool:
        """Give out arguments up to where the call may end; whether it has ended."""
        at = self._held.find(CALL_END)
        known = at if at >= 0 else len(self._held) - _beginning(self._held, CALL_END)
        if known:
            parts.append(Arguments(self.calls - 1, self._held[:known]))
        self._held = self._held[known:] if at < 0 else self._held[known + len(CALL_END) :]
        self._inside = at < 0
        return at >= 0

    def _give(self, parts: list[Part], characters: int) -> None:
        if characters:
            parts.append(Text(self._held[:characters]))
            self._held = self._held[characters:]


def _beginning(text: str, marker: str) -> int:
    """How many characters at the end of the text may be the beginning of the marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def _head(text: str, start: int) -> tuple[str | None, int]:
    """The name of the call whose marker ends at `start`, and where its arguments begin.

    No name and 0 while that isn't known yet; no name and another number where it is no call.
    """
    head = text[start : start + len(CALL_HEAD)]
    if head != CALL_HEAD:
        return None, 0 if CALL_HEAD.startswith(head) else -1
    start += len(CALL_HEAD)
    found = _NAME.match(text, start)
    assert found is not None
    middle = text[found.end() : found.end() + len(CALL_MIDDLE)]
    if middle == CALL_MIDDLE and found[0]:
        return found[0], found.end() + len(CALL_MIDDLE)
    return None, 0 if CALL_MIDDLE.startswith(middle) and (found[0] or not middle) else -1


def sane(text: str) -> str:
    """The text with half surrogate pairs, a broken engine's, made question marks: they can't be sent."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function's name, in a call's first delta, and more of its arguments."""

    arguments: str
    name: str | None = None


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tool call got. `id` and `type` come with its first delta."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


class MessageDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a message got."""

    content: str | None = None
    tool_calls: list[CallDelta] = msgspec.field(default_factory=list)


def call_id(response_id: str, choice: int, index: int) -> str:
    """A call's id: a function of where it stands, so that a resumed stream gives it the same."""
    digest = hashlib.blake2b(f"{response_id}.{choice}.{index}".encode(), digest_size=12).hexdigest()
    return f"call_{digest}"


def message_delta(parts: Iterable[Part], response_id: str, choice: int) -> MessageDelta:
    """The parts as one delta in OpenAI's shape."""
    content = ""
    calls: list[CallDelta] = []
    for part in parts:
        match part:
            case Text(text):
                content += text
            case Began(index, name):
                calls.append(CallDelta(index, FunctionDelta("", name), call_id(response_id, choice, index), "function"))
            case Arguments(index, text):
                calls.append(CallDelta(index, FunctionDelta(text)))
    return MessageDelta(content or None, calls)


class WholeCall(NamedTuple):
    """A call that is complete, or as complete as it became."""

    id: str
    name: str
    arguments: str


def whole_message(
    texts: Sequence[str], reason: str, response_id: str, choice: int
) -> tuple[str | None, list[WholeCall], str]:
    """A whole answer's content, its calls, and the choice's reason."""
    parser = CallParser()
    parts = parser.feed(sane("".join(texts)))
    rest, reason = parser.end(reason)
    content = ""
    names: list[str] = []
    arguments: list[str] = []
    for part in (*parts, *rest):
        match part:
            case Text(text):
                content += text
            case Began(_, name):
                names.append(name)
                arguments.append("")
            case Arguments(call, text):
                arguments[call] += text
    ids = [call_id(response_id, choice, index) for index in range(len(names))]
    calls = [WholeCall(*call) for call in zip(ids, names, arguments, strict=True)]
    return content or None, calls, reason
