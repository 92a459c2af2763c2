"""Pipes of simulated replicas: they keep what comes before anybody reads."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import msgspec

from holdfast.actors import replica_main
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.config import EngineConfig
from holdfast.simulations.cluster.replicas import RunningReplica
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World


def test_an_order_that_a_node_gives_right_after_the_launch_is_read_behind_the_specification() -> None:
    world, read, ready = World("seed"), list[bytes](), list[RunningReplica]()
    specification = msgspec.json.encode(ReplicaSpecification("test", "r", "tiny", "h", EngineConfig("mock"), 5.0))

    async def serves(_channel: Any, stdin: asyncio.StreamReader, *_more: Any) -> int:
        read.extend([await stdin.readline() for _ in range(3)])
        return 0

    async def node(process: SimProcess) -> None:
        replica = RunningReplica("r", process, 0.0, History())
        ready.append(replica)
        child = world.spawn("r", "h", lambda process: replica.main(process, specification))
        child.call(replica._feed, b"order\n")
        await asyncio.sleep(0.1)
        child.call(replica._feed, b"another\n")

    with patch.object(replica_main, "run", serves):
        world.spawn("n", "h", node)
        world.scheduler.run(1.0)
    world.close()
    assert read == [specification + b"\n", b"order\n", b"another\n"]
