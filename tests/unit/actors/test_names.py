"""A name belongs to one machine at a time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from holdfast.actors.leasing import NameTaken
from tests.unit.support.virtual_time import virtual_time
from tests.unit.support.world import RunningNode, World


def on_host(node: RunningNode, host: str) -> RunningNode:
    """The node, as if on another machine. It has not begun to run yet."""
    identity = msgspec.structs.replace(node._node._identity, host=host)
    node._node._identity = identity
    return node


@pytest.mark.parametrize("lease_servers", ["there", "away"])
def test_a_name_that_lives_on_another_machine_is_refused_where_that_can_be_seen(lease_servers: str) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            first = world.node("a", "1")
            await world.until(lambda state: "a" in state.nodes)
            await asyncio.sleep(1)
            if lease_servers == "away":
                world.leases.stop()
            second = on_host(world.node("a", "2"), "elsewhere")
            if lease_servers == "away":
                await world.until(lambda state: state.nodes["a"].incarnation == "2")
                return
            await asyncio.wait([second.task], timeout=30)
            error = second.task.exception()
            assert isinstance(error, ExceptionGroup)
            told, rest = error.split(NameTaken)
            assert rest is None
            assert told is not None
            assert "node a runs on host host already (process 7)" in str(told.exceptions[0])
            await asyncio.sleep(30)
            assert not first.task.done()
            assert world.state.nodes["a"].incarnation == "1"

    check()


@virtual_time
async def test_a_name_whose_lease_has_ended_may_move_to_another_machine() -> None:
    async with World() as world:
        first = world.node("a", "1")
        await world.until(lambda state: "a" in state.nodes)
        await first.crash()
        await asyncio.sleep(2 * world.ttl_s)
        on_host(world.node("a", "2"), "elsewhere")
        await world.until(lambda state: state.nodes["a"].incarnation == "2")
