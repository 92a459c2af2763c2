"""One client's call in a simulation: the production client's machine, over simulated connections.

Everything that decides (when to try again, where, what to resume, what is delivered) is the production client's; here
is only what the client for asyncio does with httpx.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from holdfast.gateway.alarm import Alarm
from holdfast.gateway.client.steps import Answered, Ended, Failed, Open, Received
from holdfast.simulations.cluster.door import HEAD_BYTES, AnswerHead, BodyPart, RequestHead
from holdfast.simulations.world.network import End
from holdfast.simulations.world.process import SimProcess

IDLE_MAX: Final = 8
"""Connections to one gateway that a client keeps while it has no use for them."""

CLOSE: Final = "close"
RESET: Final = "reset"
VANISH: Final = "vanish"
"""How a client leaves: it says so, its kernel does, or nobody ever hears of it again."""


class Connection:
    """A client's end of a connection to a gateway."""

    def __init__(self, end: End, url: str) -> None:
        self.url = url
        self.end = end
        self.whole = False
        self._inbox: deque[AnswerHead | BodyPart] = deque()
        self._lost: Exception | None = None
        self._alarm = Alarm()
        end.attach(self._on_message, self._on_lost)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self.end.open and not self._inbox

    async def next(self, timeout_s: float) -> AnswerHead | BodyPart:
        """What comes next. Raises `TimeoutError`, or `ConnectionError` when nothing will."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while not self._inbox:
            if self._lost is not None:
                raise self._lost
            left_s = until_s - loop.time()
            if left_s <= 0:
                raise TimeoutError
            await self._alarm.wait(left_s)
        return self._inbox.popleft()

    def leave(self, way: str) -> None:
        """End it: `CLOSE`, `RESET` or `VANISH`."""
        if way == VANISH:
            self.end.vanish()
        elif way == RESET:
            self.end.abort()
        else:
            self.end.close()

    def _on_message(self, message: AnswerHead | BodyPart) -> None:
        self._inbox.append(message)
        self._alarm.rouse()

    def _on_lost(self, error: Exception | None) -> None:
        self._lost = error if isinstance(error, ConnectionError) else ConnectionResetError(str(error or "closed"))
        self._alarm.rouse()


class Pool:
    """One client process's connections that nobody uses just now."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._idle: dict[str, list[Connection]] = {}

    async def take(self, url: str, timeout_s: float) -> Connection:
        """A connection to the gateway. Raises `OSError`, `TimeoutError`."""
        idle = self._idle.get(url, [])
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        parts = urlsplit(url)
        assert parts.hostname is not None
        async with asyncio.timeout(timeout_s):
            network = self._process.world.network
            return Connection(await network.connect(self._process, parts.hostname, parts.port or 80), url)

    def give(self, connection: Connection) -> None:
        """Its answer was read to the end."""
        idle = self._idle.setdefault(connection.url, [])
        if connection.usable and len(idle) < IDLE_MAX:
            idle.append(connection)
        else:
            connection.leave(CLOSE)


class Wire:
    """What one call has open: at most one connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.connection: Connection | None = None

    async def open(self, step: Open) -> Answered | Failed:
        """As the machine's `Open`."""
        self.close()
        parts = urlsplit(step.url)
        try:
            async with asyncio.timeout(step.timeout_s):
                try:
                    connection = await self._pool.take(f"{parts.scheme}://{parts.netloc}", step.connect_timeout_s)
                except (OSError, TimeoutError) as error:
                    return Failed("connect", error)
                self.connection = connection
                connection.whole = False
                headers = tuple((name.encode(), value.encode()) for name, value in step.headers.items())
                connection.end.send(RequestHead("POST", parts.path, headers, step.body), HEAD_BYTES + len(step.body))
                head = await connection.next(step.timeout_s)
        except TimeoutError as error:
            return Failed("timeout", error)
        except ConnectionError as error:
            return Failed("broken", error)
        assert isinstance(head, AnswerHead)
        return Answered(head.status, {name.decode(): value.decode() for name, value in head.headers})

    async def read(self, timeout_s: float) -> Received | Ended | Failed:
        """As the machine's `Read`."""
        connection = self.connection
        assert connection is not None
        if connection.whole:
            return Ended()
        try:
            part = await connection.next(timeout_s)
        except TimeoutError as error:
            return Failed("timeout", error)
        except ConnectionError as error:
            return Failed("broken", error)
        assert isinstance(part, BodyPart)
        connection.whole = not part.more
        return Received(part.data) if part.data or part.more else Ended()

    async def take_nothing(self, pause_s: float) -> None:
        """Leave alone for a while what comes: the gateway's buffers fill up."""
        end = self.connection.end if self.connection is not None else None
        if end is not None:
            end.pause()
        try:
            await asyncio.sleep(pause_s)
        finally:
            if end is not None:
                end.resume()

    def close(self, way: str = CLOSE) -> None:
        """Keep the connection for others if the answer was read to its end; else end it."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.whole:
            self._pool.give(connection)
        else:
            connection.leave(way)
