"""A node does what the log says, tells what came of it, and ends all it runs when it is no longer part of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast.actors.child import STOP_MARGIN_S
from holdfast.actors.identity import DECISIONS
from holdfast.actors.node import Superseded
from holdfast.actors.specification import Failed, Ready
from holdfast.actors.writer import EventAppender, FactWriter
from holdfast.core import events as ev
from holdfast.core.cluster import MemberStatus, ReplicaStatus
from holdfast.core.errors import WrongLastSequence
from holdfast.core.reconcile import START_BACKOFF_FIRST_S
from holdfast.core.starts import STABLE_AFTER_S
from tests.unit.support.history import INFO, application
from tests.unit.support.virtual_time import VirtualClock, now_s, virtual_time
from tests.unit.support.world import FakeProcess, World, identity_of

GRACE_S = 3.0


@virtual_time
async def test_a_placed_replica_is_started_with_what_it_needs_to_know_and_its_readiness_is_told() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application(replicas=2))
        assert await world.running(2) < 1.0
        specification = node.launcher.processes[0].specification
        assert (specification.cluster, specification.replica, specification.model) == ("test", "app.tiny.1", "tiny")
        assert specification.engine == application().deployments[0].engine
        replica = world.state.replicas["app.tiny.1"]
        assert (replica.address, replica.info, replica.pid) == ("127.0.0.1:9", INFO, 1000)


@virtual_time
async def test_each_event_names_the_one_that_led_to_it() -> None:
    async with World() as world:
        world.node("a")
        await world.deploy(application())
        await world.running(1)
        event: dict[type[ev.Payload], ev.Event] = {
            type(record.event.payload): record.event for record in world.records()
        }
        chain: list[type[ev.Payload]] = [
            ev.ReplicaReady,
            ev.ReplicaStarted,
            ev.ReplicaPlaced,
            ev.ApplicationDeployed,
            ev.DeployRequested,
        ]
        for effect, cause in zip(chain, chain[1:]):  # noqa: B905, RUF007
            assert event[effect].cause == event[cause].id
        assert event[ev.LeaderElected].cause == event[ev.NodeJoined].id


@pytest.mark.parametrize(
    ("status", "exit_code", "signal"),
    [(0, 0, None), (3, 3, None), (-9, None, "SIGKILL"), (-11, None, "SIGSEGV"), (-35, None, "SIG35")],
)
def test_a_replica_that_ended_is_told_of_as_it_ended_and_replaced_at_once(
    status: int, exit_code: int | None, signal: str | None
) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            node = world.node("a")
            await world.deploy(application())
            await world.running(1)
            await asyncio.sleep(STABLE_AFTER_S)
            ended_s = now_s()
            node.launcher.processes[0].ends(status)
            await world.until(lambda state: "app.tiny.2" in state.replicas)
            assert await world.running(1) - ended_s < 0.1
            (exited,) = world.happened(ev.ReplicaExited)
            assert exited == ev.ReplicaExited("app.tiny.1", "a", 1000, exit_code, signal, False, "")
            (replaced,) = world.happened(ev.ReplicaReplaced)
            assert isinstance(replaced, ev.ReplicaReplaced)
            assert replaced.replaces == "app.tiny.1"

    check()


@virtual_time
async def test_a_replicas_last_words_are_told_with_its_end() -> None:
    def dies(process: FakeProcess) -> None:
        process.says(Failed("out of memory"))
        process.ends(1)

    async with World() as world:
        node = world.node("a")
        node.launcher.script = dies
        await world.deploy(application())
        await world.until(lambda state: bool(world.happened(ev.ReplicaExited)))
        exited = world.happened(ev.ReplicaExited)[0]
        assert isinstance(exited, ev.ReplicaExited)
        assert (exited.exit_code, exited.message) == (1, "out of memory")
        assert world.state.applications["app"].deployments["tiny"].message == "out of memory"


@pytest.mark.parametrize("how", ["can't be launched", "exits before it is ready"])
def test_a_replica_that_does_not_start_is_tried_again_with_longer_and_longer_waits(how: str) -> None:
    @virtual_time
    async def check() -> None:
        async with World() as world:
            node = world.node("a")
            if how == "can't be launched":
                node.launcher.failure = "no such file"
            else:
                node.launcher.script = lambda process: process.ends(1)
            await world.deploy(application())
            await asyncio.sleep(120)
            times = node.launcher.launch_times_s
            gaps = [later - sooner for sooner, later in zip(times, times[1:])]  # noqa: B905, RUF007
            waits = [min(START_BACKOFF_FIRST_S * 2**doublings, 30.0) for doublings in range(len(gaps))]
            assert len(gaps) == 8
            assert gaps == [pytest.approx(wait, abs=0.05) for wait in waits]
            assert set(node.launcher.launches.values()) == {1}
            node.launcher.failure = None
            node.launcher.script = lambda process: process.says(Ready("127.0.0.1:9", INFO))
            await world.running(1)

    check()


@pytest.mark.parametrize("failure", ["no such file", None])
def test_a_replica_is_launched_once_however_slowly_the_log_answers(failure: str | None) -> None:
    """It is over before the log has told so, while other events keep the node busy."""

    @virtual_time
    async def check() -> None:
        async with World() as world:
            node = world.node("a", latency_s=0.3)
            node.launcher.failure = failure
            node.launcher.script = lambda process: process.ends(1)
            await world.deploy(application())
            others = FactWriter(world.log.client(), VirtualClock(), identity_of("g", role="gateway"))
            writing = asyncio.create_task(others.run())
            for _ in range(1000):
                others.record(ev.GatewayLeft("g"), None)
                await asyncio.sleep(0.02)
            writing.cancel()
            assert len(node.launcher.launches) > 1
            assert set(node.launcher.launches.values()) == {1}

    check()


@virtual_time
async def test_what_is_too_many_is_stopped_and_forgotten() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application(replicas=3))
        await world.running(3)
        await world.deploy(application(replicas=1))
        await world.running(1)
        assert [process.signals for process in node.launcher.processes] == [[], ["STOP"], ["STOP"]]
        exits = world.happened(ev.ReplicaExited)
        assert [exited.expected for exited in exits if isinstance(exited, ev.ReplicaExited)] == [True, True]


@virtual_time
async def test_a_replica_that_does_not_stop_in_its_time_is_killed() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.stops_after_s = None
        await world.deploy(application(graceful_shutdown_timeout_s=GRACE_S))
        await world.running(1)
        await world.delete("app")
        told_s = now_s()
        ended_s = await world.running(0)
        assert ended_s - told_s == pytest.approx(GRACE_S + STOP_MARGIN_S, abs=0.1)
        assert node.launcher.processes[0].signals == ["STOP", "KILL"]


@virtual_time
async def test_a_replica_that_is_told_to_stop_before_its_node_had_read_of_it_is_disowned() -> None:
    """The node was cut off while the replica was placed and stopped; it must not hold its slot for ever."""
    async with World() as world:
        world.node("a", slots=0)
        await world.until(lambda state: state.leader is not None)
        node = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await asyncio.sleep(1)
        node.log.link.cut()
        await world.deploy(application())
        await world.until(lambda state: bool(state.replicas))
        await world.delete("app")
        await world.until(
            lambda state: [replica.status for replica in state.replicas.values()] == [ReplicaStatus.STOPPING]
        )
        node.log.link.heal()
        await world.running(0)
        assert not node.launcher.launches
        for r in world.records():
            print(r.sequence, r.event.writer, r.event.payload)
        (exited,) = world.happened(ev.ReplicaExited)
        assert isinstance(exited, ev.ReplicaExited)
        assert (exited.pid, exited.exit_code, exited.expected) == (0, None, True)


@virtual_time
async def test_a_placement_by_a_deposed_leader_starts_nothing_and_nothing_twice() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.script = lambda process: None
        await world.deploy(application())
        await world.until(lambda state: "app.tiny.1" in state.replicas)
        await asyncio.sleep(1)
        deposed = EventAppender(world.log.client("d"), VirtualClock(), identity_of("d"), DECISIONS)
        for replica in ("app.tiny.1", "app.tiny.9"):
            placed = ev.ReplicaPlaced(replica, "app", "tiny", "a", "1")
            event = deposed.event(placed, None, epoch=world.state.epoch - 1)
            await deposed.append(event, world.state.head(DECISIONS))
            await world.follower.catch_up()
        await asyncio.sleep(5)
        assert world.state.ignored == 2
        assert node.launcher.launches == {"app.tiny.1": 1}


@virtual_time
async def test_nonsense_from_a_replica_is_no_harm_to_its_node(caplog: pytest.LogCaptureFixture) -> None:
    def babbles(process: FakeProcess) -> None:
        for line in (b"hello\n", b'{"type": "Ready"}\n', b'{"type": "\xff"}\n', b"[" * 50_000, b"\n"):
            process.says(line)
        process.says(Ready("127.0.0.1:9", INFO))

    async with World() as world:
        world.node("a").launcher.script = babbles
        await world.deploy(application())
        with caplog.at_level(logging.WARNING):
            await world.running(1)
        assert caplog.text.count("reports nonsense") == 5


# --- leaving --------------------------------------------------------------------------------------------


@virtual_time
async def test_a_node_leaves_in_order() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application(replicas=2))
        await world.running(2)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s < 0.5
        assert not node.launcher.running
        told = world.happened(ev.NodeStopping, ev.ReplicaExited, ev.NodeLeft)
        assert [type(payload) for payload in told] == [
            ev.NodeStopping,
            ev.ReplicaExited,
            ev.ReplicaExited,
            ev.NodeLeft,
        ]
        assert world.leases.list("").items == (), "neither its own key nor the leader's is left behind"


@virtual_time
async def test_a_node_leaves_at_once_when_nothing_could_be_started_on_it() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.failure = "no such file"
        await world.deploy(application())
        await asyncio.sleep(2)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s < 0.5


@virtual_time
async def test_a_node_that_leaves_waits_for_its_replicas_streams_for_their_time_only() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.stops_after_s = None
        await world.deploy(application(graceful_shutdown_timeout_s=GRACE_S))
        await world.running(1)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s == pytest.approx(GRACE_S + STOP_MARGIN_S, abs=0.1)
        assert world.happened(ev.NodeLeft)
        assert not node.launcher.running


@virtual_time
async def test_replicas_of_a_node_that_leaves_move_to_another() -> None:
    async with World() as world:
        nodes = [world.node("a"), world.node("b")]
        await world.until(lambda state: len(state.nodes) == 2)
        await world.deploy(application(replicas=4))
        await world.running(4)
        await nodes[0].leave()
        await world.running(4)
        assert {replica.node for replica in world.state.replicas.values()} == {"b"}


@virtual_time
async def test_a_node_can_leave_while_the_log_is_away() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application())
        await world.running(1)
        world.log.stop()
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s < 10
        assert not node.launcher.running


@virtual_time
async def test_a_node_can_leave_before_it_could_join() -> None:
    async with World() as world:
        world.log.stop()
        node = world.node("a")
        await asyncio.sleep(30)
        began_s = now_s()
        await node.leave()
        assert now_s() - began_s < 15


# --- being replaced -------------------------------------------------------------------------------------


def reasons(error: BaseException) -> set[type[BaseException]]:
    """The leaves of an exception group."""
    if isinstance(error, BaseExceptionGroup):
        return {reason for inner in error.exceptions for reason in reasons(inner)}
    return {type(error)}


@virtual_time
async def test_a_node_ends_all_it_runs_when_a_newer_incarnation_joins() -> None:
    async with World() as world:
        older = world.node("a", "1")
        await world.deploy(application())
        await world.running(1)
        newer = world.node("a", "2")
        await asyncio.wait([older.task], timeout=5)
        error = older.task.exception()
        assert error is not None
        assert reasons(error) <= {Superseded, WrongLastSequence}
        assert not older.launcher.running
        await world.running(1)
        assert len(newer.launcher.running) == 1
        assert world.state.nodes["a"].incarnation == "2"


@virtual_time
async def test_a_node_that_was_given_up_ends_all_it_runs() -> None:
    """It was cut off from the leases alone; the log told it what the others had to conclude."""
    async with World() as world:
        world.node("a")
        await world.until(lambda state: state.leader == "a")
        node = world.node("b")
        await world.until(lambda state: "b" in state.nodes)
        await world.deploy(application(replicas=2))
        await world.running(2)
        node.leases.link.cut()
        cut_s = now_s()
        lost_s = await world.until(lambda state: state.nodes["b"].status is MemberStatus.LOST)
        assert world.ttl_s / 2 <= lost_s - cut_s <= world.ttl_s + 1.5
        await asyncio.wait([node.task], timeout=5)
        error = node.task.exception()
        assert error is not None
        assert reasons(error) == {Superseded}
        assert not node.launcher.running
        await world.running(2)
        assert {replica.node for replica in world.state.replicas.values()} == {"a"}


@virtual_time
async def test_a_node_that_restarts_begins_with_nothing_and_is_given_its_replicas_anew() -> None:
    async with World() as world:
        first = world.node("a", "1")
        await world.deploy(application(replicas=2))
        await world.running(2)
        await first.crash()
        restarted_s = now_s()
        second = world.node("a", "2")
        await world.until(lambda state: state.nodes["a"].incarnation == "2")
        assert await world.running(2) - restarted_s < 2.0
        assert len(second.launcher.processes) == 2
        assert {replica.id for replica in world.state.replicas.values()} == {"app.tiny.3", "app.tiny.4"}


@virtual_time
async def test_events_about_other_things_do_not_move_a_node() -> None:
    async with World() as world:
        node = world.node("a")
        await world.deploy(application())
        await world.running(1)
        appender = EventAppender(
            world.log.client(), VirtualClock(), identity_of("x", role="gateway"), "facts.gateway.x"
        )
        event = appender.event(ev.GatewayLeft("x"), None)
        await appender.append(event, world.state.head("facts.gateway.x"))
        await asyncio.sleep(60)
        assert sum(node.launcher.launches.values()) == 1
