"""A TCP proxy that fails on command: between a client and a real server, it plays the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


class Pipe:
    """One proxied connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.writers = (client, server)
        self.requests_flow = asyncio.Event()
        self.answers_flow = asyncio.Event()
        self.requests_flow.set()
        self.answers_flow.set()

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class TcpProxy:
    """Forwards from `url` to a server, until told otherwise."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        self._pipes: set[Pipe] = set()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusing = False
        self.accepted = 0
        self.withheld = 0
        """On so many connections that carry nothing a request has been sent."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"{self._scheme}://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Reset every open connection; new ones are forwarded."""
        for pipe in self._pipes:
            pipe.abort()

    def hold_answers(self) -> None:
        """On the open connections, what the server says goes nowhere from now on."""
        for pipe in self._pipes:
            pipe.answers_flow.clear()

    def freeze(self) -> None:
        """The open connections carry nothing any more, in either direction, and don't end: they are half-open."""
        for pipe in self._pipes:
            pipe.requests_flow.clear()
            pipe.answers_flow.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            if not self.refusing:
                await self._forward(reader, writer)
        except OSError:
            pass  # the server behind is away: the client is cut off, which is what it would see without a proxy
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        pipe = Pipe(writer, server_writer)
        self._pipes.add(pipe)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, server_writer, pipe.requests_flow, pipe, self._withhold))
                    group.create_task(_pump(server_reader, writer, pipe.answers_flow, pipe))
        finally:
            pipe.abort()
            self._pipes.discard(pipe)

    def _withhold(self) -> None:
        self.withheld += 1


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    flow: asyncio.Event,
    pipe: Pipe,
    on_withheld: Callable[[], None] = lambda: None,
) -> None:
    try:
        while chunk := await source.read(CHUNK_BYTES):
            if not flow.is_set():
                on_withheld()
            await flow.wait()
            sink.write(chunk)
            await sink.drain()
    except OSError:
        pass  # one end is gone; `abort` tells the other
    finally:
        pipe.abort()
