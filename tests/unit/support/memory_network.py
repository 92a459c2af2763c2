"""A loop in virtual time whose connections are in memory: what is written arrives in the next turn, and in order.

Only what actors use is there: servers on a port of their own, connections to them, and their ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.unit.support.virtual_time import VirtualLoop

HOST = "127.0.0.1"


class MemoryTransport(asyncio.Transport):
    """One end of a connection. What was written before an end is closed, or aborted, arrives before the end does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._closing = False
        self.other: MemoryTransport | None = None

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing and self.other is not None:
            self._loop.call_soon(self.other._receive, bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)
            if self.other is not None:
                self._loop.call_soon(self.other.abort)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def _receive(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)


class MemoryServer:
    """What `create_server` gives: as much of `asyncio.Server` as is used."""

    def __init__(self, port: int, servers: dict[int, Callable[[], asyncio.Protocol]]) -> None:
        self.sockets = [self]
        self._port = port
        self._servers = servers

    def close(self) -> None:
        self._servers.pop(self._port, None)

    def getsockname(self) -> tuple[str, int]:
        return HOST, self._port


class MemoryNetworkLoop(VirtualLoop):
    """A loop in virtual time, with a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._servers: dict[int, Callable[[], asyncio.Protocol]] = {}
        self._ports = 1024

    async def create_server(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> MemoryServer:
        assert (host, port) == (HOST, 0)
        self._ports += 1
        self._servers[self._ports] = factory
        return MemoryServer(self._ports, self._servers)

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        await asyncio.sleep(0)
        accept = self._servers.get(port)
        if accept is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        ours, theirs = (MemoryTransport(self, protocol) for protocol in (factory(), accept()))
        ours.other, theirs.other = theirs, ours
        theirs._protocol.connection_made(theirs)
        ours._protocol.connection_made(ours)
        return ours, ours._protocol
