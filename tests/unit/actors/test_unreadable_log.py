"""A node that can't read the log any more keeps what runs, and neither acts nor leads."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast.actors.identity import LEADER_KEY
from holdfast.core.errors import CorruptLog, UnknownEventVersion
from tests.unit.support.history import application
from tests.unit.support.virtual_time import virtual_time
from tests.unit.support.world import World


def stray(world: World, subject: str, data: bytes = b"hello") -> int:
    """What is no event of ours lands in the log; its sequence."""
    last = world.log.last_on(subject)
    return world.log.append(subject, data, f"stray-{world.log.last_sequence}", last.sequence if last else 0)


@pytest.mark.parametrize("subject", ["decisions", "facts.operator.stray", "facts.node.a"])
def test_a_node_keeps_its_replicas_and_leaves_the_lead(subject: str, caplog: pytest.LogCaptureFixture) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            node = world.node("a")
            await world.deploy(application(replicas=2))
            await world.running(2)
            sequence = stray(world, subject)
            await asyncio.sleep(60)
            assert len(node.launcher.running) == 2
            assert not node.task.done()
            assert f"beyond sequence {sequence - 1}" in caplog.text
            assert "neither acts nor leads" in caplog.text
            keys = [item.key for item in world.leases.list("").items]
            assert keys == ["nodes/a/1"], "alive, and not leading"
            node.launcher.processes[0].ends(1)
            await asyncio.sleep(60)
            assert not node.task.done()
            assert len(node.launcher.running) == 1
            await node.leave()
            assert not node.launcher.running

    with caplog.at_level(logging.WARNING):
        check()


@virtual_time
async def test_a_node_that_could_not_resign_does_so_later() -> None:
    async with World() as world:
        node = world.node("a")
        await world.until(lambda state: state.leader == "a")
        world.leases.stop()
        stray(world, "facts.operator.stray")
        await asyncio.sleep(1)
        world.leases.start()
        await asyncio.sleep(60)
        assert not world.leases.list(LEADER_KEY).items
        assert not node.task.done()


@pytest.mark.parametrize(
    ("data", "error"), [(b"hello", CorruptLog), (b'{"schema": 99}', UnknownEventVersion)], ids=["garbage", "newer"]
)
def test_a_node_that_starts_on_such_a_log_ends_at_once(data: bytes, error: type[Exception]) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            sequence = stray(world, "facts.operator.stray", data)
            node = world.node("a")
            await asyncio.wait([node.task], timeout=5)
            ending = node.task.exception()
            assert isinstance(ending, ExceptionGroup)
            told, rest = ending.split(error)
            assert told is not None
            assert rest is None
            assert f"sequence {sequence}" in str(told.exceptions[0])

    check()
