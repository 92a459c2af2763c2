"""The simulated HTTP server: stands where Granian does, and runs the production application.

HTTP itself is not simulated: a request and the pieces of its answer travel as records over a simulated connection, one
exchange after the other. What the application sees is as with Granian: `receive` tells of a client that has gone only
to who asks, `send` to such a client does nothing, and `send` waits while the client takes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from starlette.types import ASGIApp, Message, Scope

from holdfast.core.errors import Misuse
from holdfast.gateway.alarm import Alarm
from holdfast.gateway.http_server import CUT_TIMEOUT_S, START_TIMEOUT_S, STOP_TIMEOUT_S
from holdfast.gateway.settings import GatewayProcessSettings
from holdfast.simulations.records import Exchange
from holdfast.simulations.world.network import End, Listener
from holdfast.simulations.world.process import SimProcess

Headers = tuple[tuple[bytes, bytes], ...]

HEAD_BYTES: Final = 200
"""What a request's or an answer's head is taken to weigh on the wire."""

UNREAD_BYTES_MAX: Final = 2048
"""Above so much that the client has not taken `send` waits. Little, for the answers of a simulation are short."""

LOOK_S: Final = 0.05
"""How often a `send` that waits looks whether it may go on, in seconds."""

PARTS_MAX: Final = 64
"""Pieces of a body that wait for the application; a client that sends more of them at once is cut."""

STOPPING: Final = b'"gateway_stopping"'
"""What clients are told who are to go to another gateway: with their first word, or in the middle of a stream."""

LOST: Final = b'"stream_lost"'
"""What clients are told whose stream lost its replica and can't go on."""

REQUEST: Final = b"request-"
"""How the ids begin that clients give their requests; a number follows."""

OK: Final = 200

CONNECTION: Final = "holdfast.connection"


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request, with the first piece of its body. `more`: other pieces follow as `BodyPart`s."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""
    more: bool = False


class BodyPart(msgspec.Struct, frozen=True, gc=False):
    """A piece of a body, a request's or an answer's."""

    data: bytes
    more: bool


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """An answer's status and headers."""

    status: int
    headers: Headers


_SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "scheme": "http",
    "root_path": "",
}
"""What all requests have in common."""


class SimDoor:
    """As `Door`, for one gateway process. `exchange()` gives the record of an exchange that begins."""

    def __init__(
        self,
        process: SimProcess,
        app: ASGIApp,
        settings: GatewayProcessSettings,
        exchange: Callable[[], Exchange] = lambda: Exchange(0, 0.0, 0.0),
    ) -> None:
        self.exchange_began = exchange
        self._process = process
        self._app = app
        self._port = settings.port
        self._open = asyncio.Event()
        self._connections: dict[int, _Connection] = {}

    def bind(self) -> None:
        """As `Door.bind`."""
        self._listen().close()

    async def run(self) -> None:
        """As `Door.run`."""
        listener = self._listen()
        self._open.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            listener.close()
            await self._end()

    async def listening(self) -> None:
        """As `Door.listening`."""
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._open.wait()

    def forget(self, number: int) -> None:
        """The connection is over."""
        self._connections.pop(number, None)

    async def _end(self) -> None:
        """Close idle connections, let open requests end, and cut those that don't."""
        for connection in list(self._connections.values()):
            connection.retire()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
        for connection in list(self._connections.values()):
            connection.cut()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=CUT_TIMEOUT_S)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [connection.task for connection in self._connections.values() if connection.task is not None]

    def _listen(self) -> Listener:
        try:
            return self._process.world.network.listen(self._process, self._port, self._accept)
        except OSError as error:
            raise Misuse(str(error)) from error

    def _accept(self, end: End) -> None:
        self._connections[end.number] = _Connection(self, self._process, self._app, end)


class _Connection:
    """One client's connection: an exchange at a time."""

    def __init__(self, door: SimDoor, process: SimProcess, app: ASGIApp, end: End) -> None:
        self._door = door
        self._process = process
        self._app = app
        self._end = end
        self._parts: deque[BodyPart] = deque()
        self._arrived = Alarm()
        self._unfinished = False
        self._answered = False
        self._retired = False
        self._record: Exchange | None = None
        self._begun = False
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        end.attach(self._on_message, self._on_lost)

    def retire(self) -> None:
        """Take no other request."""
        self._retired = True
        if self.task is None:
            self._close()

    def cut(self) -> None:
        """Reset it."""
        self._end.abort()
        self._on_lost(None)

    # --- what the client does ---------------------------------------------------------------------------

    def _on_message(self, message: RequestHead | BodyPart) -> None:
        if isinstance(message, RequestHead):
            if self.task is not None or self._retired:
                self.cut()  # one that sends another request before its answer is here, or after we said that we end
                return
            self._parts.clear()
            self._parts.append(BodyPart(message.body, message.more))
            self._unfinished, self._answered = message.more, False
            loop = self._process.loop
            self.task = loop.create_task(self._exchange(self._scope(message)), name="request")
        elif self._unfinished:
            if len(self._parts) >= PARTS_MAX:
                self.cut()
                return
            self._parts.append(message)
            self._unfinished = message.more
            self._arrived.rouse()

    def _on_lost(self, _error: Exception | None) -> None:
        self.gone = True
        self._arrived.rouse()
        if self.task is None:
            self._door.forget(self._end.number)

    # --- an exchange ------------------------------------------------------------------------------------

    def _scope(self, head: RequestHead) -> Scope:
        host = self._process.host.name
        path, _, query = head.path.partition("?")
        return {
            **_SCOPE,
            "method": head.method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": head.headers,
            "server": (host, 0),
            "client": (self._end.other.process.host.name, self._end.number),
            CONNECTION: self,
        }

    async def _exchange(self, scope: Scope) -> None:
        due = self._record = self._door.exchange_began()
        due.request = _number(scope["headers"])
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            context = {"message": f"the application failed at {scope['path']}", "exception": error}
            self._process.loop.call_exception_handler(context)
        finally:
            due.ended_s = self._process.world.now_s
            self.task = None
            if self.gone:
                self._door.forget(self._end.number)
            elif self._retired or self._unfinished or not self._answered:
                self._close()

    async def _receive(self) -> Message:
        while not self._parts:
            if self.gone or (self._answered and not self._unfinished):
                return {"type": "http.disconnect"}
            await self._arrived.wait()
        part = self._parts.popleft()
        return {"type": "http.request", "body": part.data, "more_body": part.more}

    async def _send(self, message: Message) -> None:
        end = self._end
        if self.gone:
            return
        if message["type"] == "http.response.start":
            self._begun = message["status"] == OK
            end.send(AnswerHead(message["status"], _tuple(message["headers"])), HEAD_BYTES)
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        self._answered = not more
        if STOPPING in data and self._begun and self._record is not None:
            self._record.sent_away_s = self._process.world.now_s
        elif LOST in data and self._record is not None:
            self._record.lost_s = self._process.world.now_s
        end.send(BodyPart(data, more), len(data))
        while more and end.unread_bytes > UNREAD_BYTES_MAX and not self.gone:  # noqa: ASYNC110 - nobody could signal it
            await asyncio.sleep(LOOK_S)

    def _close(self) -> None:
        self._end.close()
        self.gone = True
        self._door.forget(self._end.number)


def _number(headers: Headers) -> int:
    """The number that a client of this run gave its request; -1 if it gave none."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    number = given.removeprefix(REQUEST)
    return int(number) if number != given and number.isdigit() else -1


def cut_client(scope: Scope) -> None:
    """As `Machine.cut_client`, for requests that came through this door."""
    scope[CONNECTION].cut()


def _tuple(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return tuple((name, value) for name, value in headers)
