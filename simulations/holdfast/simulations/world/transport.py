"""Connections of the simulated network for asyncio's protocols: bytes, with a buffer that may be too full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from holdfast.simulations.world.network import WINDOW_BYTES, End, Listener
from holdfast.simulations.world.process import SimProcess


async def connect(
    process: SimProcess, factory: Callable[[], asyncio.Protocol], host: str, port: int
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    """As `loop.create_connection`."""
    end = await process.world.network.connect(process, host, port)
    transport = SimTransport(end, factory())
    transport.begin()
    return transport, transport.get_protocol()


def serve(process: SimProcess, factory: Callable[[], asyncio.Protocol], port: int) -> SimServer:
    """As `loop.create_server`."""
    return SimServer(process.world.network.listen(process, port, lambda end: SimTransport(end, factory()).begin()))


class SimServer:
    """What `serve` gives: as much of `asyncio.Server` as is used."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        """Host and port."""
        return self._listener.process.host.name, self._listener.port

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


class SimTransport(asyncio.Transport):
    """A connection for an asyncio protocol: bytes, with a buffer that may be too full."""

    def __init__(self, end: End, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._end = end
        self._protocol = protocol
        self._high_bytes = 64 * 1024
        self._closing = False
        self._full = False

    def begin(self) -> None:
        """Tell the protocol, and let bytes come."""
        self._protocol.connection_made(self)
        self._end.attach(self._protocol.data_received, self._on_lost)

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        end = self._end
        if end.process.on_write is not None:
            end.process.on_write(bytes(data))
        end.send(bytes(data), len(data))
        if end.unread_bytes > WINDOW_BYTES and not self._full and end.waiting_bytes > self._high_bytes:
            self._full = True
            self._protocol.pause_writing()
            end.when_read(self._read)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._finish(self._end.close)

    def abort(self) -> None:
        self._finish(self._end.abort)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is not None:
            self._high_bytes = high

    def get_write_buffer_size(self) -> int:
        return self._end.waiting_bytes

    def pause_reading(self) -> None:
        self._end.pause()

    def resume_reading(self) -> None:
        self._end.resume()

    def _finish(self, end: Callable[[], None]) -> None:
        if not self._closing:
            self._closing = True
            was_open = self._end.open
            end()
            if was_open:
                self._end.process.loop.call_soon(self._protocol.connection_lost, None)

    def _on_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._protocol.connection_lost(error)

    def _read(self) -> None:
        self._full = False
        if not self._closing:
            self._protocol.resume_writing()
