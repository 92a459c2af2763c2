"""Clients for the tests: straight into the app, and over a bare socket. Nothing between, so nothing is hidden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from holdfast.gateway.app import App

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    """A chat request's body with these fields on top of the least there must be."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "hold fast"}], "seed": 7, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    """A completion request's body, likewise."""
    return {"model": "tiny", "prompt": "hold fast", "seed": 7, **fields}


@dataclass
class Answer:
    """An answer as the app gave it; `sends` are its pieces."""

    status: int
    headers: dict[str, str]
    sends: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.sends)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Event]:
        return parse_events(self.body)

    @property
    def chunks(self) -> list[Any]:
        """The JSON of all events but the `[DONE]`."""
        return [json.loads(event.data) for event in self.events if event.data != "[DONE]"]


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    id: str
    data: str


def parse_events(body: bytes) -> list[Event]:
    """Events by the rules of the HTML standard, as far as they matter here: fields, one per line."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append(Event(fields["id"], fields["data"]))
    return found


async def ask(
    app: App,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> Answer:
    """One request, straight into the app. The client stays until the answer is complete."""
    sent = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    return await converse(app, path, sent, headers, method)


async def converse(
    app: App,
    path: str,
    parts: list[bytes],
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
    leaves: asyncio.Event | None = None,
) -> Answer:
    """As `ask`, with a body in parts. The client goes away when it `leaves`, if it does."""
    answer = Answer(0, {}, [])
    left = list(parts)
    over = leaves or asyncio.Event()

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            answer.sends.append(message.get("body", b""))

    given = {"content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path.partition("?")[0]),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": path.partition("?")[2].encode(),
        "server": ("test", 80),
        "client": ("test", 1),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    await app(scope, receive, send)
    over.set()
    return answer


@dataclass
class Connection:
    """A bare connection to a server on loopback."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Send a whole request."""
        data = json.dumps(body).encode()
        self.head(path, f"content-length: {len(data)}")
        self.writer.write(data)
        await self.writer.drain()

    def head(self, path: str, *lines: str) -> None:
        """Send a request's head."""
        fields = [f"POST {path} HTTP/1.1", "host: test", "content-type: application/json", *lines]
        self.writer.write(("\r\n".join(fields) + "\r\n\r\n").encode())


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """A connection, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
