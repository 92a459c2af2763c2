"""How one simulated gateway asks another: as the real one does with httpx, a connection for each call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from holdfast.gateway.peers import Answer, Ask
from holdfast.simulations.cluster.door import HEAD_BYTES, AnswerHead, BodyPart, RequestHead
from holdfast.simulations.work.calls import CLOSE, Connection
from holdfast.simulations.world.process import SimProcess

PORT: Final = 80


def asks_from(process: SimProcess) -> Ask:
    """As `Ask`, for a process of the world."""
    return partial(ask, process)


async def ask(
    process: SimProcess, method: str, url: str, headers: Mapping[str, str], timeout_s: float, body: bytes = b""
) -> Answer:
    """One call. Raises `OSError`, `TimeoutError`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    sent = tuple((name.encode(), value.encode()) for name, value in headers.items())
    async with asyncio.timeout(timeout_s):
        end = await process.world.network.connect(process, parts.hostname, parts.port or PORT)
        connection = Connection(end, url)
        try:
            end.send(RequestHead(method, path, sent, body), HEAD_BYTES + len(body))
            head = await connection.next(timeout_s)
            assert isinstance(head, AnswerHead)
            return Answer(head.status, await _body(connection, timeout_s))
        finally:
            connection.leave(CLOSE)


async def _body(connection: Connection, timeout_s: float) -> bytes:
    body = b""
    while True:
        part = await connection.next(timeout_s)
        assert isinstance(part, BodyPart)
        body += part.data
        if not part.more:
            return body
