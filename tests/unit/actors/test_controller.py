"""There is one leader at a time, the log sees to it, and no single loss leaves the cluster without one for long."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence

import msgspec
import pytest

from holdfast.actors.controller import POLL_S, READ_ON_MAX_S, VACANCY_POLLS
from holdfast.actors.ended import end_leases
from holdfast.actors.identity import LEADER_KEY, Holder
from holdfast.actors.node import Superseded
from holdfast.actors.specification import Ready
from holdfast.actors.writer import FactWriter
from holdfast.core import events as ev
from holdfast.core.cluster import LOSS_INTERVAL_S, MemberStatus, ReplicaStatus
from holdfast.core.ports import KeyChange, LogEntry
from holdfast.core.reconcile import LOSS_FRACTION_MAX
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.support.history import INFO, application
from tests.unit.support.virtual_time import VirtualClock, now_s, virtual_time
from tests.unit.support.world import CUT_OFF_TIMEOUT_S, World, identity_of

ALIVE = MemberStatus.ALIVE

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


def told_ended(world: World, name: str, pid: int = 7) -> Awaitable[list[Holder]]:
    """As the supervisor of that node's process on that host."""
    return end_leases(world.leases.client(), "node", name, lambda holder: (holder.host, holder.pid) == ("host", pid))


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
                await world.until(lambda state: "g" in state.gateways and state.gateways["g"].status is ALIVE)
            )
            losses_s.append(await world.until(lambda state: state.gateways["g"].status is MemberStatus.LOST))
        assert all(lost_s - joined_s >= world.ttl_s for joined_s, lost_s in zip(joins_s, losses_s, strict=True))
        assert len(world.happened(ev.GatewayLost)) == 3
        writing.cancel()


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
