"""A replica: one engine, stepped in a loop, its tokens sent to the gateways that asked for them.

Prompts are read beside the steps, so that a long one holds up nobody. Everything that one step made for one
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
from holdfast.core.errors import HoldfastError, PeerViolation, RequestRefused, WrongReplica
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
"""Attempts that may wait for their prompts to be read; more are refused, and go elsewhere."""

CONNECTIONS_MAX = 1024
HELLO_TIMEOUT_S = 2.0
"""So many connections at once, and so long until each has said Hello (seconds)."""

STALL_LOOK_S = 0.25
STALL_STEPS = 64
STALL_FACTOR = 10
STALL_FIRST_S = 60.0
"""An engine hangs if a step takes over `engine_stall_timeout_s`, and over `STALL_FACTOR` times the longest of the
last `STALL_STEPS`. Its first steps may take `STALL_FIRST_S`: devices warm up, kernels are compiled."""

STALL_FIRST_STEPS = 3

logger = logging.getLogger(__name__)


class EngineHung(HoldfastError):
    """The engine has had work for long and made no step: only a new process helps."""


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
        self._arrived = asyncio.Event()
        self._live: set[int] = set()
        self._step_began_s: float | None = None
        self._step_times_s: deque[float] = deque(maxlen=STALL_STEPS)
        self._steps = 0
        self._work = asyncio.Event()
        self._sockets = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._keys = 0
        self._draining = False

    async def listen(self) -> tuple[asyncio.Server, str]:
        """Open the replica's socket; the server and its address."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._accept, self._specification.host, 0)
        host, port = server.sockets[0].getsockname()[:2]
        return server, f"{host}:{port}"

    async def run(self) -> None:
        """Step the engine and send heartbeats until cancelled. Raises whatever breaks the engine."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._admit_loop())
            group.create_task(self._step_loop())
            group.create_task(self._heartbeat_loop())
            group.create_task(self._watch_engine())

    async def drain(self) -> None:
        """Take nothing new, and wait until all streams ended."""
        self._draining = True
        self._beat()
        await self._idle.wait()

    async def abandoned(self) -> None:
        """Wait until no gateway is connected; streams don't outlive their gateway's connection."""
        await self._deserted.wait()

    # --- what gateways send -----------------------------------------------------------------------------

    def _accept(self) -> Connection:
        """A new connection, which has a moment to say Hello."""
        connection = Connection(self._on_body, self._on_lost)
        self._sockets += 1
        wait_s = HELLO_TIMEOUT_S if self._sockets <= CONNECTIONS_MAX else 0.0
        connection.loop.call_later(wait_s, self._cut_stranger, connection)
        return connection

    def _cut_stranger(self, connection: Connection) -> None:
        if connection not in self._connections:
            connection.abort()

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
        connection.introduced()
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
        self._arrived.set()

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
        self._sockets -= 1
        for key in self._connections.pop(connection, {}).values():
            self._routes.pop(key, None)
        self._starts = deque((other, start) for other, start in self._starts if other is not connection)
        self._work.set()
        if not self._connections:
            self._deserted.set()

    # --- the engine -------------------------------------------------------------------------------------

    async def _admit_loop(self) -> None:
        """Let the engine take in attempts, one after the other, while it steps those that it has."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._starts:
                await self._admit(*self._starts.popleft())
                self._work.set()

    async def _step_loop(self) -> None:
        live = self._live
        loop = asyncio.get_running_loop()
        while True:
            for key in live - self._routes.keys():
                self._engine.drop(key)
                live.discard(key)
            if not live:
                if not self._starts and self._admitting is None:
                    self._idle.set()
                await self._work.wait()
                self._work.clear()
                continue
            self._step_began_s = loop.time()
            output = await self._engine.step()
            self._step_times_s.append(loop.time() - self._step_began_s)
            self._step_began_s = None
            self._steps += 1
            await self._deliver(output)
            live.difference_update(key for key, _ in output.finished)

    async def _admit(self, connection: Connection, start: Start) -> None:
        """Let the engine take the attempt in, or tell why not."""
        self._keys += 1
        key = self._keys
        self._admitting = (connection, start.attempt)
        try:
            prompt_tokens = await self._engine.admit(key, start.request)
        except RequestRefused as refusal:
            retry = refusal.code == ENGINE_OVERLOADED
            connection.send(Refused(start.attempt, refusal.code, refusal.message, refusal.param, retry))
        else:
            self._live.add(key)
            attempts = self._connections.get(connection)
            if attempts is not None and self._admitting is not None:
                attempts[start.attempt] = key
                self._routes[key] = _Route(connection, start.attempt)
                connection.send(Admitted(start.attempt, prompt_tokens))
        finally:
            self._admitting = None

    async def _watch_engine(self) -> None:
        """Raise `EngineHung` when a step takes far longer than steps do."""
        loop = asyncio.get_running_loop()
        while True:
            looked_s = loop.time()
            await asyncio.sleep(STALL_LOOK_S)
            now_s = loop.time()
            if self._step_began_s is None:
                continue
            if now_s - looked_s > 4 * STALL_LOOK_S:
                # This process stood still itself; the step gets its time again.
                self._step_began_s = now_s
            elif now_s - self._step_began_s > self._step_may_take_s():
                took_s = now_s - self._step_began_s
                raise EngineHung(f"the engine made no step for {took_s:.1f} s while it had work")

    def _step_may_take_s(self) -> float:
        if self._steps < STALL_FIRST_STEPS:
            return STALL_FIRST_S
        return max(self._specification.engine_stall_timeout_s, STALL_FACTOR * max(self._step_times_s))

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
