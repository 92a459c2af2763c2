"""A network that falls silent without a reset, without root: relays that stop forwarding and close nothing.

All that a process receives and all that it dials goes through relays here. While a direction is silent, what is sent
in that direction is neither forwarded nor refused: the kernel takes what fits into its buffers and acknowledges it,
new connections wait in the kernel's backlog, and nobody learns that the other end has closed. Afterwards everything
goes on where it was, late bytes of connections that were given up long ago included. That is more than a network
whose packets were dropped would bring, and nothing less.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from enum import Enum
from typing import Any, Self

CHUNK_BYTES = 64 * 1024
BACKLOG = 1024

Address = tuple[str, int]


class Direction(Enum):
    """Seen from the process behind the relays: what comes in to it, and what goes out from it."""

    IN = "in"
    OUT = "out"

    @property
    def back(self) -> Direction:
        """The other one."""
        return Direction.OUT if self is Direction.IN else Direction.IN


BOTH = frozenset(Direction)


class SilentNetwork:
    """The network of one process: its relays, which fall silent together. An async context manager."""

    def __init__(self) -> None:
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: set[tuple[Address, Address]] = set()
        self._failed: BaseException | None = None
        self.heal()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close everything. Raises what broke a relay, if anything did."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failed is not None:
            raise self._failed

    def silence(self, directions: frozenset[Direction] = BOTH) -> None:
        """Forward nothing more in these directions."""
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        """Forward everything again."""
        for gate in self._open.values():
            gate.set()

    def relay(self, listen: Address, to: Address, calls: Direction) -> Address:
        """Forward what is dialled at `listen`; calls come `IN` to the process or go `OUT` from it. Where it listens.

        Port 0 picks a free one. A relay that is there already stays. Raises `OSError`.
        """
        if (listen, to) in self._relays:
            return listen
        listener = socket.create_server(listen, backlog=BACKLOG)
        listener.setblocking(False)
        self._relays.add((listen, to))
        self._keep(self._accept(listener, to, calls))
        found = listener.getsockname()
        return str(found[0]), int(found[1])

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = self._failed or error

    async def _accept(self, listener: socket.socket, to: Address, calls: Direction) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                await self._open[calls].wait()
                caller, _ = await loop.sock_accept(listener)
                self._keep(self._connect(caller, to, calls))

    async def _connect(self, caller: socket.socket, to: Address, calls: Direction) -> None:
        loop = asyncio.get_running_loop()
        with caller, socket.socket() as called:
            called.setblocking(False)
            for end in (caller, called):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._open[calls].wait()
            try:
                await loop.sock_connect(called, to)
            except OSError:
                await self._open[calls.back].wait()
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(caller, called, calls))
                group.create_task(self._pump(called, caller, calls.back))

    async def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        """Forward one direction until the source is done, or the sink takes nothing more."""
        loop, gate, back = asyncio.get_running_loop(), self._open[direction], self._open[direction.back]
        while True:
            await gate.wait()
            try:
                data = await loop.sock_recv(source, CHUNK_BYTES)
            except OSError:
                data = b""
            await gate.wait()
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            try:
                await loop.sock_sendall(sink, data)
            except OSError:
                # That the sink is gone is news which travels the other way.
                await back.wait()
                with contextlib.suppress(OSError):
                    source.shutdown(socket.SHUT_RDWR)
                return
