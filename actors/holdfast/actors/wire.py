"""One connection of the wire: an asyncio protocol that cuts frames, and says when its buffer is too full."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from holdfast.core.errors import PeerViolation
from holdfast.core.frames import FIRST_FRAME_BYTES_MAX, FRAME_BYTES_MAX, Frame, FrameBuffer, encode

WRITE_BUFFER_HIGH_BYTES = 256 * 1024
"""Above this much unsent data a sender that can wait should."""

WRITE_BUFFER_MAX_BYTES = 64 * 1024 * 1024
"""Above this much unsent data the other end is taken for stuck, and the connection is cut."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""An idle connection is probed after 5 s, every 2 s, and given up after 3 probes: a half-open one ends in 11 s."""

logger = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Feeds received frame bodies to `on_body`, tells `on_lost` once when the connection is over.

    An exception out of `on_body` is the peer's violation (or a bug here): it cuts the connection.
    """

    def __init__(self, on_body: Callable[[Connection, bytes], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_body = on_body
        self._on_lost = on_lost
        self._buffer = FrameBuffer(FIRST_FRAME_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._drained = asyncio.Event()
        self._drained.set()
        self.last_received_s = 0.0
        self.loop = asyncio.get_running_loop()

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def congested(self) -> bool:
        """Whether more than `WRITE_BUFFER_HIGH_BYTES` wait to be sent."""
        return not self._drained.is_set()

    def introduced(self) -> None:
        """The other end said who it is: take frames of any legal length from it."""
        self._buffer.bytes_max = FRAME_BYTES_MAX

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "set_write_buffer_limits")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclass
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES)
        _keep_alive(self._transport.get_extra_info("socket"))
        self.last_received_s = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self.last_received_s = self.loop.time()
        try:
            for body in self._buffer.feed(data):
                self._on_body(self, body)
        except PeerViolation as error:
            logger.warning("cutting a connection: %s", error)
            self.abort()
        except Exception:
            logger.exception("cutting a connection because of a bug here")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._drained.set()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def send(self, frame: Frame) -> None:
        """Send a frame, or buffer it. Does nothing once the connection is over; cuts it when the buffer is full."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._unsent.append(encode(frame))
        if len(self._unsent) == 1:
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write all frames of this turn of the loop in one piece: a system call costs more than a frame."""
        unsent, self._unsent = self._unsent, []
        transport = self._transport
        if not unsent or transport is None or transport.is_closing():
            return
        transport.write(b"".join(unsent))
        if not self._drained.is_set() and transport.get_write_buffer_size() > WRITE_BUFFER_MAX_BYTES:
            logger.warning("cutting a connection whose other end does not read")
            transport.abort()

    async def drained(self) -> None:
        """Wait until the send buffer is no longer congested."""
        await self._drained.wait()

    def close(self) -> None:
        """Close after what is buffered has been sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
