"""The way of the production client of etcd over simulated connections, as `store.etcd_http` is over real ones.

As there, a connection carries one request at a time, one idle one is kept for each endpoint, and a request that was
given up takes its connection with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from holdfast.simulations.etcd.member import Message
from holdfast.simulations.world.network import End
from holdfast.simulations.world.process import SimProcess
from holdfast.store.etcd_transport import NoAnswer, NotSent, Reply, Silent

REQUEST_BYTES = 384
"""About what a request takes on the wire, with HTTP's lines."""


class EtcdTransport:
    """Implements `Transport` for one process. An endpoint is `http://host:port`."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._addresses: dict[str, tuple[str, int]] = {}
        self._idle: dict[str, _Connection] = {}
        self._open: dict[_Connection, None] = {}
        self._closed = False

    async def get(self, endpoint: str, path: str, timeout_s: float) -> Reply:
        return await self._exchange(endpoint, (path, None, {}), timeout_s)

    async def post(
        self, endpoint: str, path: str, payload: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> Reply:
        return await self._exchange(endpoint, (path, payload, headers), timeout_s)

    async def lines(
        self,
        endpoint: str,
        path: str,
        payload: dict[str, Any],
        headers: dict[str, str],
        *,
        timeout_s: float,
        silence_s: float,
    ) -> AsyncGenerator[Reply, None]:
        connection = await self._connect(endpoint, timeout_s)
        try:
            connection.end.send((path, payload, headers), REQUEST_BYTES)
            while True:
                yield await connection.next_line(silence_s)
        finally:
            self._drop(connection)

    async def close(self) -> None:
        self._closed = True
        for connection in list(self._open):
            self._drop(connection)

    async def _exchange(self, endpoint: str, message: Message, timeout_s: float) -> Reply:
        connection = self._idle.pop(endpoint, None)
        if connection is None or not connection.end.open:
            connection = await self._connect(endpoint, timeout_s)
        answered = False
        try:
            connection.end.send(message, REQUEST_BYTES)
            reply = await connection.next_answer(timeout_s)
            answered = True
            return reply
        finally:
            if answered and endpoint not in self._idle and not self._closed:
                self._idle[endpoint] = connection
            else:
                self._drop(connection)

    async def _connect(self, endpoint: str, timeout_s: float) -> _Connection:
        address = self._addresses.get(endpoint)
        if address is None:
            host, _, port = endpoint.removeprefix("http://").rpartition(":")
            address = self._addresses[endpoint] = host, int(port)
        try:
            async with asyncio.timeout(timeout_s):
                end = await self._process.world.network.connect(self._process, *address)
        except TimeoutError as error:
            raise NotSent("ConnectTimeout") from error
        except OSError as error:
            raise NotSent("All connection attempts failed") from error
        connection = _Connection(end)
        self._open[connection] = None
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        connection.end.close()


class _Connection:
    """One connection, and what has come on it that nobody has taken yet."""

    def __init__(self, end: End) -> None:
        self.end = end
        self._come: deque[Reply] = deque()
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        end.attach(self._arrive, self._lose)

    async def next_answer(self, timeout_s: float) -> Reply:
        """The answer to what was sent. Raises `NoAnswer`."""
        return await self._next(timeout_s, NoAnswer)

    async def next_line(self, silence_s: float) -> Reply:
        """The answer's next line. Raises `NoAnswer`, `Silent`."""
        return await self._next(silence_s, Silent)

    async def _next(self, timeout_s: float, late: type[NoAnswer]) -> Reply:
        if not self._come and not self._lost:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        if self._come:
            return self._come.popleft()
        if self._lost:
            raise NoAnswer("Server disconnected without sending a response.")
        raise late("ReadTimeout")

    def _arrive(self, reply: Reply) -> None:
        self._come.append(reply)
        self._wake()

    def _lose(self, _error: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
