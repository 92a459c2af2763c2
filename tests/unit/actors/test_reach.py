"""A node that alone can't reach the log is replaced; a log that nobody reaches, or that comes back, costs no node."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from holdfast.actors.identity import CUT_OFF, LOG_KEY
from holdfast.actors.node import Superseded
from holdfast.actors.reach import LOOKS, STEADY_LOOKS, Assurances
from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus
from holdfast.core.errors import CorruptLog
from tests.unit.support.history import application
from tests.unit.support.virtual_time import now_s, virtual_time
from tests.unit.support.world import CUT_OFF_TIMEOUT_S, RunningNode, World

LOOK_S = CUT_OFF_TIMEOUT_S / LOOKS
SLACK_S = 2 * LOOK_S
"""What is left of the leader's and the node's own pauses between looks when the timeout is over, in seconds."""

LONG_S = 10 * CUT_OFF_TIMEOUT_S
REASON = "it can't reach the log and gave up its lease"


async def cluster_of(world: World, *others: str, replicas: int = 0) -> dict[str, RunningNode]:
    """Node a, which leads and takes no replicas, and others; so many replicas run on these."""
    nodes = {"a": world.node("a", slots=0)}
    await world.until(lambda state: state.leader == "a")
    nodes |= {name: world.node(name) for name in others}
    await world.until(lambda state: len(state.nodes) == len(nodes))
    if replicas:
        await world.deploy(application(replicas=replicas))
        await world.running(replicas)
    return nodes


def lost(world: World) -> list[str]:
    """The nodes that were given up, in order."""
    return [event.node for event in world.happened(ev.NodeLost) if isinstance(event, ev.NodeLost)]


def leases_of(world: World) -> dict[str, int]:
    """The nodes' keys, each with the lease that it hangs on."""
    return {item.key: item.lease for item in world.leases.list("nodes/").items}


async def gone(world: World, prefix: str) -> None:
    """Wait until a key below `prefix` goes."""
    async with contextlib.aclosing(world.leases.client().watch(prefix, after=world.leases.revision)) as changes:
        async for batch in changes:
            if any(change.value is None for change in batch):
                return


@virtual_time
async def test_a_node_that_alone_can_not_reach_the_log_is_replaced_and_what_runs_on_it_runs_on() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", replicas=2)
        cut_off, cut_s = nodes["b"], now_s()
        cut_off.log.link.cut()
        lost_s = await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST)
        assert CUT_OFF_TIMEOUT_S - LOOK_S <= lost_s - cut_s <= CUT_OFF_TIMEOUT_S + SLACK_S
        assert world.happened(ev.NodeLost) == [ev.NodeLost("b", "1", REASON)]
        await world.running(2, within_s=1.0)
        assert {replica.node for replica in world.state.replicas.values()} == {"c"}
        await asyncio.sleep(LONG_S)
        (process,) = cut_off.launcher.running
        assert process.signals == []
        assert not world.leases.list("nodes/b").items, "it takes no lease while it can't read the log"
        assert [item.key for item in world.leases.list(CUT_OFF).items] == [f"{CUT_OFF}/nodes/b/1"]


@virtual_time
async def test_a_node_that_was_given_up_and_reads_so_ends_to_come_back_as_a_new_one() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", replicas=2)
        nodes["b"].log.link.cut()
        await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST)
        nodes["b"].log.link.heal()
        with pytest.raises(ExceptionGroup) as ended:
            await nodes["b"].task
        assert ended.group_contains(Superseded)
        world.node("b", "2")
        await world.until(lambda state: state.nodes["b"].status is MemberStatus.ALIVE)
        await asyncio.sleep(LONG_S)
        assert lost(world) == ["b"]
        assert "nodes/b/2" in leases_of(world)


@virtual_time
async def test_a_replica_that_ended_on_a_node_without_the_log_is_replaced() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", replicas=2)
        nodes["b"].log.link.cut()
        nodes["b"].launcher.processes[0].ends(-9)
        await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST)
        await world.running(2, within_s=1.0)


@virtual_time
async def test_a_log_that_nobody_reaches_costs_no_node_its_lease_also_where_one_is_cut_off_first() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", replicas=2)
        before = leases_of(world)
        nodes["b"].log.link.cut()
        await asyncio.sleep(CUT_OFF_TIMEOUT_S / 2)
        world.log.stop()
        await asyncio.sleep(LONG_S)
        assert leases_of(world) == before
        nodes["b"].log.link.heal()
        world.log.start()
        await asyncio.sleep(LONG_S)
        assert lost(world) == []
        assert leases_of(world) == before


@virtual_time
async def test_a_log_that_comes_back_to_some_sooner_than_to_others_costs_no_node() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", replicas=2)
        world.log.stop()
        nodes["b"].log.link.cut()
        await asyncio.sleep(LONG_S)
        world.log.start()
        await asyncio.sleep(STEADY_LOOKS * LOOK_S - 3)
        nodes["b"].log.link.heal()
        await asyncio.sleep(LONG_S)
        assert lost(world) == []


@virtual_time
async def test_a_cut_that_is_shorter_than_the_timeout_costs_no_node() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c")
        for _ in range(5):
            nodes["b"].log.link.cut()
            await asyncio.sleep(CUT_OFF_TIMEOUT_S - LOOK_S - 1)
            nodes["b"].log.link.heal()
            await asyncio.sleep(2 * LOOK_S)
        assert lost(world) == []
        assert not world.leases.list(CUT_OFF).items


@virtual_time
async def test_where_most_nodes_are_cut_off_no_more_than_half_of_all_give_up_their_leases() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c", "d", "e", "f")
        for name in "bcdef":
            nodes[name].log.link.cut()
        await asyncio.sleep(LONG_S)
        assert len(lost(world)) == 3
        assert len(leases_of(world)) == 3
        assert len(world.leases.list(CUT_OFF).items) == 5


@virtual_time
async def test_who_hears_nothing_from_the_lease_servers_gives_nothing_up_before_they_are_back() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b")
        world.leases.stop()
        nodes["b"].log.link.cut()
        await asyncio.sleep(LONG_S)
        assert lost(world) == []
        world.leases.start()
        await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST, CUT_OFF_TIMEOUT_S + SLACK_S)


@virtual_time
async def test_a_leader_that_is_cut_off_leaves_the_lead_and_is_then_replaced_like_others() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b", "c")
        nodes["a"].log.link.cut()
        await world.until(lambda state: state.nodes["a"].status is MemberStatus.LOST, 2 * CUT_OFF_TIMEOUT_S + SLACK_S)
        assert world.state.leader in ("b", "c")
        assert lost(world) == ["a"]


@virtual_time
async def test_a_node_that_is_back_before_it_was_given_up_takes_its_lease_again() -> None:
    async with World() as world:
        nodes = await cluster_of(world, "b")
        nodes["b"].log.link.cut()
        async with asyncio.timeout(2 * CUT_OFF_TIMEOUT_S):
            await gone(world, "nodes/b")
        world.log.stop()
        await asyncio.sleep(LOOK_S)
        assert lost(world) == []
        await nodes["a"].crash()  # with what it was about to decide
        nodes["b"].log.link.heal()
        world.log.start()
        await world.until(lambda state: state.leader == "b")
        assert "nodes/b/1" in leases_of(world)
        assert not world.leases.list(CUT_OFF).items
        await asyncio.sleep(LONG_S)
        assert lost(world) == ["a"]


@virtual_time
async def test_a_log_that_can_not_be_read_on_costs_no_node_its_lease() -> None:
    async with World() as world:
        await cluster_of(world, "b", "c")
        before = leases_of(world)
        world.log.append("decisions", b"{}", "x", world.state.heads["decisions"].sequence)
        with pytest.raises(CorruptLog):
            await world.follower.reached(world.log.last_sequence)
        await asyncio.sleep(LONG_S)
        assert leases_of(world) == before


@virtual_time
async def test_the_leader_says_so_as_long_as_it_reaches_the_log() -> None:
    async with World() as world:
        await cluster_of(world, "b")
        await asyncio.sleep(2 * LOOK_S)
        (before,) = world.leases.list(LOG_KEY).items
        await asyncio.sleep(2 * LOOK_S)
        (after,) = world.leases.list(LOG_KEY).items
        assert after.mod_revision > before.mod_revision
        world.log.stop()
        await asyncio.sleep(LOOK_S)
        told = world.leases.list(LOG_KEY).items
        await asyncio.sleep(CUT_OFF_TIMEOUT_S)
        assert world.leases.list(LOG_KEY).items == told


def test_what_is_said_of_the_log_counts_from_the_first_news_to_the_last() -> None:
    assurances = Assurances(silence_max_s=5.0)
    assurances.seen(7, 100.0)
    assert assurances.steady_s() == 0, "that may be from before"
    assurances.seen(8, 102.0)
    assert assurances.steady_s() == 0
    assurances.seen(9, 106.0)
    assurances.seen(9, 107.0)
    assert assurances.steady_s() == 4


def test_a_silence_ends_what_was_said_of_the_log() -> None:
    assurances = Assurances(silence_max_s=5.0)
    for revision in range(5):
        assurances.seen(revision, 100.0 + revision)
    assert assurances.steady_s() == 3
    assurances.seen(4, 109.5)
    assert assurances.steady_s() == 0
    assurances.seen(5, 110.0)
    assert assurances.steady_s() == 0
    assurances.seen(6, 112.0)
    assert assurances.steady_s() == 2


def test_a_key_that_went_with_its_leader_is_no_news_and_the_next_leaders_is() -> None:
    assurances = Assurances(silence_max_s=5.0)
    assurances.seen(8, 100.0)
    assurances.seen(0, 101.0)
    assert assurances.steady_s() == 0
    assurances.seen(12, 102.0)
    assurances.seen(13, 104.0)
    assert assurances.steady_s() == 2
