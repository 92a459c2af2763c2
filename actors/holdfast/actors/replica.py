"""A replica: one engine, stepped in a loop, its tokens sent to the gateways that asked for them.

Prompts are read beside the steps, so that a long one holds up nobody. Everything that one step made for one
gateway travels in one frame. A gateway that does not read does not hold back the others: what it is owed is
buffered, and when that is too much its connection is cut.

Streams that have names outlive their gateway (see `held`). What a gateway took elsewhere while it did not hear from
this replica is fenced when it is back: dropped, and told to the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from holdfast.actors.devices import watch_devices
from holdfast.actors.engine_watch import EngineWatch
from holdfast.actors.engines.base import ENGINE_OVERLOADED, Engine, StepOutput
from holdfast.actors.health import HealthChecks, warm_up
from holdfast.actors.held import HeldStreams, Peer, until_s
from holdfast.actors.pacing import PaceMeter
from holdfast.actors.replica_metrics import ReplicaMetrics
from holdfast.actors.specification import Fenced, ReplicaSpecification, Report
from holdfast.actors.wire import Connection
from holdfast.core.barren import BarrenMeter
from holdfast.core.errors import HoldfastError, InvalidConfig, PeerViolation, RequestRefused, WrongReplica
from holdfast.core.frames import (
    PROTOCOL_VERSION,
    UNKNOWN_STREAM,
    Admitted,
    Attach,
    Fence,
    Find,
    Found,
    FromGateway,
    Heartbeat,
    Hello,
    Ping,
    Pulse,
    Refused,
    Release,
    Start,
    Stop,
    Welcome,
    decode_from_gateway,
)
from holdfast.core.pace import Pace

if TYPE_CHECKING:
    from holdfast.actors.replica_traces import ReplicaTraces
    from holdfast.actors.spans import Span

CONGESTION_WAIT_S = 0.05
"""How long a step waits for a gateway to read, when none of them does (seconds)."""

STARTS_WAITING_MAX = 4096
"""Attempts that may wait for their prompts to be read; more are refused, and go elsewhere."""

CONNECTIONS_MAX = 1024
HELLO_TIMEOUT_S = 2.0
"""So many connections at once, and so long until each has said Hello (seconds)."""

logger = logging.getLogger(__name__)


class EngineBroken(HoldfastError):
    """What the engine gave for a step makes no sense: nothing that it says can be trusted any more."""


def _check(output: StepOutput) -> None:
    """Raises `EngineBroken` unless the step's lists are as long as each other: a token would go to another stream."""
    lengths = (len(output.keys), len(output.positions), len(output.tokens), len(output.texts))
    logprobs = len(output.keys) if output.logprobs is None else len(output.logprobs)
    if lengths != (logprobs,) * 4:
        raise EngineBroken(
            "a step of the engine has {} keys, {} positions, {} tokens, {} texts and {} log probabilities".format(
                *lengths, logprobs
            )
        )


class _Arrived(NamedTuple):
    """An attempt that waits for its prompt to be read, since `at_s`; at `until_s` its request is over (loop's time).

    `span` is its span, if it is traced.
    """

    peer: Peer
    start: Start
    until_s: float
    at_s: float
    span: Span | None


class Replica:
    """Serves one engine on the wire until told to stop. What the log should know goes to `report`."""

    def __init__(
        self,
        specification: ReplicaSpecification,
        engine: Engine,
        report: Callable[[Report], None] = lambda _report: None,
        metrics: ReplicaMetrics | None = None,
        traces: ReplicaTraces | None = None,
    ) -> None:
        self._specification = specification
        self._engine = engine
        self._report = report
        self._peers: dict[Connection, Peer] = {}
        self._probes: dict[Connection, Peer] = {}
        self._held = HeldStreams()
        self._pace = PaceMeter()
        self._barren = BarrenMeter()
        self._fenced: Counter[str] = Counter()
        self._starts: deque[_Arrived] = deque()
        self._admitting: tuple[Peer, int] | None = None
        self._arrived = asyncio.Event()
        self._live: set[int] = set()
        longest_s = specification.engine_first_step_timeout_s
        self._engine_watch = EngineWatch(specification.engine_stall_timeout_s, longest_s)
        self._admission_watch = EngineWatch(longest_s, longest_s, "the engine did not take a request in for {:.1f} s")
        self._token_s = asyncio.get_running_loop().time()
        self._work = asyncio.Event()
        self._sockets = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._keys = 0
        self._draining = False
        self._dismissed = False
        self._traces = traces
        self._warming = False
        self._checks = HealthChecks(engine, specification, report)
        self.metrics = metrics or ReplicaMetrics(specification.replica, specification.model)
        self.metrics.show(engine, lambda: len(self._peers), lambda: len(self._held.shelf))

    @property
    def reasons(self) -> list[str]:
        """Why it takes nothing new, or serves badly; empty while it is well."""
        found = ["the engine is making its first tokens"] if self._warming else []
        found += ["the replica is draining"] if self._draining else []
        return found + ([self._checks.failing] if self._checks.failing else [])

    async def warm_up(self) -> bool:
        """Let the engine make its first tokens before anybody asks for one. Raises `NoToken`."""
        self._warming = True
        if await warm_up(self._engine, self._specification):
            self._engine_watch.warmed_up()
        self._warming = False
        return True

    async def listen(self) -> tuple[asyncio.Server, str]:
        """Open the replica's socket; the server and its address. Raises `InvalidConfig` where there can't be one."""
        host = self._specification.host
        try:
            server = await asyncio.get_running_loop().create_server(self._accept, host, 0)
        except OSError as error:
            raise InvalidConfig(
                f"can't listen on {host} ({error.strerror or error}): HOLDFAST_NODE__HOST names it"
            ) from error
        host, port = server.sockets[0].getsockname()[:2]
        return server, f"{host}:{port}"

    async def run(self) -> None:
        """Step the engine and send heartbeats until cancelled. Raises whatever breaks the engine."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._admit_loop())
            group.create_task(self._step_loop())
            group.create_task(self._heartbeat_loop())
            group.create_task(self._engine_watch.run())
            group.create_task(self._admission_watch.run())
            group.create_task(self._checks.run())
            group.create_task(watch_devices(self._engine, self._specification.xid_file, self._specification.replica))

    async def drain(self) -> None:
        """Take nothing new, and wait until all streams ended or went elsewhere.

        Those without a gateway, which no client will find here any more, are dropped.
        """
        self._draining = True
        self._held.drop_detached()
        self._work.set()
        self._beat()
        await self._idle.wait()

    def dismiss(self) -> None:
        """Ask the gateways to take the streams elsewhere. They go on here until they have been."""
        if not self._dismissed:
            self._draining = self._dismissed = True
            self._beat()

    async def abandoned(self) -> None:
        """Wait until no gateway is connected."""
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
        if self._peer_of(connection) is None:
            connection.abort()

    def _peer_of(self, connection: Connection) -> Peer | None:
        """Who said Hello on it: a gateway, or a probe."""
        return self._peers.get(connection) or self._probes.get(connection)

    def _on_body(self, connection: Connection, body: bytes) -> None:
        frame = decode_from_gateway(body)
        peer = self._peer_of(connection)
        if isinstance(frame, Hello):
            self._greet(connection, frame)
        elif peer is None:
            raise WrongReplica("a gateway sent work before its Hello")
        else:
            self._on_frame(peer, frame)

    def _on_frame(self, peer: Peer, frame: FromGateway) -> None:
        if isinstance(frame, Start):
            self._enqueue(peer, frame)
        elif isinstance(frame, Ping):
            peer.heard = frame.number
            if peer.connection in self._probes:
                self._tell_pulse(peer)
        elif isinstance(frame, Stop):
            self._stop(peer, frame.attempt)
        elif isinstance(frame, Fence):
            self._fence(peer, frame)
        elif isinstance(frame, Release):
            if self._draining or not self._held.release(peer, frame.attempt, peer.connection.loop.time()):
                self._stop(peer, frame.attempt)
        elif isinstance(frame, Find):
            held = self._held.find(frame.stream)
            found = Found(frame.question, held.ordinal, len(held.accepted)) if held else Found(frame.question, 0, 0)
            peer.connection.send(found)
        elif isinstance(frame, Attach):
            self._attach(peer, frame)

    def _attach(self, peer: Peer, attach: Attach) -> None:
        due_s = until_s(attach.timeout_s, peer.connection.loop.time())
        if not self._held.attach(peer, attach.attempt, attach.stream, attach.ordinal, due_s):
            message = "the replica does not hold the stream"
            peer.connection.send(Refused(attach.attempt, UNKNOWN_STREAM, message, None, True))

    def _greet(self, connection: Connection, hello: Hello) -> None:
        mine = (PROTOCOL_VERSION, self._specification.cluster, self._specification.replica)
        theirs = (hello.protocol, hello.cluster, hello.replica)
        if mine != theirs:
            raise WrongReplica(f"gateway {hello.gateway} looks for {theirs}, this is {mine}")
        if self._peer_of(connection) is not None:
            raise PeerViolation(f"gateway {hello.gateway} said Hello twice")
        (self._probes if hello.probe else self._peers)[connection] = Peer(connection, hello.gateway)
        connection.introduced()
        connection.send(Welcome(PROTOCOL_VERSION, self._specification.replica, self._engine.info))
        if hello.probe:
            return
        self._deserted.clear()
        connection.send(Heartbeat(self._engine.load(), self._draining, 0, self._dismissed, self._pace_now()))

    def _enqueue(self, peer: Peer, start: Start) -> None:
        if self._draining or len(self._starts) >= STARTS_WAITING_MAX:
            reason = "the replica is draining" if self._draining else "too many streams wait for the replica"
            peer.connection.send(Refused(start.attempt, "replica_unavailable", reason, None, True))
            self.metrics.turned_away(0.0, busy=True)
            return
        self._idle.clear()
        now_s = peer.connection.loop.time()
        span = self._traces.arrived(start) if self._traces is not None else None
        self._starts.append(_Arrived(peer, start, until_s(start.timeout_s, now_s), now_s, span))
        self._arrived.set()

    def _stop(self, peer: Peer, attempt: int) -> None:
        if self._admitting == (peer, attempt):
            self._admitting = None
        if not self._held.stop(peer, attempt):
            self._withdraw(lambda one: one.peer is peer and one.start.attempt == attempt)
        self._work.set()

    def _fence(self, peer: Peer, fence: Fence) -> None:
        """What the gateway took elsewhere is no business of ours any more; how much that was goes to the log."""
        running = self._held.fence(peer, fence.attempts, fence.streams)
        waiting = set(fence.attempts)
        if self._admitting is not None and self._admitting[0] is peer and self._admitting[1] in waiting:
            self._admitting = None
        self._withdraw(lambda one: one.peer is peer and one.start.attempt in waiting)
        if running:
            self._fenced[peer.gateway] += running
        self._work.set()

    def _on_lost(self, connection: Connection) -> None:
        """The gateway is gone; its streams go on if they have names."""
        self._sockets -= 1
        peer = self._peers.pop(connection, None) or self._probes.pop(connection, None)
        if peer is None:
            return
        self._held.lost(peer, connection.loop.time())
        if self._draining:
            self._held.drop_detached()
        self._withdraw(lambda one: one.peer is peer)
        self._work.set()
        if not self._peers:
            self._deserted.set()

    def _withdraw(self, unwanted: Callable[[_Arrived], bool]) -> None:
        """Forget these of the attempts that wait."""
        arrived, self._starts = self._starts, deque()
        for one in arrived:
            if not unwanted(one):
                self._starts.append(one)
            elif self._traces is not None and one.span is not None:
                self._traces.withdrawn(one.span)

    # --- the engine -------------------------------------------------------------------------------------

    async def _admit_loop(self) -> None:
        """Let the engine take in attempts, one after the other, while it steps those that it has."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._starts:
                await self._admit(self._starts.popleft())
                self._work.set()

    async def _step_loop(self) -> None:
        live = self._live
        loop = asyncio.get_running_loop()
        while True:
            for key in live - self._held.by_key.keys():
                self._engine.drop(key)
                live.discard(key)
                self._barren.dropped()
                self._pace.left(key, loop.time())
                if self._traces is not None:
                    self._traces.dropped(key)
            if not live:
                if not self._starts and self._admitting is None:
                    self._idle.set()
                self._engine_watch.rests()
                self._barren.rest()
                await self._work.wait()
                self._work.clear()
                continue
            began_s = loop.time()
            self._engine_watch.begins(began_s)
            self._barren.begins(began_s, self._engine.load)
            output = await self._engine.step()
            _check(output)
            self.metrics.stepped(self._engine_watch.ended(loop.time()), len(output.tokens))
            if output.keys or output.finished:
                self._barren.bore()
            else:
                self._barren.bore_nothing(self._engine.load())
            if self._traces is not None:
                self._traces.stepped(output)
            self._pace.stepped(output.keys, loop.time())
            await self._deliver(output)
            for key, _reason in output.finished:
                live.discard(key)
                self._pace.left(key, loop.time())

    async def _admit(self, arrived: _Arrived) -> None:
        """Let the engine take the attempt in, or tell why not."""
        peer, start = arrived.peer, arrived.start
        self._keys += 1
        key = self._keys
        self._admitting = (peer, start.attempt)
        try:
            prompt_tokens = await self._read_prompt(key, arrived)
        except RequestRefused as refusal:
            retry = refusal.code == ENGINE_OVERLOADED
            peer.connection.send(Refused(start.attempt, refusal.code, refusal.message, refusal.param, retry))
        else:
            self._live.add(key)
            wanted = self._peer_of(peer.connection) is not None and self._admitting is not None
            if wanted and self._held.begin(key, peer, start, prompt_tokens, arrived.until_s):
                peer.connection.send(Admitted(start.attempt, prompt_tokens))
        finally:
            self._admitting = None

    async def _read_prompt(self, key: int, arrived: _Arrived) -> int:
        """Have the engine take it in, and note how that went; as `Engine.admit`."""
        span, traces, now_s = arrived.span, self._traces, asyncio.get_running_loop().time
        traced = traces.during(span) if traces is not None and span is not None else contextlib.nullcontext()
        try:
            with traced, self._admission_watch.once():
                prompt_tokens = await self._engine.admit(key, arrived.start.request)
        except RequestRefused as refusal:
            if arrived.peer.connection not in self._probes:
                self.metrics.turned_away(now_s() - arrived.at_s, busy=refusal.code == ENGINE_OVERLOADED)
            if traces is not None and span is not None:
                traces.refused(span, refusal.code)
            raise
        self._barren.admitted(self._engine.load)
        if arrived.peer.connection not in self._probes:
            self.metrics.admitted(now_s() - arrived.at_s, prompt_tokens)
            self._pace.began(key, arrived.at_s)
        if traces is not None and span is not None:
            traces.admitted(key, span, prompt_tokens, now_s() - arrived.at_s)
        return prompt_tokens

    async def _deliver(self, output: StepOutput) -> None:
        if output.tokens:
            self._token_s = asyncio.get_running_loop().time()
        peers = len(self._peers) + sum(bool(probe.attempts) for probe in self._probes.values())
        for connection, frame in self._held.deliver(output, peers).items():
            connection.send(frame)
        if output.finished:
            self._held.finish(output.finished, asyncio.get_running_loop().time())
        if self._peers and all(connection.congested for connection in self._peers):
            # Nobody reads as fast as we write. One who does not read must not hold back one who does.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONGESTION_WAIT_S):
                    await next(iter(self._peers)).drained()

    async def _heartbeat_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._specification.heartbeat_interval_s)
            self._beat()
            if self._held.expire(loop.time(), crowded=self._engine.load().waiting > 0):
                self._work.set()
            for gateway, streams in self._fenced.items():
                self._report(Fenced(gateway, streams))
            self._fenced.clear()

    def _beat(self) -> None:
        load, pace = self._engine.load(), self._pace_now()
        barren = self._barren.tell(asyncio.get_running_loop().time())
        for connection, peer in list(self._peers.items()):
            connection.send(Heartbeat(load, self._draining, peer.heard, self._dismissed, pace, barren))

    def _pace_now(self) -> Pace:
        gateways = sum(bool(peer.attempts) for peer in self._peers.values())
        return self._pace.pace(gateways, asyncio.get_running_loop().time())

    def _tell_pulse(self, probe: Peer) -> None:
        now_s = probe.connection.loop.time()
        barren = self._barren.tell_node(now_s)
        probe.connection.send(Pulse(probe.heard, self._engine.load(), self._draining, now_s - self._token_s, barren))
