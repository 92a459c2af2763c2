"""Granian, embedded in the gateway's own event loop.

Its embedding is marked experimental, so all that touches it is here. It answers a taken port only with a
message in its log; therefore the port is tried first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from holdfast.core.errors import WorldFailure
from holdfast.gateway.addresses import check_address
from holdfast.gateway.cutting import bound_buffers, reset_connections

START_TIMEOUT_S = 10.0
START_POLL_S = 0.02
STOP_TIMEOUT_S = 2.0
"""How long open requests may hold up the server's end."""

CUT_TIMEOUT_S = 1.0
"""How long the server may take to notice that their connections have been cut."""

logger = logging.getLogger(__name__)


class HttpServer:
    """An ASGI app on one address."""

    def __init__(self, app: Any, host: str, port: int, backlog: int, send_buffer_bytes: int) -> None:
        self._host = host
        self._port = port
        self._send_buffer_bytes = send_buffer_bytes
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=backlog,
            http1_settings=HTTP1Settings(keep_alive=True),
            log_enabled=False,
        )

    def bind(self) -> None:
        """Check that the address can be had. Raises `Misuse` when it can't."""
        check_address(self._host, self._port)

    async def run(self) -> None:
        """Serve until cancelled, then let the server end. Raises `WorldFailure` when it ends by itself."""
        task = asyncio.create_task(self._server.serve())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._end(task)
            raise
        raise WorldFailure("the HTTP server ended by itself; its log says why")

    async def _end(self, task: asyncio.Task[None]) -> None:
        """Take no new connections, let open requests end, and cut those that don't.

        Granian's own task must not be cancelled: it would still be told of its end, and fail with a traceback.
        """
        self._server.stop()  # type: ignore[no-untyped-call]
        done, _ = await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        if not done:
            cut = reset_connections(self._port)
            logger.warning("cut %d connections that were open %g s after the end", cut, STOP_TIMEOUT_S)
            await asyncio.wait({task}, timeout=CUT_TIMEOUT_S)

    async def listening(self) -> None:
        """Wait until the port takes connections, and bound their buffers. Raises `TimeoutError` if it never does."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    _reader, writer = await asyncio.open_connection(self._host, self._port)
                except OSError:
                    await asyncio.sleep(START_POLL_S)
                else:
                    writer.close()
                    bound_buffers(self._port, self._send_buffer_bytes)
                    return
