"""A gateway's link to a replica that is well, while the gateway itself is held up: no reason for suspicion."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.actors.engines.mock import MockEngine, MockSettings
from holdfast.actors.replica import Replica
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.config import EngineConfig
from holdfast.core.liveness import Suspicion
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.link_settings import LinkSettings
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World

LASTS_S = 60.0


def suspicions(seed: int, interval_s: float, pauses: list[tuple[float, float]]) -> list[Suspicion]:
    """What a gateway suspects its replica of when it is frozen at these times for so long (seconds)."""
    world, found, ports = World(str(seed)), [], []
    told = ReplicaSpecification(
        "test", "app.tiny.1", "tiny", "r", EngineConfig("mock"), 5.0, heartbeat_interval_s=interval_s
    )

    async def replica(process: SimProcess) -> None:
        served = Replica(told, MockEngine(MockSettings(), "tiny", process.rng))
        _, address = await served.listen()
        ports.append(address)
        await served.run()

    async def gateway(process: SimProcess) -> None:
        await asyncio.sleep(1.0)
        settings = LinkSettings("test", "g", heartbeat_interval_s=interval_s, heartbeat_timeout_s=6 * interval_s)
        link = ReplicaLink(
            "app.tiny.1",
            ports[0],
            8,
            settings,
            process.rng,
            lambda _link: None,
            lambda _runs, _cause: None,
            lambda _link, suspicion, _silence_s, _streams: found.append(suspicion),
        )
        await link.run()

    world.spawn("r", "r", replica)
    process = world.spawn("g", "g", gateway)
    for at_s, lasts_s in pauses:
        world.scheduler.call_at(at_s, process.freeze)
        world.scheduler.call_at(at_s + lasts_s, process.thaw)
    world.scheduler.run(LASTS_S)
    assert ports, "the replica was there"
    world.close()
    return found


@pytest.mark.parametrize("interval_s", [0.1, 0.5, 1.0, 1.5])
def test_who_stood_still_itself_suspects_nobody(interval_s: float) -> None:
    for seed in range(10):
        rng = random.Random(f"{seed} {interval_s}")
        pauses = [
            (5.0 + 6.0 * number + rng.random(), rng.choice((0.3, 1.0, 3.0)) * rng.random()) for number in range(9)
        ]
        assert suspicions(seed, interval_s, pauses) == [], (seed, pauses)
