"""A process's system port: `/health`, `/live` and `/metrics` over HTTP, for whoever watches it.

It runs in the process's own event loop, so that an answer tells that the loop turns. It must hold up nobody there: few
connections, one request at a time on each, a deadline for each, and pages that are made at most so often. It shows
and changes nothing. h11 reads and writes HTTP; what was weighed against it stands in decision 013.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import h11
import msgspec

from holdfast.actors.metrics import CONTENT_TYPE, Ledger

PORT_TRIES = 256
"""So many ports are tried, from the first one upwards."""

PORT_MAX = 65_535

CONNECTIONS_MAX = 16
REQUEST_TIMEOUT_S = 10.0
"""So many connections at once; each is closed so long after its last answer began, or after it came (seconds)."""

METRICS_KEPT_S = 0.25
"""The metrics are made anew at most so often (seconds): a flood of scrapes must not hold up streams."""

HEADERS_BYTES_MAX = 16 * 1024

PIPELINED_MAX = 8
UNTAKEN_BYTES_MAX = 64 * 1024
"""Who sends more requests than this at once, or another while so much of the last answers is not taken, is left."""

_JSON: Final = "application/json"

logger = logging.getLogger(__name__)

Page = Callable[[], tuple[int, str, bytes]]
"""Makes a page: its status, its content type, and its body."""


class SystemPort:
    """Serves these pages on the first free port from `first` upwards. `port` is 0 while it has none."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self, host: str, first: int) -> None:
        """Listen, unless `first` is 0. A port that can't be had is no reason not to run: a warning says so."""
        loop = asyncio.get_running_loop()
        last = min(first + PORT_TRIES - 1, PORT_MAX)
        error: OSError | None = None
        for port in range(first, last + 1) if first else ():
            try:
                self._server = await loop.create_server(lambda: _Connection(self._pages, self._connections), host, port)
            except socket.gaierror as unknown:  # no other port would do, and each may take as long as DNS does
                error = unknown
                break
            except OSError as refused:
                error = refused
                continue
            self.port = port
            return
        if error is not None:
            logger.warning("no system port: none of %d to %d on %s can be had: %s", first, last, host, error)

    def close(self) -> None:
        """Listen no longer, and leave those who are connected."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()


def system_pages(ledger: Ledger, reasons: Callable[[], Sequence[str]]) -> dict[str, Page]:
    """The three pages. `reasons` are why the process can't do its work just now, a sentence each; none if it can."""
    kept: list[tuple[float, bytes]] = []

    def health() -> tuple[int, str, bytes]:
        why = list(reasons())
        status = "unhealthy" if why else "healthy"
        return (503 if why else 200), _JSON, msgspec.json.encode({"status": status, "reasons": why})

    def live() -> tuple[int, str, bytes]:
        return 200, _JSON, b'{"status":"alive"}'

    def metrics() -> tuple[int, str, bytes]:
        now_s = asyncio.get_running_loop().time()
        if not kept or now_s - kept[0][0] >= METRICS_KEPT_S:
            kept[:] = [(now_s, ledger.text())]
        return 200, CONTENT_TYPE, kept[0][1]

    return {"/health": health, "/live": live, "/metrics": metrics}


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, pages: Mapping[str, Page], connections: set[_Connection]) -> None:
        self._pages = pages
        self._connections = connections
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_BYTES_MAX)
        self._request: h11.Request | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        if len(self._connections) >= CONNECTIONS_MAX:
            self.abort()
            return
        self._connections.add(self)
        self._expect()

    def connection_lost(self, _error: Exception | None) -> None:
        self._connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def abort(self) -> None:
        """Leave the client."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self not in self._connections:
            return
        self._http.receive_data(data)
        try:
            self._proceed()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                self._send(error.error_status_hint, "text/plain", b"this is not HTTP as it should be\n")
            self._end()

    def eof_received(self) -> None:
        self._end()

    def _proceed(self) -> None:
        """Answer the requests that are here, if they are not too many."""
        assert self._transport is not None
        answers = 0
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                if answers == PIPELINED_MAX or self._transport.get_write_buffer_size() > UNTAKEN_BYTES_MAX:
                    return self.abort()
                answers += 1
                self._answer(self._request)
                if self._http.our_state is h11.MUST_CLOSE:
                    return self._end()
                self._expect()
                self._http.start_next_cycle()
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return None

    def _answer(self, request: h11.Request) -> None:
        method, path = request.method.decode(), request.target.decode().partition("?")[0]
        page = self._pages.get(path)
        if page is None:
            self._send(404, "text/plain", f"there are {', '.join(self._pages)}\n".encode())
        elif method not in ("GET", "HEAD"):
            self._send(405, "text/plain", b"only GET\n", [("allow", "GET, HEAD")])
        else:
            self._send(*page())

    def _send(self, status: int, kind: str, body: bytes, more: Sequence[tuple[str, str]] = ()) -> None:
        assert self._transport is not None
        headers = [("content-type", kind), ("content-length", str(len(body))), *more]
        http, write = self._http, self._transport.write
        write(http.send(h11.Response(status_code=status, headers=headers)) or b"")
        if self._request is None or self._request.method != b"HEAD":
            write(http.send(h11.Data(data=body)) or b"")
        write(http.send(h11.EndOfMessage()) or b"")

    def _expect(self) -> None:
        """The next request has to be here in time, and the client to take the answer to the last one."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_S, self.abort)

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()
