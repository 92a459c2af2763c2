"""A link looks at its replica as often as its heartbeats ask for, and notices at once what it is told."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.config import EngineConfig
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.gateway.link import LinkSettings, ReplicaLink
from tests.unit.support.memory_network import MemoryNetworkLoop

WATCHED_S = 100.0


async def looks(interval_s: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """How often a second a link looks at a replica that is well, whose heartbeats come every `interval_s`."""
    count = 0
    look = Liveness.look

    def counted(liveness: Liveness, now_s: float) -> Suspicion | None:
        nonlocal count
        count += 1
        return look(liveness, now_s)

    monkeypatch.setattr(Liveness, "look", counted)
    specification = ReplicaSpecification(
        "test", "app.tiny.1", "tiny", "127.0.0.1", EngineConfig("mock"), 5.0, heartbeat_interval_s=interval_s
    )
    replica = Replica(specification, MockEngine(MockSettings(), "tiny", random.Random(1)))
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
