"""A replica: one engine, stepped in a loop, its tokens sent to the gateways that asked for them.

The engine is only touched between two steps, so it needs no locks. Everything that one step made for one
gateway travels in one frame. A gateway that does not read does not hold back the others: what it is owed is
buffered, and when that is too much its connection is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

import msgspec

from holdfast.actors.engines.base import ENGINE_OVERLOADED, Engine, StepOutput
from holdfast.actors.specification import ReplicaSpecification
from holdfast.actors.wire import Connection
from holdfast.core.errors import PeerViolation, RequestRefused, WrongReplica
from holdfast.core.frames import (
    PROTOCOL_VERSION,
    Admitted,
    Heartbeat,
    Hello,
    Refused,
    Start,
    Step,
    Stop,
    Welcome,
    decode_from_gateway,
)

CONGESTION_WAIT_S = 0.05
"""How long a step waits for a gateway to read, when none of them does (seconds)."""

STARTS_WAITING_MAX = 4096
"""Attempts that may wait between two steps to be admitted; more are refused, and go elsewhere."""

logger = logging.getLogger(__name__)


class _Route(msgspec.Struct):
    """Whose a stream is."""

    connection: Connection
    attempt: int


class Replica:
    """Serves one engine on the wire until told to stop."""

    def __init__(self, specification: ReplicaSpecification, engine: Engine) -> None:
        self._specification = specification
        self._engine = engine
        self._connections: dict[Connection, dict[int, int]] = {}
        self._routes: dict[int, _Route] = {}
        self._starts: deque[tuple[Connection, Start]] = deque()
        self._admitting: tuple[Connection, int] | None = None
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._keys = 0
        self._draining = False

    async def listen(self) -> tuple[asyncio.Server, str]:
        """Open the replica's socket; the server and its address."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self._on_body, self._on_lost), self._specification.host, 0)
        host, port = server.sockets[0].getsockname()[:2]
        return server, f"{host}:{port}"

    async def run(self) -> None:
        """Step the engine and send heartbeats until cancelled. Raises whatever breaks the engine."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._step_loop())
            group.create_task(self._heartbeat_loop())

    async def drain(self) -> None:
        """Take nothing new, and wait until all streams ended."""
        self._draining = True
        self._beat()
        await self._idle.wait()

    async def abandoned(self) -> None:
        """Wait until no gateway is connected; streams don't outlive their gateway's connection."""
        await self._deserted.wait()

    # --- what gateways send -----------------------------------------------------------------------------

    def _on_body(self, connection: Connection, body: bytes) -> None:
        frame = decode_from_gateway(body)
        if isinstance(frame, Hello):
            self._greet(connection, frame)
        elif connection not in self._connections:
            raise WrongReplica("a gateway sent work before its Hello")
        elif isinstance(frame, Start):
            self._enqueue(connection, frame)
        else:
            self._stop(connection, frame)

    def _greet(self, connection: Connection, hello: Hello) -> None:
        mine = (PROTOCOL_VERSION, self._specification.cluster, self._specification.replica)
        theirs = (hello.protocol, hello.cluster, hello.replica)
        if mine != theirs:
            raise WrongReplica(f"gateway {hello.gateway} looks for {theirs}, this is {mine}")
        if connection in self._connections:
            raise PeerViolation(f"gateway {hello.gateway} said Hello twice")
        self._connections[connection] = {}
        self._deserted.clear()
        connection.send(Welcome(PROTOCOL_VERSION, self._specification.replica, self._engine.info))
        connection.send(Heartbeat(self._engine.load(), self._draining))

    def _enqueue(self, connection: Connection, start: Start) -> None:
        if self._draining or len(self._starts) >= STARTS_WAITING_MAX:
            reason = "the replica is draining" if self._draining else "too many streams wait for the replica"
            connection.send(Refused(start.attempt, "replica_unavailable", reason, None, True))
            return
        self._idle.clear()
        self._starts.append((connection, start))
        self._work.set()

    def _stop(self, connection: Connection, stop: Stop) -> None:
        key = self._connections[connection].pop(stop.attempt, None)
        if self._admitting == (connection, stop.attempt):
            self._admitting = None
        if key is None:
            self._starts = deque(
                (other, start)
                for other, start in self._starts
                if other is not connection or start.attempt != stop.attempt
            )
        else:
            self._routes.pop(key, None)
        self._work.set()

    def _on_lost(self, connection: Connection) -> None:
        """The gateway is gone, and its streams with it."""
        for key in self._connections.pop(connection, {}).values():
            self._routes.pop(key, None)
        self._starts = deque((other, start) for other, start in self._starts if other is not connection)
        self._work.set()
        if not self._connections:
            self._deserted.set()

    # --- the engine -------------------------------------------------------------------------------------

    async def _step_loop(self) -> None:
        running: set[int] = set()
        while True:
            while self._starts:
                running |= await self._admit(*self._starts.popleft())
            for key in running - self._routes.keys():
                self._engine.drop(key)
                running.discard(key)
            if not running:
                if not self._starts:
                    self._idle.set()
                    await self._work.wait()
                self._work.clear()
                continue
            output = await self._engine.step()
            await self._deliver(output)
            running.difference_update(key for key, _ in output.finished)

    async def _admit(self, connection: Connection, start: Start) -> set[int]:
        """Let the engine take the attempt in; its key, unless it was refused."""
        self._keys += 1
        key = self._keys
        self._admitting = (connection, start.attempt)
        try:
            prompt_tokens = await self._engine.admit(key, start.request)
        except RequestRefused as refusal:
            retry = refusal.code == ENGINE_OVERLOADED
            connection.send(Refused(start.attempt, refusal.code, refusal.message, refusal.param, retry))
            return set()
        attempts = self._connections.get(connection)
        if attempts is not None and self._admitting is not None:
            attempts[start.attempt] = key
            self._routes[key] = _Route(connection, start.attempt)
            connection.send(Admitted(start.attempt, prompt_tokens))
        return {key}

    async def _deliver(self, output: StepOutput) -> None:
        if len(self._connections) == 1:
            connection = next(iter(self._connections))
            frame = self._whole_step(connection, output)
            if frame is not None:
                connection.send(frame)
        else:
            for connection, frame in self._split_step(output).items():
                connection.send(frame)
        self._forget(output.finished)
        if self._connections and all(connection.congested for connection in self._connections):
            # Nobody reads as fast as we write. One who does not read must not hold back one who does.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(next(iter(self._connections)).drained(), CONGESTION_WAIT_S)

    def _whole_step(self, connection: Connection, output: StepOutput) -> Step | None:
        """The step as one frame for the only gateway there is; None when streams were dropped meanwhile."""
        routes = self._routes
        try:
            attempts = [routes[key].attempt for key in output.keys]
            finished = [(routes[key].attempt, reason) for key, reason in output.finished]
        except KeyError:
            return self._split_step(output).get(connection)
        if not attempts and not finished:
            return None
        return Step(attempts, output.positions, output.tokens, output.texts, output.logprobs, finished)

    def _split_step(self, output: StepOutput) -> dict[Connection, Step]:
        """The step as one frame for each gateway that has streams in it; dropped streams are left out."""
        frames: dict[Connection, Step] = {}

        def frame_for(connection: Connection) -> Step:
            logprobs: list[object] | None = None if output.logprobs is None else []
            return frames.setdefault(connection, Step([], [], [], [], logprobs, []))  # type: ignore[arg-type]

        for at, key in enumerate(output.keys):
            route = self._routes.get(key)
            if route is not None:
                frame = frame_for(route.connection)
                frame.attempts.append(route.attempt)
                frame.positions.append(output.positions[at])
                frame.tokens.append(output.tokens[at])
                frame.texts.append(output.texts[at])
                if frame.logprobs is not None and output.logprobs is not None:
                    frame.logprobs.append(output.logprobs[at])
        for key, reason in output.finished:
            route = self._routes.get(key)
            if route is not None:
                frame_for(route.connection).finished.append((route.attempt, reason))
        return frames

    def _forget(self, finished: list[tuple[int, str]]) -> None:
        for key, _reason in finished:
            route = self._routes.pop(key, None)
            if route is not None:
                self._connections.get(route.connection, {}).pop(route.attempt, None)

    async def _heartbeat_loop(self) -> None:
        while True:
            await asyncio.sleep(self._specification.heartbeat_interval_s)
            self._beat()

    def _beat(self) -> None:
        beat = Heartbeat(self._engine.load(), self._draining)
        for connection in list(self._connections):
            connection.send(beat)
