"""One HTTP exchange: its headers read once, its body read within bounds, its answer sent."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
from collections.abc import Sequence
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from holdfast.core.admission import Priority
from holdfast.gateway.bodies import Bodies
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.machine import Entropy
from holdfast.gateway.problems import (
    Problem,
    body_too_large,
    body_too_slow,
    forbidden,
    unauthorized,
    unsupported_media_type,
)

SANE_ID: Final = re.compile(rb"[!-~]{1,128}")
_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
LINGER_BYTES_MAX: Final = 64 * 1024 * 1024
LINGER_S: Final = 2.0

WRITE_BYTES: Final = 64 * 1024
"""So much is written at once at most: a client that takes that much within a write's time is not too slow."""


class ClientGone(Exception):
    """The client went away before its request was complete. Nobody is there to be told."""


def request_id_of(given: bytes | None, entropy: Entropy) -> bytes:
    """The client's own request id if it is sane (at most 128 visible ASCII characters), else a new one."""
    if given is not None and SANE_ID.fullmatch(given):
        return given
    return b"req_" + entropy(12).hex().encode()


class KeyRing:
    """The API keys, as hashes. Comparing takes the same time whichever key it is, or none."""

    def __init__(self, settings: HttpSettings) -> None:
        self._admins = [_digest(key.get_secret_value().encode()) for key in settings.admin_keys]
        self._hashes = [_digest(key.get_secret_value().encode()) for key in settings.api_keys] + self._admins
        self._priority_max = Priority[settings.priority_max.upper()]

    def check(self, authorization: bytes | None) -> None:
        """Raises `HttpRefusal` (401) unless the header carries one of the keys, or there are none."""
        if self._hashes and not _is_one_of(self._hashes, authorization):
            raise unauthorized(given=bool(authorization))

    def check_admin(self, authorization: bytes | None) -> None:
        """Raises `HttpRefusal` as `check`, and 403 for another key than an admin's where there are some of these."""
        self.check(authorization)
        if self._admins and not _is_one_of(self._admins, authorization):
            raise forbidden("This needs one of the admin keys.", "admin_key_required")

    def priority_max(self, authorization: bytes | None) -> Priority:
        """The highest that who sends this may claim: with an admin's key any, else up to the setting."""
        if self._priority_max is Priority.CRITICAL or _is_one_of(self._admins, authorization):
            return Priority.CRITICAL
        return self._priority_max

    @property
    def closed(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._hashes)

    def owner(self, authorization: bytes | None) -> str:
        """Whose the requests are that come with this: everybody's (empty) where no key is asked for."""
        return tenant_of(authorization) if self.closed else ""

    def sees(self, authorization: bytes | None) -> str | None:
        """Whose requests who sends this may see and cancel: its own, or with an admin's key anybody's (None)."""
        return None if _is_one_of(self._admins, authorization) else self.owner(authorization)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_one_of(hashes: Sequence[bytes], authorization: bytes | None) -> bool:
    scheme, _, token = (authorization or b"").partition(b" ")
    digest = _digest(token.strip())
    matches = [hmac.compare_digest(digest, known) for known in hashes]
    return scheme.lower() == b"bearer" and True in matches


def tenant_of(authorization: bytes | None) -> str:
    """Whose request it is: 12 hex digits of the hash of its API key, which tell nobody the key; empty without one."""
    _scheme, _, token = (authorization or b"").partition(b" ")
    return _digest(token.strip()).hex()[:12] if token.strip() else ""


class Exchange:
    """A request and its answer. `started` tells whether the answer's status has been sent; `turn` is as in `Writer`."""

    __slots__ = (
        "_bodies",
        "_held",
        "_receive",
        "_send",
        "_settings",
        "_stamp",
        "headers",
        "request_id",
        "started",
        "turn",
        "unread",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        settings: HttpSettings,
        stamp: tuple[bytes, bytes],
        entropy: Entropy,
        bodies: Bodies,
    ) -> None:
        """What is read of the body counts in `bodies` until the answer begins, or `let_go`."""
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id_of(self.headers.get(b"x-request-id"), entropy)
        self.started = False
        self.unread = True
        self.turn = 0
        self._receive = receive
        self._send = send
        self._settings = settings
        self._stamp = stamp
        self._bodies = bodies
        self._held = 0

    async def body(self, left_s: float = math.inf) -> bytes:
        """The whole body, within `left_s` seconds at most.

        Raises `HttpRefusal` if it is too long, too slow or not JSON; `Overloaded` as `Bodies.take`; `ClientGone`.
        """
        content_type = self.headers.get(b"content-type")
        if content_type is not None and not _is_json(content_type):
            raise unsupported_media_type(content_type.decode("latin-1"))
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self._settings.body_bytes_max:
            raise body_too_large(self._settings.body_bytes_max)
        timeout_s = min(left_s, self._settings.body_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(await self._receive())
        except TimeoutError:
            raise body_too_slow(timeout_s) from None

    async def _read(self, message: Message) -> bytes:
        parts: list[bytes] = []
        left = self._settings.body_bytes_max
        try:
            while message["type"] == "http.request":
                part: bytes = message.get("body", b"")
                left -= len(part)
                self.unread = message.get("more_body", False)
                if left < 0:
                    raise body_too_large(self._settings.body_bytes_max)
                self._bodies.take(len(part))
                self._held += len(part)
                parts.append(part)
                if not self.unread:
                    return part if len(parts) == 1 else b"".join(parts)
                message = await self._receive()
            raise ClientGone
        finally:
            parts.clear()  # an error holds them as long as its client is told of it

    def let_go(self) -> None:
        """The body is not needed any more."""
        self._bodies.give(self._held)
        self._held = 0

    async def answer(self, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None) -> None:
        """Send a whole answer in JSON."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [_JSON, length, *(extra or ())])
        await self.write(body, more=False)

    async def problem(self, problem: Problem) -> None:
        """Send an error as the answer."""
        await self.answer(problem.status, problem.body(), problem.headers())
        if self.unread and problem.status != 408:
            await self._linger()

    async def events(self, whole: bytes | None = None) -> None:
        """Begin an answer that is a stream of events; or send it, where it is `whole` already."""
        if whole is None:
            await self._start(200, [*_EVENTS])
        else:
            await self._start(200, [*_EVENTS, (b"content-length", b"%d" % len(whole))])
            await self.write(whole, more=False)

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send a piece of the answer; returns once the client's connection takes more."""
        last = max(0, len(body) - 1) // WRITE_BYTES * WRITE_BYTES
        for begin in range(0, last, WRITE_BYTES):
            await self._write(body[begin : begin + WRITE_BYTES], more=True)
        await self._write(body[last:], more=more)

    async def _write(self, body: bytes, *, more: bool) -> None:
        self.turn += 1
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self.turn += 1

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.let_go()
        headers += ((b"x-request-id", self.request_id), self._stamp)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _linger(self) -> None:
        """Take in and drop a bounded rest of the body, so that a client that is still sending gets the answer.

        Closing at once would reset the connection, and the reset overtakes the answer.
        """
        left = LINGER_BYTES_MAX
        try:
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
