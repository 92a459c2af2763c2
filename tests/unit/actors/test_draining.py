"""Replicas and nodes that are told to stop: replaced first, ended in the way that was ordered, or at once."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from holdfast.actors.replica_main import run
from holdfast.actors.specification import Checked, Draining, Ready, ReplicaSpecification, StopOrder
from holdfast.actors.stopping import LEAVE_S, Stopping
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, ReplicaStatus
from holdfast.core.config import EngineConfig
from tests.unit.actors.test_replica_run import Told, in_virtual_time, specification, stdin
from tests.unit.support.history import application
from tests.unit.support.virtual_time import now_s, virtual_time
from tests.unit.support.world import World

DEADLINE_S = 4.0


class Streams:
    """A replica's streams, which end after `end_after_s`, or so long after they were dismissed."""

    def __init__(self, end_after_s: float, leave_after_s: float = 100.0) -> None:
        self.dismissed_s: float | None = None
        self._end_after_s = end_after_s
        self._leave_after_s = leave_after_s
        self._gone = asyncio.Event()

    async def drain(self) -> None:
        asyncio.get_running_loop().call_later(self._end_after_s, self._gone.set)
        await self._gone.wait()

    def dismiss(self) -> None:
        if self.dismissed_s is None:
            self.dismissed_s = now_s()
            asyncio.get_running_loop().call_later(self._leave_after_s, self._gone.set)


async def seen_off(streams: Streams, *orders: tuple[float, StopOrder]) -> float:
    """How long it takes, when these orders come at these times."""
    stopping = Stopping(StopOrder("finish", DEADLINE_S))
    began_s = now_s()
    stopping.tell()
    for at_s, order in orders:
        asyncio.get_running_loop().call_later(at_s, stopping.tell, order)
    await stopping.see_off(streams)
    return now_s() - began_s


@virtual_time
async def test_streams_that_end_in_time_are_not_asked_to_leave() -> None:
    streams = Streams(1.0)
    assert await seen_off(streams) == pytest.approx(1.0)
    assert streams.dismissed_s is None


@virtual_time
async def test_streams_leave_at_the_deadline_and_nothing_waits_for_ever() -> None:
    began_s = now_s()
    leaving, staying = Streams(100.0, 0.25), Streams(100.0)
    assert await seen_off(leaving) == pytest.approx(DEADLINE_S + 0.25)
    assert leaving.dismissed_s == pytest.approx(began_s + DEADLINE_S)
    assert await seen_off(staying) == pytest.approx(DEADLINE_S + LEAVE_S)


@virtual_time
async def test_in_mode_migrate_streams_leave_at_once_and_have_the_whole_time_to_do_so() -> None:
    began_s = now_s()
    streams = Streams(100.0, DEADLINE_S)
    assert await seen_off(streams, (0.0, StopOrder("migrate", DEADLINE_S))) == pytest.approx(DEADLINE_S)
    assert streams.dismissed_s == pytest.approx(began_s)


@virtual_time
async def test_a_later_order_changes_the_way_but_begins_no_new_time() -> None:
    began_s = now_s()
    streams = Streams(100.0)
    took_s = await seen_off(streams, (1.0, StopOrder("finish", 2.0)), (1.5, StopOrder("finish", 3.0)))
    assert streams.dismissed_s == pytest.approx(began_s + 3.0)
    assert took_s == pytest.approx(3.0 + LEAVE_S)


# --- the replica's process ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_replica_that_is_told_by_a_signal_says_so_to_its_node(number: int) -> None:
    async def scenario() -> None:
        told = Told()
        running = asyncio.create_task(run(told, stdin(specification())))
        await asyncio.sleep(3.0)
        os.kill(os.getpid(), number)
        assert await running == 0
        assert [type(report) for report in told.reports] == [Ready, Draining]

    in_virtual_time(scenario())


def test_a_replica_that_its_node_told_says_nothing() -> None:
    async def scenario() -> None:
        told, pipe = Told(), stdin(specification())
        running = asyncio.create_task(run(told, pipe))
        await asyncio.sleep(3.0)
        pipe.feed_data(b'not an order\n{"mode":"migrate","deadline_s":1.0}\n')
        assert await running == 0
        assert [type(report) for report in told.reports] == [Ready]

    in_virtual_time(scenario())


def test_a_second_signal_ends_a_replica_at_once_with_its_number() -> None:
    async def scenario() -> None:
        ended: list[int] = []
        slow = ReplicaSpecification("test", "app.tiny.1", "tiny", "127.0.0.1", EngineConfig("mock", {}), DEADLINE_S)

        async def load(_specification: ReplicaSpecification) -> None:
            await asyncio.get_running_loop().create_future()

        running = asyncio.create_task(run(Told(), stdin(msgspec.json.encode(slow)), load, ended.append))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        # Both before the process has a turn.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert await running == 0
        assert ended in ([128 + signal.SIGINT], [128 + signal.SIGTERM])

    in_virtual_time(scenario())


def test_a_replica_that_is_told_while_it_loads_ends_without_the_engine() -> None:
    async def scenario() -> None:
        async def load(_specification: ReplicaSpecification) -> None:
            await asyncio.get_running_loop().create_future()

        told = Told()
        running = asyncio.create_task(run(told, stdin(specification()), load))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(1.0):
            assert await running == 0
        assert [type(report) for report in told.reports] == [Draining]

    in_virtual_time(scenario())


# --- the node -------------------------------------------------------------------------------------------


def running_on(state: ClusterState, node: str) -> int:
    return sum(replica.node == node and replica.status is ReplicaStatus.RUNNING for replica in state.replicas.values())


@virtual_time
async def test_a_node_that_stops_waits_until_others_run_what_it_ran() -> None:
    async with World() as world:
        node, other = world.node("a"), world.node("b")
        await world.deploy(application(replicas=2))
        await world.running(2)
        fewest = 2

        def watch(_record: object, state: ClusterState) -> None:
            nonlocal fewest
            fewest = min(fewest, sum(running_on(state, name) for name in "ab"))

        world.follower.observe(watch)
        await node.leave()
        await world.until(lambda state: running_on(state, "b") == 2)
        assert fewest == 2
        assert len(other.launcher.running) == 2
        assert not node.launcher.running


@virtual_time
async def test_the_only_node_stops_without_waiting() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application(replicas=2))
        await world.running(2)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s < 0.5


@virtual_time
async def test_nodes_that_all_stop_wait_for_nobody() -> None:
    async with World() as world:
        nodes = [world.node(name) for name in "abc"]
        await world.deploy(application(replicas=3))
        await world.running(3)
        began_s = now_s()
        await asyncio.gather(*(node.leave() for node in nodes))
        assert now_s() - began_s < 1.0


@virtual_time
async def test_a_node_waits_for_room_elsewhere_for_so_long_and_no_longer() -> None:
    async with World() as world:
        node, other = world.node("a", slots=1), world.node("b", slots=1)
        await world.deploy(application(replicas=2))
        await world.running(2)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s == pytest.approx(20.0, abs=1.0)
        assert len(other.launcher.running) == 1


@virtual_time
async def test_a_node_that_can_not_tell_the_log_does_not_wait_to_be_relieved() -> None:
    async with World() as world:
        node = world.node("a")
        world.node("b")
        await world.deploy(application(replicas=2))
        await world.running(2)
        began_s = now_s()
        node.log.link.cut()
        await node.leave()
        assert now_s() - began_s < 6.0


@virtual_time
async def test_how_a_replica_is_to_stop_reaches_its_process() -> None:
    async with World() as world:
        nodes = [world.node("a"), world.node("b")]
        await world.deploy(application(replicas=2, graceful_shutdown_timeout_s=7.0))
        await world.running(2)
        await world.drain("replica", "app.tiny.1", "migrate")
        await world.until(lambda state: "app.tiny.1" not in state.replicas)
        await world.drain("replica", "app.tiny.2", "finish", 60.0)
        await world.until(lambda state: "app.tiny.2" not in state.replicas)
        await world.running(2)
        orders = {
            process.specification.replica: process.orders for node in nodes for process in node.launcher.processes
        }
        assert orders["app.tiny.1"] == [StopOrder("migrate", 7.0)]
        (order,) = orders["app.tiny.2"]
        assert order.mode == "finish"
        assert 59.0 < order.deadline_s <= 60.0


@virtual_time
async def test_a_replica_that_somebody_else_told_to_stop_is_replaced_before_it_has_ended() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.stops_after_s = None
        await world.deploy(application())
        await world.running(1)
        node.launcher.processes[0].says(Draining())
        # It takes no connections any more: what its canary makes of that is no sickness.
        node.launcher.processes[0].says(Checked("it does not answer"))
        await world.until(lambda state: "app.tiny.2" in state.replicas)
        assert node.launcher.processes[0].status is None
        node.launcher.processes[0].ends(0)
        await world.running(1)
        (exited,) = world.happened(ev.ReplicaExited)
        assert isinstance(exited, ev.ReplicaExited)
        assert exited.expected
        assert world.state.applications["app"].deployments["tiny"].unstable_starts == 0
        assert not world.happened(ev.ReplicaUnhealthy)


@virtual_time
async def test_a_drain_outlasts_its_nodes_restart_and_a_change_of_leader() -> None:
    async with World() as world:
        leader, other = world.node("a"), world.node("b")
        await world.deploy(application(replicas=2))
        await world.running(2)
        await world.drain("node", "b")
        await world.until(lambda state: running_on(state, "a") == 2)
        await other.leave()
        await leader.leave()
        world.node("b", "2")
        await world.until(lambda state: state.leader_incarnation == "2")
        await asyncio.sleep(30.0)
        assert running_on(world.state, "b") == 0
        await world.undrain("node", "b")
        await world.until(lambda state: running_on(state, "b") == 2)
