"""Who is gone is given up, in time and on good evidence, and nobody who is there."""

from __future__ import annotations

import asyncio
import itertools

from holdfast.actors.writer import FactWriter
from holdfast.core import events as ev
from holdfast.core.cluster import LOSS_INTERVAL_S, MemberStatus
from holdfast.core.reconcile import LOSS_FRACTION_MAX
from tests.unit.support.history import application
from tests.unit.support.leaders import SLACK_S, check_one_leader_per_epoch, led_by, told_ended
from tests.unit.support.virtual_time import VirtualClock, now_s, virtual_time
from tests.unit.support.world import World, identity_of


@virtual_time
async def test_a_leader_whose_supervisor_saw_it_end_is_followed_and_made_up_for_at_once() -> None:
    async with World(ttl_s=600.0) as world:
        leader = world.node("a")
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await world.deploy(application(replicas=2))
        await world.running(2)
        await leader.crash()
        crashed_s = now_s()
        (ended,) = await told_ended(world, "a")
        assert (ended.holder, ended.incarnation) == ("a", "1")
        assert await led_by(world, "b") - crashed_s < 1.0
        await world.until(lambda state: state.nodes["a"].status is MemberStatus.LOST)
        assert await world.running(2) - crashed_s < 1.0
        assert {replica.node for replica in world.state.replicas.values()} == {"b"}
        (lost,) = world.happened(ev.NodeLost)
        assert lost == ev.NodeLost("a", "1", "its process ended")
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_node_whose_lease_the_servers_ended_before_its_time_takes_another_and_keeps_its_replicas() -> None:
    """As an etcd before 3.5.13 does whose leader thaws after another one was elected."""
    async with World() as world:
        world.node("a", latency_s=0.02)
        await led_by(world, "a")
        world.node("b", latency_s=0.02)
        await world.until(lambda state: "b" in state.nodes)
        await world.deploy(application(replicas=2))
        await world.running(2)
        await asyncio.sleep(10 * world.ttl_s)
        for _ in range(20):
            (item,) = world.leases.list("nodes/b/").items
            world.leases.revoke(item.lease)
            await asyncio.sleep(world.ttl_s / 3)
            assert [item.key for item in world.leases.list("nodes/b/").items] == ["nodes/b/1"]
        assert not world.happened(ev.NodeLost, ev.ReplicaExited)


@virtual_time
async def test_a_node_whose_supervisor_saw_it_end_is_given_up_by_the_leader_at_once() -> None:
    async with World(ttl_s=600.0) as world:
        world.node("a")
        await led_by(world, "a")
        other = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await asyncio.sleep(10)
        await other.crash()
        await told_ended(world, "b")
        await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST, within_s=1.0)


@virtual_time
async def test_a_supervisor_ends_the_lease_of_no_other_process() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        assert await told_ended(world, "a", pid=8) == []
        assert await told_ended(world, "b") == []
        await asyncio.sleep(60)
        assert not world.happened(ev.NodeLost)
        assert len(world.happened(ev.LeaderElected)) == 1


@virtual_time
async def test_a_note_about_a_node_whose_lease_lives_is_not_believed() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await asyncio.sleep(10)
        note = await world.leases.client().grant(60)
        await world.leases.client().put("ended/nodes/b/1", b"{}", note.id)
        await asyncio.sleep(60)
        assert not world.happened(ev.NodeLost)


@virtual_time
async def test_nobody_is_given_up_because_the_lease_servers_were_away() -> None:
    async with World() as world:
        for name in "abc":
            world.node(name)
        await world.until(lambda state: len(state.nodes) == 3 and state.leader is not None)
        for _ in range(5):
            world.leases.stop()
            await asyncio.sleep(30)
            world.leases.start()
            await asyncio.sleep(3)
        await asyncio.sleep(30)
        assert not world.happened(ev.NodeLost)
        assert len(world.happened(ev.LeaderElected)) == 1


@virtual_time
async def test_nodes_that_all_lose_their_leases_are_given_up_one_interval_apart() -> None:
    async with World() as world:
        world.node("a", slots=0)
        await led_by(world, "a")
        others = [world.node(name, slots=4) for name in "bcd"]
        await world.until(lambda state: len(state.nodes) == 4)
        await world.deploy(application(replicas=9))
        await world.running(9)
        for node in others:
            await node.crash()
        times = []
        for lost in range(1, 4):
            times.append(
                await world.until(
                    lambda state, lost=lost: (  # type: ignore[misc]
                        sum(node.status is MemberStatus.LOST for node in state.nodes.values()) == lost
                    )
                )
            )
        assert LOSS_FRACTION_MAX < 1 / 3
        assert all(later - sooner >= LOSS_INTERVAL_S for sooner, later in itertools.pairwise(times))
        assert times[-1] - times[0] <= 2 * LOSS_INTERVAL_S + SLACK_S


@virtual_time
async def test_a_gateway_that_is_gone_is_given_up_when_its_lease_is_over() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        gateway = identity_of("g", role="gateway")
        leases = world.leases.client()
        lease = await leases.grant(world.ttl_s)
        await leases.put(gateway.lease_key, gateway.lease_value(), lease.id)
        facts = FactWriter(world.log.client(), VirtualClock(), gateway)
        writing = asyncio.create_task(facts.run())
        facts.record(ev.GatewayJoined("g", "host", 1, "http://h", "0"), None)
        lost_s = await world.until(
            lambda state: "g" in state.gateways and state.gateways["g"].status is MemberStatus.LOST
        )
        assert world.ttl_s <= lost_s <= world.ttl_s + SLACK_S
        writing.cancel()


@virtual_time
async def test_a_gateway_that_joins_again_gets_the_time_that_everybody_gets() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        gateway = identity_of("g", role="gateway")
        facts = FactWriter(world.log.client(), VirtualClock(), gateway)
        writing = asyncio.create_task(facts.run())
        joins_s, losses_s = [], []
        for _ in range(3):
            facts.record(ev.GatewayJoined("g", "host", 1, "http://h", "0"), None)
            joins_s.append(
                await world.until(
                    lambda state: "g" in state.gateways and state.gateways["g"].status is MemberStatus.ALIVE
                )
            )
            losses_s.append(await world.until(lambda state: state.gateways["g"].status is MemberStatus.LOST))
        assert all(lost_s - joined_s >= world.ttl_s for joined_s, lost_s in zip(joins_s, losses_s, strict=True))
        assert len(world.happened(ev.GatewayLost)) == 3
        writing.cancel()
