"""The session with the log's servers: it replaces a connection that was lost by the next one.

It dials for ever, with growing pauses and chance in them, on the servers in turn. A request that was under way on a
connection when it was lost fails there; what becomes of it is for the caller to find out.

A server that is cut off from the others of its cluster lets us in, answers pings, and is of no use: it knows of no
leader, and what it tells of the stream may be old. So those who ask tell the session whether a leader answered, and a
connection on which none does for some seconds is given up as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import nats.errors

from holdfast.core.errors import InvalidConfig, LogUnavailable, Misuse
from holdfast.store.backoff import Backoff
from holdfast.store.nats_connection import Connection
from holdfast.store.nats_link import Link
from holdfast.store.settings import JetStreamSettings

LEADERLESS_MAX_S = 5.0
"""A connection on which no leader answers for so long (seconds) is given up. In an election, which takes up to 9, that
is of no use but does no harm. A leader that is cut off takes itself for one for some 10 more, and all this together is
to fit into `append_timeout_s`."""

logger = logging.getLogger(__name__)

Dial = Callable[[JetStreamSettings, str], Awaitable[Link]]
"""Connects to the server at a URL. Raises `OSError`, `nats.errors.Error`, `Misuse`."""


class Session:
    """Keeps one connection up. `connected` and `down_since` (loop time, None while up) tell its health.

    `dial` makes each connection. `chance` spreads pauses, also those of what is built on the session, and the order of
    the servers.
    """

    def __init__(
        self, settings: JetStreamSettings, *, dial: Dial = Connection.dial, chance: random.Random | None = None
    ) -> None:
        self.chance = chance or random.Random()
        self._settings = settings
        self._dial = dial
        self._urls = list(settings.urls)
        self._lost_url: str | None = None
        self._connection: Link | None = None
        self._changed = asyncio.Event()
        self._last_error = "not tried yet"
        self._refused: Misuse | None = None
        self._was_connected = False
        self._leaderless_since: float | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.down_since: float | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.lost.is_set()

    @property
    def closed(self) -> bool:
        return self._supervisor is None

    async def open(self) -> None:
        """Connect for the first time. Raises `LogUnavailable`, or `Misuse` when that can't ever work."""
        loop = asyncio.get_running_loop()
        self.down_since = loop.time()
        self._supervisor = loop.create_task(self._supervise(), name="nats-session")
        try:
            await self.connection(self._settings.open_timeout_s)
        except BaseException:
            await self.close()
            raise

    async def connection(self, timeout_s: float) -> Link:
        """The live connection, waited for. Raises `LogUnavailable`; before the first one also `Misuse`."""
        if (connection := self._live()) is not None:
            return connection
        try:
            async with asyncio.timeout(timeout_s):
                while (connection := self._live()) is None:
                    if self._refused is not None and not self._was_connected:
                        raise self._refused
                    await self._changed.wait()
                return connection
        except TimeoutError as error:
            raise LogUnavailable(
                f"no connection to {', '.join(self._settings.urls)} within {timeout_s:g} s: {self._last_error}"
            ) from error

    def led(self) -> None:
        """A leader has answered."""
        self._leaderless_since = None

    async def leaderless(self, connection: Link) -> None:
        """No leader has answered on this connection: gives it up once that has lasted for `LEADERLESS_MAX_S`."""
        if connection is not self._connection:
            return
        now = asyncio.get_running_loop().time()
        if self._leaderless_since is None:
            self._leaderless_since = now
        elif now - self._leaderless_since > LEADERLESS_MAX_S:
            logger.info("%s knows of no leader for %g s: trying another server", connection.url, LEADERLESS_MAX_S)
            await connection.close()

    async def close(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.cancel()
        await asyncio.wait([supervisor])
        self._set(None)
        if not supervisor.cancelled():
            supervisor.result()

    async def _supervise(self) -> None:
        backoff = Backoff(self._settings.reconnect_wait_min_s, self._settings.reconnect_wait_max_s, self.chance)
        while True:
            connection = await self._dial_any()
            if connection is not None:
                backoff.reset()
                try:
                    self._set(connection)
                    await connection.lost.wait()
                    self._lost_url = connection.url
                finally:
                    self._set(None)
                    await connection.close()
            # Also after a loss: a server that lets us in and drops us must not be dialled in a tight loop.
            await asyncio.sleep(backoff.pause_s())

    async def _dial_any(self) -> Link | None:
        self.chance.shuffle(self._urls)
        # A server that hangs takes a connection, and then the whole time for one: the others first.
        self._urls.sort(key=lambda url: url == self._lost_url)
        refused: Misuse | None = None
        for url in tuple(self._urls):
            try:
                connection = await self._dial(self._settings, url)
            except Misuse as error:
                refused = error
            except (OSError, nats.errors.Error) as error:
                self._last_error = f"{url}: {str(error) or type(error).__name__}"
                if "authorization" in str(error).lower():
                    refused = InvalidConfig(f"{url} refused the credentials (user, token, credentials_file or nkey)")
            else:
                self._urls += [url for url in connection.discovered_urls if url not in self._urls]
                return connection
        if refused is not None:
            self._last_error = str(refused)
            self._refused = refused
            self._notify()
        return None

    def _set(self, connection: Link | None) -> None:
        self._connection = connection
        self._leaderless_since = None
        self._was_connected = self._was_connected or connection is not None
        self.down_since = None if connection is not None else asyncio.get_running_loop().time()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _live(self) -> Link | None:
        """The connection if there is one now. Raises `LogUnavailable` once closed, and what ended the supervisor."""
        if self._supervisor is None:
            raise LogUnavailable("this log has been closed")
        if self._supervisor.done():
            self._supervisor.result()
        return self._connection if self.connected else None
