"""Single requests over plain connections, with all that a bench of load must know of each."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import deque
from typing import Final

import msgspec

TOKEN_MARK: Final = b'"content":" '
DONE: Final = b"data: [DONE]\n\n"
EVENTS_BESIDE_TOKENS: Final = 3
"""The role, the finish reason and `[DONE]`."""

CONNECT_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 60.0
HEAD_END: Final = b"\r\n\r\n"


class Shot(msgspec.Struct, frozen=True):
    """One request: how it ended, and after how long its first token and its end came (seconds since it was asked).

    `status` is 0 where no answer came. `wrong` says what is not as it must be, if anything.
    """

    priority: str
    asked_s: float
    status: int
    first_s: float
    whole_s: float
    reason: str = ""
    retry_after_s: float = 0.0
    wrong: str = ""


class _Connection(asyncio.Protocol):
    """A connection that is used for one request after the other."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.first_s = 0.0
        self.ended: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclass

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.first_s and TOKEN_MARK in data:
            self.first_s = asyncio.get_running_loop().time()
        if self.ended is not None and not self.ended.done() and self._is_whole():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended is not None and not self.ended.done():
            self.ended.set_exception(exc or ConnectionResetError("the gateway closed the connection"))
        self.transport = None

    def _is_whole(self) -> bool:
        """By the length where there is one, else by the last chunk."""
        at = self.received.find(HEAD_END)
        if at < 0:
            return False
        length = headers_of(bytes(self.received[:at])).get("content-length")
        if length is not None:
            return len(self.received) >= at + len(HEAD_END) + int(length)
        return self.received.endswith(b"\r\n0\r\n\r\n")


def headers_of(head: bytes) -> dict[str, str]:
    """The headers of an answer's head."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


class Gun:
    """Sends requests to a gateway, each on a connection that is idle, or on a new one."""

    def __init__(self, port: int, model: str, tokens: int, seed: int = 1) -> None:
        """Answers have `tokens` tokens on average, half as many at least: so streams don't end all together."""
        self._port = port
        self._model = model
        self._tokens = tokens
        self._rng = random.Random(seed)
        self._idle: deque[_Connection] = deque()
        self._sent = 0

    async def shoot(self, priority: str = "default") -> Shot:
        """One streamed chat, read to its end."""
        loop = asyncio.get_running_loop()
        asked_s, tokens = loop.time(), self._rng.randint(self._tokens // 2, self._tokens * 3 // 2)
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                connection = await self._connection()
                connection.received.clear()
                connection.first_s = 0.0
                connection.ended = loop.create_future()
                assert connection.transport is not None
                asked_s = loop.time()
                connection.transport.write(self._request(priority, tokens))
                await connection.ended
        except (OSError, TimeoutError) as error:
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            return Shot(priority, asked_s, 0, math.inf, math.inf, wrong=f"no answer: {error!r}")
        shot = _judged(connection, priority, tokens, asked_s, loop.time())
        if connection.transport is not None:
            self._idle.append(connection)
        return shot

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            loop = asyncio.get_running_loop()
            _transport, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
            return connection

    def _request(self, priority: str, tokens: int) -> bytes:
        self._sent += 1
        content = f"Tell me about the harbour, number {self._sent}."
        fields = {"model": self._model, "max_tokens": tokens, "stream": True, "seed": self._sent}
        body = json.dumps({**fields, "messages": [{"role": "user", "content": content}]}).encode()
        return (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"x-holdfast-priority: %b\r\nContent-Length: %d\r\n\r\n%b" % (priority.encode(), len(body), body)
        )


def _judged(connection: _Connection, priority: str, tokens: int, asked_s: float, now_s: float) -> Shot:
    received = bytes(connection.received)
    head, _, body = received.partition(HEAD_END)
    status = int(head[9:12])
    headers = headers_of(head)
    if status == 200:
        whole = body.count(b"\ndata: ") == tokens + EVENTS_BESIDE_TOKENS and DONE in body[-40:]
        first_s = connection.first_s - asked_s if connection.first_s else math.inf
        wrong = "" if whole else f"a broken stream: ...{body[-200:]!r}"
        return Shot(priority, asked_s, status, first_s, now_s - asked_s, wrong=wrong)
    reason = headers.get("x-holdfast-reason", "")
    after_s = float(headers.get("retry-after-ms", "0")) / 1000
    wrong = _what_is_wrong(body, headers, reason)
    return Shot(priority, asked_s, status, math.inf, now_s - asked_s, reason, after_s, wrong)


def _what_is_wrong(body: bytes, headers: dict[str, str], reason: str) -> str:
    """What a rejection lacks: OpenAI's error, a reason that the message names, and when to come again."""
    try:
        error = json.loads(body)["error"]
        named = bool(reason) and reason in error["message"]
        if named and error["code"] == "overloaded" and int(headers["retry-after"]) >= 1:
            return ""
    except (ValueError, KeyError, TypeError):
        pass
    return f"no well-formed rejection: {headers} {body[:300]!r}"
