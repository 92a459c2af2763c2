"""A loop in virtual time whose connections are in memory: what is written arrives in the next turn, and in order.

Only what actors use is there: servers on a port of their own, connections to them, and their ends.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from tests.unit.support.virtual_time import VirtualLoop

HOST = "127.0.0.1"


class MemoryTransport(asyncio.Transport):
    """One end of a connection. What was written before an end is closed, or aborted, arrives before the end does.

    While an end is `frozen` nothing comes in or goes out; it does when that is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._closing = False
        self._frozen = False
        self._held: list[Callable[[], None]] = []
        self.other: MemoryTransport | None = None

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        other, written = self.other, bytes(data)
        if not self._closing and other is not None:
            self._pass(lambda: other._receive(written))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._protocol.connection_lost, None)
        if self.other is not None:
            self._pass(self.other._lose)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def freeze(self) -> None:
        """Hold all that comes and goes from now on."""
        self._frozen = True

    def thaw(self) -> None:
        """Let it all through, in order."""
        self._frozen = False
        held, self._held = self._held, []
        for step in held:
            self._loop.call_soon(step)

    def _pass(self, step: Callable[[], None]) -> None:
        """Do it in the next turn of the loop, or when this end is thawed."""
        if self._frozen:
            self._held.append(step)
        else:
            self._loop.call_soon(step)

    def _receive(self, data: bytes) -> None:
        if self._frozen:
            self._held.append(lambda: self._receive(data))
        elif not self._closing:
            self._protocol.data_received(data)

    def _lose(self) -> None:
        if self._frozen:
            self._held.append(self._lose)
        else:
            self.abort()


class MemoryServer:
    """What `create_server` gives: as much of `asyncio.Server` as is used. `frozen` as its process may be."""

    def __init__(self, port: int, accept: Callable[[], asyncio.Protocol], close: Callable[[], None]) -> None:
        self.sockets = [self]
        self.accept = accept
        self.close = close
        self._port = port
        self._frozen = False
        self._transports: list[MemoryTransport] = []

    def getsockname(self) -> tuple[str, int]:
        return HOST, self._port

    def accepted(self, transport: MemoryTransport) -> None:
        """A connection is made, as the kernel does for a process that stands still."""
        self._transports = [one for one in self._transports if not one.is_closing()]
        self._transports.append(transport)
        if self._frozen:
            transport.freeze()

    def freeze(self) -> None:
        """Its process stands still, as with SIGSTOP: nothing comes from it or gets to it."""
        self._frozen = True
        for transport in self._transports:
            transport.freeze()

    def thaw(self) -> None:
        """Its process goes on, and finds all that came meanwhile."""
        self._frozen = False
        for transport in self._transports:
            transport.thaw()


class MemoryNetworkLoop(VirtualLoop):
    """A loop in virtual time, with a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._servers: dict[int, MemoryServer] = {}
        self._ports = 1024

    async def create_server(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> MemoryServer:
        assert (host, port) == (HOST, 0)
        self._ports = mine = self._ports + 1
        server = MemoryServer(mine, factory, functools.partial(self._close, mine))
        self._servers[mine] = server
        return server

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        await asyncio.sleep(0)
        server = self._servers.get(port)
        if server is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        ours, theirs = (MemoryTransport(self, protocol) for protocol in (factory(), server.accept()))
        ours.other, theirs.other = theirs, ours
        server.accepted(theirs)
        theirs._protocol.connection_made(theirs)
        ours._protocol.connection_made(ours)
        return ours, ours._protocol

    def _close(self, port: int) -> None:
        self._servers.pop(port, None)
