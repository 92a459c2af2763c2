"""Real replicas and gateways' serving sides in this process, under a log written by hand.

They are connected over loopback, or, on a `MemoryNetworkLoop`, over its network.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from holdfast.actors.engines.mock import MockEngine, mock_text, parse_settings
from holdfast.actors.follower import Follower
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, ReplicaStatus
from holdfast.core.config import ApplicationConfig, EngineConfig
from holdfast.core.entries import decode_record, encode_event
from holdfast.core.events import Event
from holdfast.core.requests import EngineRequest
from holdfast.core.state import apply
from holdfast.gateway.backend import Delta, Session
from holdfast.gateway.serving import Serving
from holdfast.gateway.serving_settings import ServingSettings
from holdfast.store.memory import MemoryLogServer
from tests.unit.support.history import INFO, History

CLUSTER = "test"
PATIENCE_S = 60.0
HEARTBEAT_S = 0.02


async def eventually(predicate: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not predicate():  # noqa: ASYNC110 (what is waited for is not ours to signal)
            await asyncio.sleep(0.002)


class LocalReplica:
    """A replica that listens, with a mock engine that can be held between two steps."""

    def __init__(self, name: str, engine: MockEngine, cluster: str = CLUSTER) -> None:
        self.name = name
        self.engine = engine
        specification = ReplicaSpecification(
            cluster, name, "tiny", "127.0.0.1", EngineConfig("mock"), 5.0, heartbeat_interval_s=HEARTBEAT_S
        )
        self.replica = Replica(specification, engine)
        self.address = ""

    async def start(self) -> None:
        self._server, self.address = await self.replica.listen()
        self._running = asyncio.create_task(self.replica.run())

    async def kill(self) -> None:
        """As `kill -9`: the socket closes, connections are reset."""
        self._server.close()
        self._running.cancel()
        await asyncio.wait([self._running])
        self.cut()

    def cut(self) -> None:
        """Reset all connections; the replica itself goes on."""
        for connection in list(self.replica._peers):
            connection.abort()

    @property
    def free(self) -> bool:
        """Whether the engine holds nothing."""
        load = self.engine.load()
        return (load.running, load.waiting, load.kv_blocks_used) == (0, 0, 0)


class Site(History):
    """A log with one node, on which replicas run, and gateways that follow it. Use with `async with`."""

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryLogServer()
        self.replicas: dict[str, LocalReplica] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.fact(ev.NodeJoined("a", "host", 1, "0", 99), by="node.a")
        self.decide(ev.LeaderElected("a", "1"), epoch=1)

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for replica in self.replicas.values():
            await replica.kill()
        await asyncio.sleep(0)

    def _append(self, subject: str, event: Event) -> str:
        self.server.append(subject, encode_event(event), event.id, self.state.head(subject).sequence)
        return super()._append(subject, event)

    def read(self) -> ClusterState:
        """Take in what others have appended; the state then."""
        while (entry := self.server.entry(self.state.sequence + 1)) is not None:
            self.state = apply(self.state, decode_record(entry))
        return self.state

    def deploy(self, application: ApplicationConfig) -> None:
        self.decide(ev.ApplicationDeployed(application))

    async def replica(
        self, *, engine: MockEngine | None = None, name: str | None = None, **arguments: Any
    ) -> LocalReplica:
        """Start a replica of app.tiny and tell the log that it runs."""
        name = name or f"app.tiny.{len(self.replicas) + 1}"
        replica = LocalReplica(name, engine or engine_of(**arguments))
        await replica.start()
        self.replicas[name] = replica
        self.announce(name, replica.address)
        return replica

    def announce(self, name: str, address: str) -> None:
        """The log says that a replica runs at the address."""
        self.decide(ev.ReplicaPlaced(name, "app", "tiny", "a", "1"))
        self.fact(ev.ReplicaStarted(name, "a", 7), by="node.a")
        self.fact(ev.ReplicaReady(name, "a", address, INFO), by="node.a")
        assert self.state.replicas[name].status is ReplicaStatus.RUNNING

    def exits(self, name: str) -> None:
        """The log says that a replica has ended."""
        self.fact(ev.ReplicaExited(name, "a", 7, None, "SIGKILL", False, ""), by="node.a")

    async def gateway(self, name: str = "g", *, ready: int | None = None, **settings: Any) -> Serving:
        """Start a gateway's serving side, and wait until it reaches `ready` replicas (all, if not told)."""
        follower = Follower(self.server.client(name))
        serving = Serving(follower, CLUSTER, name, ServingSettings(**settings), random.Random(name))
        self._tasks += [asyncio.create_task(follower.run()), asyncio.create_task(serving.run())]
        await follower.catch_up()
        await eventually(lambda: replicas_ready(serving) == (len(self.replicas) if ready is None else ready))
        return serving


def hasten(replica: LocalReplica) -> None:
    """Its engine goes as fast as it can from now on: what was seen while a stream ran need not wait for its end."""
    replica.engine._settings = msgspec.structs.replace(replica.engine._settings, itl_ms=0.0)


def engine_of(**arguments: Any) -> MockEngine:
    """A mock engine."""
    return MockEngine(parse_settings(arguments), "tiny", random.Random(1))


def replicas_ready(serving: Serving) -> int:
    """How many replicas of the model the gateway can use now."""
    models = serving.health().details["models"]
    return int(models["tiny"]["replicas_ready"]) if "tiny" in models else 0


def ask(prompt: str = "tell me", tokens: int = 12, **more: Any) -> EngineRequest:
    """A request."""
    return EngineRequest(prompt=prompt, max_tokens=tokens, **more)


@contextlib.asynccontextmanager
async def opened(
    serving: Serving, *choices: EngineRequest, stops: list[str] | None = None, timeout_s: float | None = None
) -> AsyncIterator[Session]:
    """An open session on the model."""
    async with serving.open("tiny", choices, stops=stops or [], timeout_s=timeout_s) as session:
        yield session


class Answer:
    """What a client got: texts, counts and finish reasons by choice."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.counts: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}

    def add(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.texts.setdefault(delta.choice, "")
            self.texts[delta.choice] += "".join(piece.text for piece in delta.pieces)
            self.counts.setdefault(delta.choice, []).extend(piece.count for piece in delta.pieces)
            if delta.finish_reason is not None:
                assert delta.choice not in self.reasons, "a choice ends once"
                self.reasons[delta.choice] = delta.finish_reason

    async def read(self, session: Session, *, tokens: int | None = None) -> Answer:
        """Read to the end, or until the first choice has got so many tokens."""
        async with asyncio.timeout(PATIENCE_S):
            while tokens is None or len(self.counts.get(0, [])) < tokens:
                deltas = await session.next()
                if not deltas:
                    break
                self.add(deltas)
        return self

    def check(self, *choices: EngineRequest) -> None:
        """Exactly what the mock engine says for these, each token once."""
        for number, choice in enumerate(choices):
            assert self.texts[number] == mock_text(choice, choice.max_tokens)
            assert self.counts[number] == list(range(1, choice.max_tokens + 1))
            assert self.reasons[number] == "length"


async def answer_to(serving: Serving, *choices: EngineRequest, **how: Any) -> Answer:
    """Ask, and read to the end."""
    async with opened(serving, *choices, **how) as session:
        return await Answer().read(session)
