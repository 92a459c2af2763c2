"""The app behind a real Granian on a free loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from holdfast.gateway.http_server import HttpServer
from tests.unit.support.ports import free_port


@asynccontextmanager
async def serving(app: Any, port: int = 0) -> AsyncIterator[int]:
    """Serves `app` within the context, which gets the port."""
    port = port or free_port()
    server = HttpServer(app, "127.0.0.1", port, 1024, 262_144)
    task = asyncio.create_task(server.run())
    try:
        await server.listening()
        yield port
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
