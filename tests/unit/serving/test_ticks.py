"""Links look at replicas, and replicas at their engines, as often as it takes and no more."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.replica import STALL_LOOK_S, EngineHung, Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.actors.wire import Connection
from holdfast.core.config import EngineConfig
from holdfast.core.frames import PROTOCOL_VERSION, Hello, Start
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.core.requests import EngineRequest
from holdfast.gateway.link import LinkSettings, ReplicaLink
from tests.unit.support.memory_network import MemoryNetworkLoop

WATCHED_S = 100.0
STALL_S = 2.0


def specification(heartbeat_interval_s: float) -> ReplicaSpecification:
    return ReplicaSpecification(
        "test",
        "app.tiny.1",
        "tiny",
        "127.0.0.1",
        EngineConfig("mock"),
        5.0,
        heartbeat_interval_s=heartbeat_interval_s,
        engine_stall_timeout_s=STALL_S,
    )


async def looks(interval_s: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """How often a second a link looks at a replica that is well, whose heartbeats come every `interval_s`."""
    count = 0
    look = Liveness.look

    def counted(liveness: Liveness, now_s: float) -> Suspicion | None:
        nonlocal count
        count += 1
        return look(liveness, now_s)

    monkeypatch.setattr(Liveness, "look", counted)
    replica = Replica(specification(interval_s), MockEngine(MockSettings(), "tiny", random.Random(1)))
    _server, address = await replica.listen()
    running = asyncio.create_task(replica.run())
    settings = LinkSettings("test", "g", heartbeat_interval_s=interval_s, heartbeat_timeout_s=8 * interval_s)
    nothing = lambda *_args: None  # noqa: E731
    link = ReplicaLink("app.tiny.1", address, 8, settings, random.Random(1), nothing, nothing)
    linked = asyncio.create_task(link.run())
    await asyncio.sleep(WATCHED_S)
    assert link.ready, "heartbeats as rare as these are no reason for suspicion"
    link.retire()
    retired_s = asyncio.get_running_loop().time()
    await asyncio.sleep(0)
    await linked
    assert asyncio.get_running_loop().time() - retired_s < 0.1, "an empty link that is retired ends at once"
    running.cancel()
    await asyncio.wait([running])
    return count / WATCHED_S


@pytest.mark.parametrize(("interval_s", "a_second"), [(0.02, 20.0), (0.1, 20.0), (0.5, 4.0), (1.0, 2.0), (5.0, 2.0)])
def test_a_link_looks_twice_between_heartbeats_within_bounds(
    interval_s: float, a_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        assert runner.run(looks(interval_s, monkeypatch)) == pytest.approx(a_second, rel=0.05)


def test_an_engine_that_hangs_after_a_long_rest_is_noticed_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    sleep = asyncio.sleep

    async def counted(delay_s: float, result: None = None) -> None:
        nonlocal looked
        looked += delay_s == STALL_LOOK_S
        await sleep(delay_s, result)

    async def scenario() -> None:
        engine = MockEngine(MockSettings(itl_ms=100.0), "tiny", random.Random(1))
        replica = Replica(specification(1.0), engine)
        server, _address = await replica.listen()
        running = asyncio.create_task(replica.run())
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(lambda *_frame: None, lambda _lost: None), "127.0.0.1", port
        )
        connection.send(Hello(PROTOCOL_VERSION, "test", "g", "app.tiny.1"))
        connection.send(Start(1, EngineRequest(prompt="x", max_tokens=20)))
        await asyncio.sleep(5.0)
        worked = looked
        await asyncio.sleep(1_000.0)
        assert looked <= worked + 1, "nobody looks at an engine that has nothing to do"
        engine.hang()
        connection.send(Start(2, EngineRequest(prompt="x", max_tokens=20)))
        began_s = loop.time()
        with pytest.raises(ExceptionGroup) as raised:
            await running
        assert raised.group_contains(EngineHung)
        assert STALL_S <= loop.time() - began_s <= STALL_S + 0.5

    monkeypatch.setattr(asyncio, "sleep", counted)
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(scenario())
    assert looked > STALL_S / STALL_LOOK_S
