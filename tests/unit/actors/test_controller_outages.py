"""Leaders whose log or lease servers are away, late or have lost something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from holdfast.actors.controller import POLL_S, READ_ON_MAX_S
from holdfast.actors.specification import Ready
from holdfast.core import events as ev
from holdfast.core.cluster import ReplicaStatus
from holdfast.core.ports import LogEntry
from tests.unit.support.history import INFO, application
from tests.unit.support.leaders import SLACK_S, check_one_leader_per_epoch, led_by
from tests.unit.support.virtual_time import now_s, virtual_time
from tests.unit.support.world import CUT_OFF_TIMEOUT_S, World


@virtual_time
async def test_a_leader_that_alone_can_not_read_the_log_leaves_the_lead_to_one_that_can() -> None:
    async with World() as world:
        cut_off = world.node("a", slots=1)
        await led_by(world, "a")
        other = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await world.deploy(application(replicas=2))
        await world.running(2)
        cut_off.log.link.cut()
        cut_s = now_s()
        next(iter(other.launcher.processes)).ends(-9)
        assert await led_by(world, "b") - cut_s < CUT_OFF_TIMEOUT_S + SLACK_S
        await world.running(2)
        await asyncio.sleep(10 * CUT_OFF_TIMEOUT_S)
        assert len(world.happened(ev.LeaderElected)) == 2, "it does not come for the key while it can't read"
        cut_off.log.link.heal()
        await asyncio.sleep(60)
        assert world.state.leader == "b"
        (deposed,) = world.happened(ev.LeaderDeposed)
        assert isinstance(deposed, ev.LeaderDeposed)
        assert deposed.node == "a"
        assert "could not read the log" in deposed.reason
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_leader_without_log_and_lease_servers_leads_on_once_they_are_back() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        world.log.stop()
        world.leases.stop()
        await asyncio.sleep(10 * CUT_OFF_TIMEOUT_S)
        world.log.start()
        await asyncio.sleep(10)
        await world.deploy(application(replicas=1))
        await world.running(1, within_s=1.0)
        assert len(world.happened(ev.LeaderElected)) == 1


@virtual_time
async def test_a_log_that_nobody_can_read_for_long_costs_no_node_and_is_led_again_when_it_is_back() -> None:
    async with World() as world:
        for name in "ab":
            world.node(name)
        await world.until(lambda state: len(state.nodes) == 2 and state.leader is not None)
        await world.deploy(application(replicas=2))
        await world.running(2)
        epoch = world.state.epoch
        for _ in range(3):
            world.log.stop()
            await asyncio.sleep(10 * CUT_OFF_TIMEOUT_S)
            world.log.start()
            await world.until(lambda state, before=epoch: state.epoch > before, 20)  # type: ignore[misc]
            epoch = world.state.epoch
        assert not world.happened(ev.NodeLost, ev.ReplicaExited)
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_leader_that_reads_what_it_missed_decides_by_the_end_of_it() -> None:
    """A new replica got ready and broke down while it could not read: the old one must not be stopped in between."""
    async with World() as world:
        leader = world.node("a", slots=1)
        follow = leader.log.follow

        async def one_at_a_time(after: int = 0) -> AsyncGenerator[LogEntry, None]:
            async for entry in follow(after):
                yield entry
                await asyncio.sleep(0.01)

        leader.log.follow = one_at_a_time  # type: ignore[method-assign]
        await led_by(world, "a")
        other = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await world.deploy(application())
        await world.running(1)
        other.launcher.script = lambda process: None
        await world.deploy(application(version=1))
        await world.until(lambda state: [replica.pid != 0 for replica in state.replicas.values()] == [True, True])
        leader.log.link.cut()
        newer = other.launcher.processes[-1]
        newer.says(Ready("127.0.0.1:9", INFO))
        newer.ends(1)
        name = newer.specification.replica
        await world.until(lambda state: state.replicas[name].status is ReplicaStatus.EXITED)
        leader.log.link.heal()
        await asyncio.sleep(POLL_S)
        assert len(world.happened(ev.ReplicaReplaced)) == 1
        assert not world.happened(ev.ReplicaStopOrdered)


@virtual_time
async def test_a_leader_whose_log_lost_what_it_was_known_to_hold_decides_all_the_same() -> None:
    async with World() as world:
        leader = world.node("a")
        follow = leader.log.follow

        async def says_too_much(after: int = 0) -> AsyncGenerator[LogEntry, None]:
            async for entry in follow(after):
                yield msgspec.structs.replace(entry, pending=1000)

        leader.log.follow = says_too_much  # type: ignore[method-assign]
        await led_by(world, "a")
        await world.deploy(application())
        await world.running(1, within_s=5 * READ_ON_MAX_S)


@virtual_time
async def test_a_leader_waits_once_for_what_its_log_lost() -> None:
    async with World() as world:
        leader = world.node("a")
        follow, to_come = leader.log.follow, [1000]

        async def says_too_much_once(after: int = 0) -> AsyncGenerator[LogEntry, None]:
            async for entry in follow(after):
                yield msgspec.structs.replace(entry, pending=to_come.pop()) if to_come else entry

        leader.log.follow = says_too_much_once  # type: ignore[method-assign]
        await led_by(world, "a")
        await world.deploy(application())
        await world.running(1, within_s=5 * READ_ON_MAX_S)
        began_s = now_s()
        await world.deploy(application(version=1))
        await world.until(lambda state: [replica.revision for replica in state.replicas.values()] == [2])
        await world.running(1)
        assert now_s() - began_s < READ_ON_MAX_S


@virtual_time
async def test_a_leader_goes_on_deciding_while_the_lease_servers_are_away() -> None:
    async with World() as world:
        node = world.node("a")
        await led_by(world, "a")
        world.leases.stop()
        await asyncio.sleep(60)
        await world.deploy(application(replicas=2))
        await world.running(2, within_s=1.0)
        node.launcher.processes[0].ends(-9)
        await world.until(lambda state: "app.tiny.3" in state.replicas, within_s=1.0)
        world.leases.start()
        await asyncio.sleep(60)
        assert len(world.happened(ev.LeaderElected)) == 1
        assert not world.happened(ev.NodeLost)


@virtual_time
async def test_an_election_waits_for_a_log_that_is_away() -> None:
    async with World() as world:
        first = world.node("a")
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        world.log.stop()
        await first.crash()
        await asyncio.sleep(120)
        world.log.start()
        back_s = now_s()
        assert await led_by(world, "b") - back_s < 20 + SLACK_S
        check_one_leader_per_epoch(world)
