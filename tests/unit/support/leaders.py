"""Who leads the nodes of a test, and how their processes' ends are told."""

from __future__ import annotations

from collections.abc import Awaitable

from holdfast.actors.ended import end_leases
from holdfast.actors.identity import Holder
from holdfast.core import events as ev
from tests.unit.support.world import World

SLACK_S = 1.0
"""What looking at leases, and waiting for the leader key, may take on top of a TTL, in seconds."""


async def led_by(world: World, node: str, within_s: float = 60.0) -> float:
    """Wait until the node leads; when that was."""
    return await world.until(lambda state: state.leader == node, within_s)


def check_one_leader_per_epoch(world: World) -> None:
    """Epochs grow, each begins with its election, and nobody else decides in it."""
    epoch, writer = 0, ("", "")
    for record in world.records():
        event = record.event
        if isinstance(event.payload, ev.LeaderElected):
            assert event.epoch > epoch
            epoch, writer = event.epoch, (event.writer, event.incarnation)
        if isinstance(event.payload, ev.Decision):
            assert (event.epoch, event.writer, event.incarnation) == (epoch, *writer)
    assert world.state.ignored == 0


def told_ended(world: World, name: str, pid: int = 7) -> Awaitable[list[Holder]]:
    """As the supervisor of that node's process on that host."""
    return end_leases(world.leases.client(), "node", name, lambda holder: (holder.host, holder.pid) == ("host", pid))
