"""JetStream's JSON API over a session: one request, its error, and what of it is worth another try.

The error codes are those of nats-server's `server/errors.json`.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import IncompatibleServer, LogUnavailable
from holdfast.core.ports import LogEntry
from holdfast.store.backoff import Backoff
from holdfast.store.nats_link import ConnectionLost, NoResponders
from holdfast.store.nats_session import Session
from holdfast.store.settings import JetStreamSettings

API = "$JS.API"
MESSAGE_ID_HEADER = "Nats-Msg-Id"

UNAVAILABLE = 10008
NOT_ENABLED = {10039, 10076}
NO_MESSAGE_FOUND = 10037
STREAM_NOT_FOUND = 10059
TEMPORARY_STATUS = 503


class ApiError(Exception):
    """The server refused a request."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.status = int(error.get("code", 0))
        self.code = int(error.get("err_code", 0))
        self.description = str(error.get("description", ""))
        super().__init__(f"{self.description} (error {self.code})")


class JetStreamApi:
    """Requests to JetStream about one stream, retried while nobody answers."""

    def __init__(self, session: Session, settings: JetStreamSettings) -> None:
        self.session = session
        self.settings = settings
        self.opened = False
        self.readers: dict[Callable[[int], None], None] = {}
        """Who wants to hear how far the log is, whenever an answer tells it."""

    def wire(self, subject: str) -> str:
        """The subject as the server knows it."""
        return f"{self.settings.subject_prefix}.{subject}"

    def local(self, wire: str) -> str:
        return wire.removeprefix(self.settings.subject_prefix + ".")

    def backoff(self) -> Backoff:
        return Backoff(self.settings.reconnect_wait_min_s, self.settings.reconnect_wait_max_s, self.session.chance)

    async def call(self, operation: str, payload: dict[str, Any] | None = None, *, timeout_s: float) -> dict[str, Any]:
        """Ask until somebody answers. Raises `ApiError`, `LogUnavailable`."""
        backoff, loop = self.backoff(), asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        problem = "no answer"
        while (left_s := deadline - loop.time()) > 0:
            try:
                return await self.call_once(operation, payload, timeout_s=left_s)
            except NoResponders:
                problem = "JetStream does not answer; has it a leader, and is it enabled on the servers?"
            except ConnectionLost:
                problem = "the connection was lost"
            except TimeoutError:
                problem = "no answer in time"
            except ApiError as error:
                # Later on it is what a server says that has shut JetStream down for want of disk, say.
                if error.code in NOT_ENABLED and not self.opened:
                    raise IncompatibleServer(f"JetStream is not enabled for us on the servers: {error}") from error
                if error.status != TEMPORARY_STATUS and error.code not in NOT_ENABLED:
                    raise
                problem = str(error)
            await asyncio.sleep(min(backoff.pause_s(), max(0.0, deadline - loop.time())))
        raise LogUnavailable(f"{operation} on {', '.join(self.settings.urls)} failed for {timeout_s:g} s: {problem}")

    async def call_once(self, operation: str, payload: dict[str, Any] | None, *, timeout_s: float) -> dict[str, Any]:
        """One try. Raises what `ask` raises."""
        body = json.dumps(payload).encode() if payload is not None else b""
        return await self.ask(f"{API}.{operation}", body, timeout_s=timeout_s)

    async def ask(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """One try. Raises `ApiError`, `LogUnavailable` (no connection), and what `Link.request` raises."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        connection = await self.session.connection(timeout_s)
        wait_s = min(self.settings.publish_timeout_s, max(0.0, deadline - loop.time()))
        try:
            answer = parsed((await connection.request(subject, data, wait_s, headers)).data)
            # A server that knows of no leader tells what it has of the stream, which may be old.
            if "leader" not in answer.get("cluster", {"leader": ""}):
                raise NoResponders(subject)
        except TimeoutError:
            await connection.probe(wait_s)
            await self.session.leaderless(connection)
            raise
        except NoResponders:
            await self.session.leaderless(connection)
            raise
        except ApiError as error:
            if error.code == UNAVAILABLE or error.code in NOT_ENABLED:
                await self.session.leaderless(connection)
            else:
                self.session.led()
            raise
        self.session.led()
        if (last := _last_told(answer)) is not None:
            for reader in self.readers:
                reader(last)
        return answer

    async def stream_info(self, timeout_s: float) -> dict[str, Any]:
        """The stream's configuration and state. Raises `ApiError`, `LogUnavailable`."""
        return await self.call(f"STREAM.INFO.{self.settings.stream}", timeout_s=timeout_s)

    async def message(self, selector: dict[str, Any], timeout_s: float) -> LogEntry | None:
        """One message, asked of the stream's leader. Raises `LogUnavailable`."""
        try:
            answer = await self.call(f"STREAM.MSG.GET.{self.settings.stream}", selector, timeout_s=timeout_s)
        except ApiError as error:
            if error.code == NO_MESSAGE_FOUND:
                return None
            raise LogUnavailable(f"reading from stream {self.settings.stream} failed: {error}") from error
        message = answer["message"]
        return LogEntry(
            sequence=int(message["seq"]),
            subject=self.local(message["subject"]),
            data=base64.b64decode(message.get("data", "")),
            message_id=_message_id(base64.b64decode(message.get("hdrs", ""))),
        )


def _last_told(answer: dict[str, Any]) -> int | None:
    """The sequence that the stream has reached by an append's acknowledgement or by what is told of the stream."""
    told = answer["state"].get("last_seq") if "state" in answer else answer.get("seq")
    return None if told is None else int(told)


def parsed(data: bytes) -> dict[str, Any]:
    """An answer's JSON. Raises `ApiError` when it tells of an error."""
    answer: dict[str, Any] = json.loads(data)
    if error := answer.get("error"):
        raise ApiError(error)
    return answer


def _message_id(headers: bytes) -> str:
    for line in headers.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.decode(errors="replace").lower() == MESSAGE_ID_HEADER.lower():
            return value.strip().decode(errors="replace")
    return ""
