"""Bodies of answers, taken in piece by piece: a stream of events, a whole answer, or an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

import msgspec

from holdfast.gateway.client.errors import (
    ApiError,
    BadAnswer,
    ClientError,
    ConnectionFailed,
    Refused,
    ServerFault,
    Unavailable,
)
from holdfast.gateway.client.events import Event
from holdfast.gateway.client.sse import ServerSent, SseParser

GATEWAY_STOPPING: Final = "gateway_stopping"
ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
PROBLEM_BYTES_MAX: Final = 64 * 1024
MESSAGE_CHARS_MAX: Final = 2000
RETRYABLE: Final = frozenset({408, 429, 502, 503, 504, 529})
RESUMABLE: Final = frozenset({GATEWAY_STOPPING, "no_replica"})
"""Codes of error events after which the stream may go on: at another gateway, or once a replica is back."""
_SENDABLE_ID: Final = re.compile(r"|[!-~]([ -~]{0,4094}[!-~])?")


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a piece of a body brought, and how the body ended with it, if it did."""

    events: tuple[Event, ...] = ()
    end: Done | ClientError | None = None


class Body(Protocol):
    """The body of one answer."""

    def feed(self, data: bytes) -> Found:
        """A piece came."""

    def ended(self) -> Found:
        """The body is over, as far as HTTP can tell."""


class EventBody:
    """A stream of events. Complete with `[DONE]`: one that ends before that was cut, however politely."""

    def __init__(self, last_id: str) -> None:
        self._parser = SseParser(last_id)

    def feed(self, data: bytes) -> Found:
        events: list[Event] = []
        try:
            for sent in self._parser.feed(data):
                if sent.data.strip() == "[DONE]":
                    return Found(tuple(events), Done())
                event = _event(sent)
                if event.data.get("error"):
                    return Found(tuple(events), error_from(event.data, None))
                events.append(event)
        except BadAnswer as error:
            return Found(tuple(events), error)
        return Found(tuple(events))

    def ended(self) -> Found:
        return Found(end=ConnectionFailed("the stream ended before its [DONE]"))


class WholeBody:
    """An answer that is not streamed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._left = ANSWER_BYTES_MAX

    def feed(self, data: bytes) -> Found:
        self._left -= len(data)
        if self._left < 0:
            return Found(end=BadAnswer(f"the answer is longer than {ANSWER_BYTES_MAX} bytes"))
        self._parts.append(data)
        return Found()

    def ended(self) -> Found:
        data = _object(b"".join(self._parts))
        if data is None:
            return Found(end=ConnectionFailed("the answer was cut: it is no whole JSON object"))
        return Found((Event("", data),), Done())


class ProblemBody:
    """An answer with an error's status. What is beyond a bound is not read."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = headers
        self._body = bytearray()

    def feed(self, data: bytes) -> Found:
        self._body += data[: PROBLEM_BYTES_MAX + 1 - len(self._body)]
        return self.ended() if len(self._body) > PROBLEM_BYTES_MAX else Found()

    def ended(self) -> Found:
        return Found(end=error_from(_object(bytes(self._body)) or {}, self._status, retry_after_s(self._headers)))


def body_of(status: int, headers: Mapping[str, str], *, streamed: bool, last_id: str) -> Body | BadAnswer:
    """How the body of an answer with this status and these headers is to be read."""
    if status != 200:
        return ProblemBody(status, headers)
    expected = "text/event-stream" if streamed else "application/json"
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        return BadAnswer(f"the answer is {given[:100]!r} and not {expected!r}: is this URL a gateway's?")
    return EventBody(last_id) if streamed else WholeBody()


def error_from(body: Mapping[str, Any], status: int | None, retry_after: float | None = None) -> ApiError:
    """The error in a body or an event of OpenAI's shape; made up from the status where there is none."""
    found = body.get("error")
    error = found if isinstance(found, dict) else {}
    message = _text(error.get("message")) or (f"HTTP status {status}" if status else "the server broke off the stream")
    code, param = _text(error.get("code")), _text(error.get("param"))
    kind: type[ApiError] = ServerFault
    if status in RETRYABLE or (status is None and code in RESUMABLE):
        kind = Unavailable
    elif error.get("type") == "invalid_request_error" if status is None else 400 <= status < 500:
        kind = Refused
    return kind(message, status=status, code=code, param=param, retry_after_s=retry_after)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds (RFC 9110, 10.2.3). A date counts from the answer's own `Date`, so no clock is asked."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    try:
        until, date = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - date).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _event(sent: ServerSent) -> Event:
    data = _object(sent.data.encode())
    if data is None:
        raise BadAnswer(f"an event's data is no JSON object: {sent.data[:100]!r}")
    if not _SENDABLE_ID.fullmatch(sent.id):
        raise BadAnswer(f"an event's id can't be sent back in a header: {sent.id[:100]!r}")
    return Event(sent.id, data)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: object) -> str | None:
    return value[:MESSAGE_CHARS_MAX] if isinstance(value, str) and value else None
