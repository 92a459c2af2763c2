"""One connection to NATS by nats-py, used once.

**Why not nats-py's own reconnecting.** It keeps what was published while the connection was down and sends it
later, when nobody expects it; it gives up for good after some tries; and closing a half-open socket with unsent
bytes can hang it. So each `Connection` lives on one TCP connection and never comes back: when it is lost, every
request on it fails at once, and whatever it had not sent is dropped with it. The `Session` dials the next one.

**What nats-py forgets.** It waits with `asyncio.wait_for`, which up to Python 3.11 drops a cancellation that comes
together with what is waited for, and some of its waits drop any. Here every call to it ends in `CancelledError` for
who was cancelled in it: a loop around it would go on for ever, and a deadline around it would pass unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from holdfast.core.errors import IncompatibleServer, InvalidConfig
from holdfast.store.nats_link import NO_RESPONDERS, STATUS_HEADER, ConnectionLost, NoResponders
from holdfast.store.settings import JetStreamSettings

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
CONNECTION_NAME = "holdfast"
# Older ones lose or reorder acknowledged messages in some failures (release notes of 2.12.1 to 2.12.3).
SERVER_VERSION_MIN = (2, 12, 3)


class _Transport(TcpTransport):
    """A TCP transport that never waits long for a peer which doesn't read: closing drops what was not sent.

    A write that fails is not told to the writer, whose tasks inside nats-py would die of it without a word. The
    transport is aborted instead, and the reader meets its end: the one place where a loss shows. With
    `require_tls` nothing is written before the upgrade, so that no server can talk us out of it.
    """

    def __init__(self, stall_timeout_s: float, *, require_tls: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stall_timeout_s = stall_timeout_s
        self._sealed = require_tls
        self._broken = False

    async def connect_tls(self, *arguments: Any, **options: Any) -> None:
        await super().connect_tls(*arguments, **options)
        self._sealed = False

    def write(self, payload: bytes) -> None:
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        if self._sealed:
            raise nats.errors.SecureConnWantedError
        if not self._broken:
            super().writelines(payload)  # type: ignore[no-untyped-call]

    async def drain(self) -> None:
        if self._broken:
            return
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await super().drain()  # type: ignore[no-untyped-call]
        except OSError:
            self.close()

    def close(self) -> None:
        self._broken = True
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """An aborted transport has nothing to wait for."""

    def __bool__(self) -> bool:
        # nats-py puts its own transport in the place of one that is false.
        return True


@contextmanager
def remembered_cancellation() -> Iterator[None]:
    """Whoever is cancelled within this leaves it by `CancelledError`, even if what was called forgot that."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class Connection:
    """A live connection with requests on it. Once `lost` is set it is of no more use."""

    def __init__(self, client: Client, transport: _Transport, url: str) -> None:
        self.url = url
        self._transport = transport
        self.lost = asyncio.Event()
        self._client = client
        self._inbox = client.new_inbox()
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        self._count = 0
        self._last_error: Exception | None = None

    @classmethod
    async def dial(cls, settings: JetStreamSettings, url: str) -> Connection:
        """Connect within `connect_timeout_s`. Raises `OSError`, `nats.errors.Error`, `Misuse`."""
        client = Client()
        stall_timeout_s = settings.ping_interval_s * settings.pings_outstanding
        transport = _Transport(stall_timeout_s, require_tls=settings.uses_tls)
        client._transport = transport
        connection = cls(client, transport, url)
        options = _options(settings)
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                with remembered_cancellation():
                    await client.connect(
                        servers=[url], error_cb=connection._on_error, closed_cb=connection._on_closed, **options
                    )
                    await client.subscribe(connection._inbox + ".*", cb=connection._on_reply)
            _check_version(connection.server_version, url)
        except nats.errors.NoServersError as error:
            await connection.close()
            raise connection._last_error or error from None
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def server_version(self) -> str:
        return str(self._client._server_info.get("version", "unknown"))

    @property
    def server_name(self) -> str:
        return str(self._client._server_info.get("server_name", "unknown"))

    @property
    def discovered_urls(self) -> list[str]:
        """Servers of the cluster that this one told us of."""
        return [server.geturl() for server in self._client.discovered_servers]

    async def request(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        """Ask, and wait for one answer. Raises `TimeoutError`, `ConnectionLost`, `NoResponders`."""
        self._count += 1
        token = str(self._count)
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._replies[token] = reply
        try:
            async with asyncio.timeout(timeout_s):
                await self.publish(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
                answer = await reply
        finally:
            del self._replies[token]
        if answer.headers and answer.headers.get(STATUS_HEADER) == NO_RESPONDERS:
            raise NoResponders(subject)
        return answer

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        if self.lost.is_set() or not self._client.is_connected:
            raise ConnectionLost(self.url)
        try:
            with remembered_cancellation():
                await self._client.publish(subject, data, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise ConnectionLost(self.url) from error

    async def subscribe(self, inbox: str, deliver: Callable[[Msg], Awaitable[None]]) -> Subscription:
        if self.lost.is_set():
            raise ConnectionLost(self.url)
        try:
            with remembered_cancellation():
                return await self._client.subscribe(inbox, cb=deliver)
        except (nats.errors.Error, OSError) as error:
            raise ConnectionLost(self.url) from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        if not self.lost.is_set():
            try:
                with remembered_cancellation():
                    await subscription.unsubscribe()
            except (nats.errors.Error, OSError):
                logger.debug("unsubscribing on %s failed", self.url)

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def probe(self, timeout_s: float) -> None:
        """Give the connection up unless its server answers a ping in time."""
        try:
            async with asyncio.timeout(timeout_s):
                with remembered_cancellation():
                    await self._client.flush(timeout=math.ceil(timeout_s) + 1)
        except (nats.errors.Error, OSError):
            await self.close()

    async def close(self) -> None:
        """End at once; what was not sent is dropped."""
        self._transport.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                with remembered_cancellation():
                    await self._client.close()
        except (OSError, nats.errors.Error):
            logger.debug("closing the connection to %s failed", self.url, exc_info=True)
        finally:
            await self._on_closed()

    async def _on_error(self, error: Exception) -> None:
        # nats-py's own handler prints. A loss shows in `lost`, and this in the text of what fails because of it.
        self._last_error = error
        logger.debug("nats: %s", error)

    async def _on_reply(self, message: Msg) -> None:
        reply = self._replies.get(message.subject.rpartition(".")[2])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _on_closed(self) -> None:
        self.lost.set()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionLost(self.url))


def _check_version(version: str, url: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < SERVER_VERSION_MIN:
        wanted = ".".join(map(str, SERVER_VERSION_MIN))
        raise IncompatibleServer(f"{url} runs nats-server {version}; upgrade it to {wanted} or newer")


def _options(settings: JetStreamSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": CONNECTION_NAME,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        # Keep nothing back while disconnected. It also takes away a wait for the flush of a full buffer, which
        # swallows cancellation and never ends when the connection is lost under it.
        "pending_size": 0,
        "connect_timeout": settings.connect_timeout_s,
        "ping_interval": settings.ping_interval_s,
        "max_outstanding_pings": settings.pings_outstanding,
        **_credentials(settings),
    }
    if settings.uses_tls:
        try:
            options["tls"] = settings.tls_context()
        except OSError as error:
            raise InvalidConfig(f"tls_ca_file, tls_cert_file or tls_key_file can't be used: {error}") from error
    return options


def _credentials(settings: JetStreamSettings) -> dict[str, Any]:
    if settings.user is not None and settings.password is not None:
        return {"user": settings.user, "password": settings.password.get_secret_value()}
    if settings.token is not None:
        return {"token": settings.token.get_secret_value()}
    files = {"user_credentials": settings.credentials_file, "nkeys_seed": settings.nkey_seed_file}
    options = {option: str(path) for option, path in files.items() if path is not None}
    if options and find_spec("nkeys") is None:
        raise InvalidConfig("credentials_file and nkey_seed_file need another package: pip install 'nats-py[nkeys]'")
    return options
