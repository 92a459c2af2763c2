"""There is one leader at a time, the log sees to it, and no single loss leaves the cluster without one for long."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence

import pytest

from holdfast.actors.controller import POLL_S, VACANCY_POLLS
from holdfast.actors.identity import LEADER_KEY
from holdfast.actors.node import Superseded
from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus
from holdfast.core.ports import KeyChange
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.support.history import application
from tests.unit.support.leaders import SLACK_S, check_one_leader_per_epoch, led_by
from tests.unit.support.virtual_time import now_s, virtual_time
from tests.unit.support.world import World


@virtual_time
async def test_one_of_several_nodes_leads_and_the_others_stand_by() -> None:
    async with World() as world:
        for name in "abc":
            world.node(name)
        await world.until(lambda state: len(state.nodes) == 3 and state.leader is not None)
        await asyncio.sleep(100)
        assert len(world.happened(ev.LeaderElected)) == 1
        (leader,) = world.leases.list(LEADER_KEY).items
        assert world.state.epoch == leader.create_revision


@virtual_time
async def test_a_leader_that_crashes_is_followed_by_another_when_its_lease_is_over() -> None:
    async with World() as world:
        leader = world.node("a")
        await led_by(world, "a")
        world.node("b")
        await world.deploy(application(replicas=2))
        await world.running(2)
        await leader.crash()
        crashed_s = now_s()
        assert await led_by(world, "b") - crashed_s <= world.ttl_s + SLACK_S
        await world.until(lambda state: state.nodes["a"].status is MemberStatus.LOST)
        await world.running(2)
        assert now_s() - crashed_s <= 2 * world.ttl_s + SLACK_S
        check_one_leader_per_epoch(world)


@virtual_time
async def test_standing_by_takes_one_watch_and_no_writes() -> None:
    """There may be many that stand by."""
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        other = world.node("b")
        watch, create = other.leases.watch, other.leases.create
        asked: Counter[str] = Counter()

        def noted_watch(prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
            asked[f"watch {prefix}"] += 1
            return watch(prefix, after=after)

        async def noted_create(key: str, value: bytes, lease_id: int) -> int:
            asked["create"] += 1
            return await create(key, value, lease_id)

        other.leases.watch, other.leases.create = noted_watch, noted_create  # type: ignore[method-assign]
        await asyncio.sleep(600)
        assert (asked[f"watch {LEADER_KEY}"], asked["create"]) == (1, 1)


@virtual_time
async def test_a_candidate_whose_watch_is_silent_reads_that_the_leader_is_gone() -> None:
    async with World() as world:
        leader = world.node("a")
        await led_by(world, "a")
        other = world.node("b")

        async def silent(prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
            await asyncio.Event().wait()
            yield ()

        other.leases.watch = silent  # type: ignore[method-assign]
        await asyncio.sleep(10)
        await leader.leave()
        left_s = now_s()
        assert await led_by(world, "b") - left_s <= VACANCY_POLLS * POLL_S


@virtual_time
async def test_a_node_that_froze_between_its_key_and_its_election_shuts_out_nobody_elected_meanwhile() -> None:
    async with World() as world:
        first = world.node("a")
        await led_by(world, "a")
        late = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        create = late.leases.create
        has_key, thawed = asyncio.Event(), asyncio.Event()

        async def freezing(key: str, value: bytes, lease_id: int) -> int:
            revision = await create(key, value, lease_id)
            late.log.link.cut()
            has_key.set()
            await thawed.wait()
            return revision

        await asyncio.sleep(10)
        late.leases.create = freezing  # type: ignore[method-assign]
        await first.leave()
        await has_key.wait()
        world.node("c")
        await world.until(lambda state: "c" in state.nodes)
        world.leases.revoke(world.leases.list(LEADER_KEY).items[0].lease)
        await led_by(world, "c")
        late.leases.create = create  # type: ignore[method-assign]
        thawed.set()
        late.log.link.heal()
        await asyncio.sleep(60)
        assert world.state.leader == "c"
        assert not world.happened(ev.LeaderDeposed)
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_node_whose_lease_went_before_it_knew_that_it_had_the_key_does_not_lead_without_one() -> None:
    async with World() as world:
        node = world.node("a")
        create = node.leases.create

        async def late(key: str, value: bytes, lease_id: int) -> int:
            revision = await create(key, value, lease_id)
            node.leases.create = create  # type: ignore[method-assign]
            world.leases.revoke(lease_id)
            await asyncio.sleep(5)
            return revision

        node.leases.create = late  # type: ignore[method-assign]
        await asyncio.sleep(60)
        (key,) = world.leases.list(LEADER_KEY).items
        assert (world.state.leader, world.state.epoch) == ("a", key.create_revision)


@virtual_time
async def test_a_leader_that_leaves_in_order_is_followed_at_once() -> None:
    async with World() as world:
        leader = world.node("a")
        await led_by(world, "a")
        world.node("b")
        await asyncio.sleep(10)
        began_s = now_s()
        await leader.leave()
        assert await led_by(world, "b") - began_s < 1.0
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_leader_that_restarts_takes_its_key_from_its_dead_self_without_waiting_for_the_lease() -> None:
    async with World(ttl_s=60.0) as world:
        first = world.node("a", "1")
        await led_by(world, "a")
        await first.crash()
        restarted_s = now_s()
        world.node("a", "2")
        await world.until(lambda state: state.leader_incarnation == "2")
        assert now_s() - restarted_s < 1.0
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_key_of_a_node_that_is_not_dead_by_the_log_is_not_taken() -> None:
    async with World(ttl_s=60.0) as world:
        first = world.node("a")
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await first.crash()
        crashed_s = now_s()
        led_s = await led_by(world, "b", 120)
        assert led_s - crashed_s > world.ttl_s / 2 - 1


@virtual_time
async def test_a_leader_that_was_cut_off_and_replaced_has_its_decision_under_way_refused() -> None:
    """The fence: its decision was sent, lost, and is sent again after the new leader's election."""
    async with World() as world:
        stale = world.node("a", latency_s=0.2)
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await asyncio.sleep(3)
        await world.deploy(application())
        # Its follower reads the request 0.2 s later, and its decision is on the wire for another 0.2 s.
        await asyncio.sleep(0.3)
        stale.cut()
        assert not world.happened(ev.ApplicationDeployed)
        await led_by(world, "b")
        await world.running(1)
        stale.heal()
        await asyncio.sleep(60)
        assert len(world.happened(ev.ApplicationDeployed)) == 1
        check_one_leader_per_epoch(world)
        first, second = (record for record in world.records() if isinstance(record.event.payload, ev.LeaderElected))
        (deposed,) = (record for record in world.records() if isinstance(record.event.payload, ev.LeaderDeposed))
        told = deposed.event.payload
        assert isinstance(told, ev.LeaderDeposed)
        assert (told.node, told.epoch, told.by_epoch) == ("a", first.event.epoch, second.event.epoch)
        assert told.refused == "ApplicationDeployed"
        assert deposed.event.cause == second.event.id


@virtual_time
async def test_a_leader_that_finds_its_node_given_up_tells_of_its_refused_decision_before_it_ends() -> None:
    async with World() as world:
        stale = world.node("a", latency_s=0.2)
        await led_by(world, "a")
        world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await asyncio.sleep(3)
        await world.deploy(application())
        await asyncio.sleep(0.3)
        stale.cut()
        await world.until(lambda state: state.nodes["a"].status is MemberStatus.LOST)
        stale.heal()
        with pytest.raises(ExceptionGroup) as ended:
            await stale.task
        assert ended.group_contains(Superseded)
        (deposed,) = world.happened(ev.LeaderDeposed)
        assert isinstance(deposed, ev.LeaderDeposed)
        assert (deposed.node, deposed.refused) == ("a", "ApplicationDeployed")


@virtual_time
async def test_a_leader_without_its_lease_steps_down_and_may_lead_again() -> None:
    async with World() as world:
        world.node("a")
        await led_by(world, "a")
        (key,) = world.leases.list(LEADER_KEY).items
        world.leases.revoke(key.lease)
        await world.until(lambda state: state.epoch > key.create_revision)
        assert world.state.leader == "a"
        check_one_leader_per_epoch(world)
        assert world.happened(ev.LeaderDeposed) == [
            ev.LeaderDeposed("a", key.create_revision, "its lease is gone", None, None)
        ]


@pytest.mark.parametrize("after_s", [0.05, 0.15], ids=["request lost", "answer lost"])
def test_a_candidate_whose_attempt_had_an_unknown_outcome_leads_in_the_end(after_s: float) -> None:
    """It may hold the leader key without knowing. Nobody else would ever take it away."""

    @virtual_time
    async def check() -> None:
        async with World() as world:
            world.log.stop()
            node = world.node("a", latency_s=0.1)
            create = node.leases.create
            asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            async def noted(key: str, value: bytes, lease_id: int) -> int:
                if not asked.done():
                    asked.set_result(None)
                return await create(key, value, lease_id)

            node.leases.create = noted  # type: ignore[method-assign]
            world.log.start()
            await asked
            await asyncio.sleep(after_s)
            world.leases.stop()
            await asyncio.sleep(30)
            world.leases.start()
            back_s = now_s()
            assert await led_by(world, "a") - back_s < world.ttl_s + SLACK_S
            check_one_leader_per_epoch(world)

    check()


@virtual_time
async def test_a_cluster_that_was_killed_as_a_whole_comes_back_as_it_was() -> None:
    async with World() as world:
        first = [world.node(name, "1") for name in "ab"]
        await world.until(lambda state: len(state.nodes) == 2)
        await world.deploy(application(replicas=4))
        await world.running(4)
        for node in first:
            await node.crash()
        await asyncio.sleep(3600 / 4)
        back_s = now_s()
        for name in "ab":
            world.node(name, "2")
        await world.until(lambda state: {node.incarnation for node in state.nodes.values()} == {"2"})
        assert await world.running(4) - back_s < 2.0
        check_one_leader_per_epoch(world)


@virtual_time
async def test_a_cluster_whose_lease_servers_lost_their_data_is_led_on_above_every_epoch_that_it_has_seen() -> None:
    async with World() as world:
        world.node("a", "1")
        await led_by(world, "a")
        for incarnation in ("2", "3"):
            await world.nodes[-1].crash()
            world.node("a", incarnation)
            await world.until(lambda state, now=incarnation: state.leader_incarnation == now)  # type: ignore[misc]
        before = world.state.epoch
        await world.nodes[-1].crash()
        world.leases = MemoryLeasesServer()
        world.node("a", "4")
        await world.until(lambda state: state.leader_incarnation == "4")
        (leader,) = world.leases.list(LEADER_KEY).items
        assert leader.create_revision <= before < world.state.epoch
        check_one_leader_per_epoch(world)
