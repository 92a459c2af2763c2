"""A simulated connection to simulated NATS servers: what stands for `store.nats_connection` under the production log.

It gives the session what nats-py would: answers, deliveries, the loss of a connection once its pings go unanswered.
What it sends are Python objects; the log's own JSON within them is real.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from holdfast.simulations.world.network import End
from holdfast.simulations.world.process import SimProcess
from holdfast.store.nats_link import NO_RESPONDERS, STATUS_HEADER, ConnectionLost, NoResponders
from holdfast.store.nats_session import Dial
from holdfast.store.settings import JetStreamSettings

INFO, PING, PONG, PUB, MSG = range(5)
"""Kinds of messages. From servers come `(INFO, version, server name, URLs)`, `(PONG, number)` and
`(MSG, inbox, subject, reply, data, headers)`, from clients `(PING, number)` and
`(PUB, subject, reply, data, headers)`."""

OVERHEAD_BYTES = 100
"""What a message takes on the wire besides its data."""

NAME_BITS = 64


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """As nats-py's `Msg`."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


def dialler(process: SimProcess, chance: random.Random) -> Dial:
    """How this process connects to servers. `chance` names its inboxes."""

    async def dial(settings: JetStreamSettings, url: str) -> SimConnection:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        connection: SimConnection | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                end = await process.world.network.connect(process, parts.hostname, parts.port)
                connection = SimConnection(end, url, settings, f"_INBOX.{chance.getrandbits(NAME_BITS):016x}")
                await connection.greeted
        except BaseException as error:
            if connection is not None:
                await connection.close()
            if isinstance(error, ConnectionLost):
                raise ConnectionResetError(f"{url} closed the connection") from error
            raise
        return connection

    return dial


class SimConnection:
    """As `nats_connection.Connection`."""

    def __init__(self, end: End, url: str, settings: JetStreamSettings, inbox: str) -> None:
        loop = asyncio.get_running_loop()
        self.url = url
        self.lost = asyncio.Event()
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.server_version = self.server_name = "unknown"
        self.discovered_urls: list[str] = []
        self._end = end
        self._loop = loop
        self._inbox = inbox
        self._inboxes = 0
        self._count = 0
        self._replies: dict[str, asyncio.Future[Arrived]] = {}
        self._deliver: dict[str, Callable[[Any], Awaitable[None]]] = {}
        self._pings = 0
        self._pongs = 0
        self._probes: dict[int, asyncio.Future[None]] = {}
        self._interval_s = settings.ping_interval_s
        self._pings_outstanding = settings.pings_outstanding
        self._timer = loop.call_later(self._interval_s, self._ping)
        end.attach(self._on_message, self._on_lost)

    @property
    def readers(self) -> list[Any]:
        """Those to whom messages of subscriptions go."""
        return [deliver.__self__ for deliver in self._deliver.values() if isinstance(deliver, MethodType)]

    @property
    def requests(self) -> int:
        """How many requests wait for an answer."""
        return len(self._replies)

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Arrived:
        self._count += 1
        inbox = f"{self._inbox}.{self._count}"
        reply: asyncio.Future[Arrived] = self._loop.create_future()
        self._replies[inbox] = reply
        timer = self._loop.call_later(timeout_s, _expire, reply)
        try:
            self._publish(subject, inbox, data, headers)
            answer = await reply
        finally:
            timer.cancel()
            del self._replies[inbox]
        if answer.headers and answer.headers.get(STATUS_HEADER) == NO_RESPONDERS:
            raise NoResponders(subject)
        return answer

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        self._publish(subject, reply, data, headers)

    async def subscribe(self, inbox: str, deliver: Callable[[Any], Awaitable[None]]) -> str:
        if self.lost.is_set():
            raise ConnectionLost(self.url)
        self._deliver[inbox] = deliver
        return inbox

    async def unsubscribe(self, subscription: str) -> None:
        self._deliver.pop(subscription, None)

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"{self._inbox}{self._inboxes:04x}"

    async def probe(self, timeout_s: float) -> None:
        """Give the connection up unless its server answers a ping in time."""
        if self.lost.is_set():
            return
        self._pings += 1
        pong: asyncio.Future[None] = self._loop.create_future()
        self._probes[self._pings] = pong
        number = self._pings
        self._end.send((PING, number))
        timer = self._loop.call_later(timeout_s, _expire, pong)
        try:
            await pong
        except (TimeoutError, ConnectionLost):
            await self.close()
        finally:
            timer.cancel()
            del self._probes[number]

    async def close(self) -> None:
        self._end.abort()
        self._on_lost(None)

    def _publish(self, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        if self.lost.is_set():
            raise ConnectionLost(self.url)
        self._end.send((PUB, subject, reply, data, headers), OVERHEAD_BYTES + len(data))

    def _on_message(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == MSG:
            inbox = message[1]
            reply = self._replies.get(inbox)
            if reply is not None:
                if not reply.done():
                    reply.set_result(Arrived(*message[2:]))
            elif (deliver := self._deliver.get(inbox)) is not None:
                _run_through(deliver(Arrived(*message[2:])))
        elif kind == PONG:
            self._pongs = message[1]
            pong = self._probes.get(message[1])
            if pong is not None and not pong.done():
                pong.set_result(None)
        elif kind == INFO and not self.greeted.done():
            self.server_version, self.server_name, self.discovered_urls = message[1], message[2], list(message[3])
            self.greeted.set_result(None)

    def _on_lost(self, _error: Exception | None) -> None:
        self.lost.set()
        self._timer.cancel()
        waiters: list[asyncio.Future[Any]] = [*self._replies.values(), *self._probes.values(), self.greeted]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(self.url))
        # Nobody may be waiting for it any more.
        if not self.greeted.cancelled():
            self.greeted.exception()

    def _ping(self) -> None:
        if self._pings - self._pongs >= self._pings_outstanding:
            self._end.abort()
            self._on_lost(None)
            return
        self._pings += 1
        self._end.send((PING, self._pings))
        self._timer = self._loop.call_later(self._interval_s, self._ping)


def _expire(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _run_through(step: Awaitable[None]) -> None:
    """Let a subscription take a message in. It must not wait for anything: nats-py would hold up later ones then."""
    try:
        step.__await__().send(None)
    except StopIteration:
        return
    raise RuntimeError("a subscription waits within its delivery")
