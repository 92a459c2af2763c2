"""Gateways on real sockets that can be told what to do to each connection, and that can resume.

Plain asyncio in a thread of its own, so that blocking clients can be tested too. Every request is answered by the next
of the `plan`'s acts; beyond the plan all goes well.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tests.unit.client.fleet import Sent, continued

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Act:
    """What happens to one request. `after`: events sent before it happens (for a reset: and half of another).

    "together": all goes well, and all events come in one piece.
    """

    kind: Literal["serve", "together", "reset", "polite_end", "stall", "status", "drop"] = "serve"
    after: int = 0
    status: int = 503
    headers: str = ""
    error: dict[str, Any] | None = None


@dataclass
class Request:
    """A request as it came; `port` is the client's."""

    gateway: int
    path: str
    headers: dict[str, str]
    body: Any
    port: int


@dataclass
class Servers:
    """The gateways, what they are to do, and what they saw."""

    sent: list[Sent]
    whole: dict[str, Any] = field(default_factory=dict)
    plan: list[Act] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    closed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """One more for each connection that is over."""
    stalled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """One more for each request that is left hanging."""

    async def connection(self, gateway: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it is over."""
        try:
            while await self._exchange(gateway, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.closed.release()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, gateway: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Whether the connection may be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        port = writer.get_extra_info("peername")[1]
        self.requests.append(Request(gateway, head[0].split()[1], headers, body, port))
        act = self.plan.pop(0) if self.plan else Act()
        if act.kind == "drop":
            writer.transport.abort()
            return False
        if act.kind == "status":
            writer.write(_answer(act.status, {"error": act.error or {"message": "told to"}}, act.headers))
            return True
        if not body.get("stream"):
            return await self._whole(act, reader, writer)
        return await self._stream(act, headers.get("last-event-id"), reader, writer)

    async def _whole(self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        answer = _answer(200, self.whole)
        if act.kind == "serve":
            writer.write(answer)
            return True
        writer.write(answer[: -len(answer) // 8])
        return await self._break(act, reader, writer)

    async def _stream(
        self, act: Act, last_id: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        sent = [event.bytes() for event in continued(self.sent, last_id)]
        writer.write(STREAM_HEAD)
        if act.kind == "together":
            writer.write(_chunk(b"".join(sent)) + b"0\r\n\r\n")
            return True
        for event in sent if act.kind == "serve" else sent[: act.after]:
            writer.write(_chunk(event))
            await writer.drain()
        if act.kind == "serve":
            writer.write(b"0\r\n\r\n")
            return True
        if act.kind == "reset":
            writer.write(_chunk(sent[act.after][:20]))
        return await self._break(act, reader, writer)

    async def _break(self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if act.kind == "polite_end":
            writer.write(b"0\r\n\r\n")
            return True
        if act.kind == "stall":
            self.stalled.release()
            await reader.read(1)
        await writer.drain()
        return False


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(status: int, body: dict[str, Any], headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    lines = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
    return lines.encode() + data


@contextmanager
def serving(servers: Servers, gateways: int = 2) -> Iterator[Servers]:
    """Runs the gateways within the context."""
    began, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        tasks: set[asyncio.Task[None]] = set()

        def connected(index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(servers.connection(index, reader, writer)))

        found = []
        for index in range(gateways):
            server = await asyncio.start_server(partial(connected, index), "127.0.0.1", 0)
            found.append(server)
            servers.urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        began.set()
        await over.wait()
        for server in found:
            server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert began.wait(60)
        yield servers
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
        loop.close()
