"""Calls to etcd's JSON gateway: which endpoint, how long, with which token, and what is worth another try.

The gateway is part of every etcd since 3.4, on the client port under `/v3`: the gRPC API with JSON bodies, 64-bit
numbers as strings and bytes in base64. Calls stick to one endpoint and move to the next when it fails. A call that
failed with anything but a refused connection may have taken effect; its next try is then marked `again`.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from holdfast.core.errors import IncompatibleServer, InvalidConfig, LeasesUnavailable, Misuse, WorldFailure
from holdfast.store.backoff import Backoff
from holdfast.store.etcd_http import HttpTransport
from holdfast.store.etcd_transport import OK, NoAnswer, NotSent, Transport
from holdfast.store.settings import EtcdSettings

SERVER_VERSION_MIN = (3, 4)
STEPS_PER_TRY = 2

# gRPC status codes (google.rpc.Code) as the gateway passes them on.
INVALID_ARGUMENT = 3
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNAUTHENTICATED = 16
FINAL = {INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, OUT_OF_RANGE}

OUT_OF_SPACE = "database space exceeded"
STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
NO_TOKEN = "user name is empty"
AUTH_DISABLED = "authentication is not enabled"


class GatewayError(WorldFailure):
    """A server answered with an error. `again`: an earlier try's outcome is unknown."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.again = False


@dataclass(frozen=True)
class Answer:
    """A server's answer. `again`: an earlier try may have taken effect."""

    body: dict[str, Any]
    endpoint: str
    again: bool

    @property
    def revision(self) -> int:
        return int(self.body["header"].get("revision", 0))


class EtcdGateway:
    """One client of an etcd cluster, over HTTP unless another transport is given.

    `chance` draws lease ids and the jitter of pauses; without it both come from the operating system.
    """

    def __init__(
        self, settings: EtcdSettings, transport: Transport | None = None, chance: random.Random | None = None
    ) -> None:
        self.settings = settings
        self.chance = chance or random.SystemRandom()
        self.closed = False
        self.down_since: float | None = None
        self._admitted = False
        self._endpoints = list(settings.endpoints)
        self._versions: dict[str, str] = {}
        self._token: str | None = None
        self._authenticating = asyncio.Lock()
        self._transport = transport or HttpTransport(settings)

    @property
    def connected(self) -> bool:
        """Whether the last call was answered."""
        return self.down_since is None and not self.closed

    def version(self, endpoint: str) -> str:
        """The version of an endpoint that has answered a call."""
        return self._versions[endpoint]

    async def call(self, path: str, payload: dict[str, Any]) -> Answer:
        """Try the endpoints in turn within `request_timeout_s`.

        Raises `GatewayError` (a server's final word), `LeasesUnavailable`; before the first answer also
        `InvalidConfig` (not let in) and `IncompatibleServer`.
        """
        loop = asyncio.get_running_loop()
        backoff = self.backoff()
        began_s = loop.time()
        deadline = began_s + self.settings.request_timeout_s
        failures: dict[str, str] = {}
        again = False
        while (left_s := deadline - loop.time()) > 0:
            if self.closed:
                raise LeasesUnavailable("this client of the lease servers has been closed")
            endpoint = self._endpoints[0]
            try:
                body = await self._try(endpoint, path, payload, min(left_s, self.settings.try_timeout_s))
            except GatewayError as error:
                error.again = again
                failures[endpoint] = self._judged(error, endpoint)
                again = True
            except Misuse as error:
                failures[endpoint] = self._refused(error)
            except (NoAnswer, OSError, ValueError) as error:
                failures[endpoint] = str(error) or type(error).__name__
                again = again or not isinstance(error, NotSent)
            else:
                self._admitted, self.down_since = True, None
                return Answer(body, endpoint, again)
            self.turn_from(endpoint)
            if len(failures) >= len(self._endpoints):
                self._note_failure(began_s)
                await asyncio.sleep(min(backoff.pause_s(), max(0.0, deadline - loop.time())))
        self._note_failure(began_s)
        tried = "; ".join(f"{endpoint}: {failure}" for endpoint, failure in failures.items())
        raise LeasesUnavailable(
            f"no lease server answered {path} within {self.settings.request_timeout_s:g} s: {tried}"
        )

    async def lines(self, endpoint: str, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The objects of a streamed answer. Raises `GatewayError`, `NoAnswer` (`Silent` after `watch_silence_s`)."""
        settings = self.settings
        headers = await self._headers(endpoint, settings.try_timeout_s)
        # A member that lost its leader ends the watch instead of keeping quiet.
        headers["Grpc-Metadata-hasleader"] = "true"
        lines = self._transport.lines(
            endpoint,
            f"/v3/{path}",
            payload,
            headers,
            timeout_s=settings.try_timeout_s,
            silence_s=settings.watch_silence_s,
        )
        async with aclosing(lines):
            async for status, item in lines:
                if status != OK or "error" in item:
                    raise _error(item, status)
                yield item["result"]

    def backoff(self) -> Backoff:
        """The pauses of one loop of tries."""
        return Backoff(self.settings.retry_wait_min_s, self.settings.retry_wait_max_s, self.chance)

    def turn_from(self, endpoint: str) -> None:
        """Prefer another endpoint from now on."""
        if self._endpoints[0] == endpoint:
            self._endpoints.append(self._endpoints.pop(0))

    def forget_token(self) -> None:
        self._token = None

    async def close(self) -> None:
        self.closed = True
        await self._transport.close()

    def _note_failure(self, since_s: float) -> None:
        if self.down_since is None:
            self.down_since = since_s

    async def _try(self, endpoint: str, path: str, payload: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        # The transport applies its timeout to connecting, writing and reading each. Ours bounds the whole, a little
        # later: a TLS handshake that is cancelled from outside leaves its socket open (httpcore 1.0).
        async with asyncio.timeout(timeout_s * STEPS_PER_TRY):
            await self._check_version(endpoint, timeout_s)
            headers = await self._headers(endpoint, timeout_s)
            return await self._post(endpoint, path, payload, headers, timeout_s)

    async def _post(
        self, endpoint: str, path: str, payload: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> dict[str, Any]:
        status, body = await self._transport.post(endpoint, f"/v3/{path}", payload, headers, timeout_s)
        # A streamed answer of one object has it under `result`, and may hold an error despite its status.
        if status != OK or "error" in body:
            raise _error(body, status)
        result: dict[str, Any] = body.get("result", body)
        return result

    async def _check_version(self, endpoint: str, timeout_s: float) -> None:
        """Ask once for each endpoint; older ones have another API. Raises `IncompatibleServer`."""
        if endpoint in self._versions:
            return
        status, body = await self._transport.get(endpoint, "/version", timeout_s)
        if status != OK:
            raise _error(body, status)
        version = str(body["etcdserver"])
        if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < SERVER_VERSION_MIN:
            wanted = ".".join(map(str, SERVER_VERSION_MIN))
            raise IncompatibleServer(f"{endpoint} runs etcd {version}; upgrade it to {wanted} or newer")
        self._versions[endpoint] = version

    async def _headers(self, endpoint: str, timeout_s: float) -> dict[str, str]:
        """The token, fetched by the first that needs one while the others wait for it."""
        settings = self.settings
        if settings.user is None or settings.password is None:
            return {}
        async with self._authenticating:
            if self._token is None:
                login = {"name": settings.user, "password": settings.password.get_secret_value()}
                try:
                    answer = await self._post(endpoint, "auth/authenticate", login, {}, timeout_s)
                    self._token = str(answer["token"])
                except GatewayError as error:
                    if AUTH_DISABLED in error.message:
                        raise InvalidConfig(
                            f"{endpoint} has authentication switched off: switch it on, or take out user and password"
                        ) from error
                    if error.code == INVALID_ARGUMENT:
                        raise InvalidConfig(f"{endpoint} refused user {settings.user}: {error.message}") from error
                    raise
            return {"Authorization": self._token}

    def _judged(self, error: GatewayError, endpoint: str) -> str:
        """The failure's text when another try may help; raises what a final refusal means."""
        if error.message.endswith(STALE_TOKEN):
            self.forget_token()
        elif NO_TOKEN in error.message:
            return self._refused(InvalidConfig(f"{endpoint} asks for credentials: set user and password"))
        elif error.code == PERMISSION_DENIED:
            wanted = f"grant readwrite on the keys below {self.settings.prefix}"
            return self._refused(InvalidConfig(f"{endpoint} denies user {self.settings.user} what is needed: {wanted}"))
        elif OUT_OF_SPACE in error.message:
            raise LeasesUnavailable(
                f"{endpoint} is out of space: compact and defragment it, disarm its alarm, or raise its quota"
            ) from error
        elif error.code in FINAL:
            self.down_since = None
            raise error
        return error.message

    def _refused(self, error: Misuse) -> str:
        """Being kept out at first is a wrong setting; later it is a failure of the servers, which may pass."""
        if not self._admitted:
            raise error
        return str(error)


def encoded(text: bytes | str) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def prefix_range(prefix: str) -> dict[str, str]:
    """`key` and `range_end` of all keys that start with `prefix`."""
    start = prefix.encode()
    kept = start.rstrip(b"\xff")
    end = kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"
    return {"key": encoded(start), "range_end": encoded(end)}


def _error(body: Any, status: int) -> GatewayError:
    """The error in an answer: a unary one has `error` as text, a stream's has an object."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return GatewayError(int(error.get("grpc_code", 0)), str(error.get("message", error)))
    if isinstance(error, str):
        return GatewayError(int(body.get("code", 0)), error)
    return GatewayError(0, f"HTTP status {status}")
