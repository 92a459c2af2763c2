"""Server-sent events taken apart, by the rules of the HTML standard (section 9.2.6), from bytes cut anywhere.

Lines end with LF, CR or CRLF and nothing else; an event without the empty line behind it is dropped; an id stays until
the next one. What a server can make us keep is bounded. (httpx-sse, and httpx's own lines, bound neither a line nor an
event, and this is smaller than an adapter that would.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from holdfast.gateway.client.errors import BadAnswer

EVENT_BYTES_MAX: Final = 4 * 1024 * 1024
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSent:
    """An event: the last id that the server gave by then, and the data."""

    id: str
    data: str


class SseParser:
    """One connection's parser. `last_id` is that of the connection before, as the standard has it."""

    def __init__(self, last_id: str = "", event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = event_bytes_max
        self._size = 0
        self._line: list[bytes] = []
        self._data: list[str] = []
        self._id = last_id
        self._skip_lf = False
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[ServerSent]:
        """Gives the events that are complete with `chunk`. Raises `BadAnswer` behind them if the next is too long."""
        if self._skip_lf and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._skip_lf = False
        if not chunk:
            return
        self._skip_lf = chunk.endswith(b"\r")
        *lines, rest = _LINE_END.split(chunk)
        for line in lines:
            event = self._line_ended(line)
            if event is not None:
                yield event
        if rest:
            self._grow(len(rest))
            self._line.append(rest)

    def _line_ended(self, last: bytes) -> ServerSent | None:
        self._grow(len(last))
        line = last
        if self._line:
            line = b"".join((*self._line, last))
            self._line.clear()
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if line:
            self._field(line)
            return None
        return self._dispatch()

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._max:
            raise BadAnswer(f"an event of the stream is longer than {self._max} bytes")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif not name:
            self._size -= len(line)

    def _dispatch(self) -> ServerSent | None:
        self._size = 0
        if not self._data:
            return None
        event = ServerSent(self._id, "\n".join(self._data))
        self._data.clear()
        return event
