"""Granian, embedded in the gateway's own event loop.

Its embedding is marked experimental, so all that touches it is here. It answers a taken port only with a
message in its log; therefore the port is tried first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from holdfast.core.errors import Misuse

STOP_TIMEOUT_S = 3.0
"""How long open connections may hold up the server's end."""

logger = logging.getLogger(__name__)


class HttpServer:
    """An ASGI app on one address."""

    def __init__(self, app: Any, host: str, port: int, backlog: int) -> None:
        self._host = host
        self._port = port
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
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise Misuse(_explain(error, self._host, self._port)) from error

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve within the context."""
        task = asyncio.create_task(self._server.serve())
        try:
            yield
        finally:
            self._server.stop()  # type: ignore[no-untyped-call]
            try:
                await asyncio.wait_for(task, STOP_TIMEOUT_S)
            except TimeoutError:
                logger.warning("cut connections that were open %g s after the end", STOP_TIMEOUT_S)


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port"
    return f"can't listen on {host}:{port}: {error.strerror}"
