"""The simulation of large clusters, at a size that takes seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from examples.bench.fold import entries
from holdfast.actors import follower
from holdfast.actors.follower import Follower
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.entries import GENESIS, SCHEMA_VERSION, decode_record, encode_event
from holdfast.core.errors import KeyTaken, Misuse, WorldFailure, WrongLastSequence
from holdfast.core.ports import LogEntry
from holdfast.core.state import apply, state_hash
from holdfast.simulations.scale import command as scale_command
from holdfast.simulations.scale import folding as scale_folding
from holdfast.simulations.scale.apart import run_scale
from holdfast.simulations.scale.command import SIZES, scale, sizes_for
from holdfast.simulations.scale.folding import shared_folding, state_bytes
from holdfast.simulations.scale.scale import ScaleReport, _most_within
from holdfast.simulations.scale.servers import COMMIT_S, TELL_S, WAY_S, ScaleLeasesServer, ScaleLogServer
from holdfast.simulations.world.process import EPOCH, SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.memory import MemoryLogServer

NODES, REPLICAS, GATEWAYS = 10, 50, 2


@pytest.fixture(scope="module")
def report() -> ScaleReport:
    return run_scale(NODES, REPLICAS, GATEWAYS)


def test_a_cluster_starts_and_is_whole_again_after_the_loss_of_a_tenth_of_its_nodes(report: ScaleReport) -> None:
    assert (report.nodes, report.replicas, report.gateways) == (NODES, REPLICAS, GATEWAYS)
    assert (report.lost_nodes, report.lost_replicas) == (1, REPLICAS // NODES)
    assert 0 < report.known_after_s <= report.decided_after_s < report.running_after_s <= report.linked_after_s < 30
    assert report.decided_after_s < report.leader_loss_running_after_s < 30


def test_every_replica_brings_three_events_and_a_cluster_at_rest_none(report: ScaleReport) -> None:
    members, wishes_and_decisions = NODES + GATEWAYS, 3
    assert report.start_events == members + wishes_and_decisions + 3 * REPLICAS
    assert report.quiet_events_per_s == 0
    assert report.quiet_lease_requests_per_s > NODES / report.known_after_s


def test_a_size_gives_the_same_figures_again_but_for_what_this_machine_took(report: ScaleReport) -> None:
    def virtual(one: ScaleReport) -> ScaleReport:
        return msgspec.structs.replace(
            one, decision_cpu_s=0, look_cpu_max_s=0, beat_cpu_s=0, cpu_s=0, follower_bytes=0, memory_bytes=0
        )

    assert virtual(run_scale(NODES, REPLICAS, GATEWAYS)) == virtual(report)


def test_what_can_not_be_simulated_is_told_with_the_reason() -> None:
    with pytest.raises(WorldFailure, match="a cluster of 0 nodes: ZeroDivisionError"):
        run_scale(0, 1, 1)


def test_sizes_follow_from_what_is_given() -> None:
    assert sizes_for(None, None, None) == SIZES
    assert sizes_for(200, None, None) == [(200, 2000, 10)]
    assert sizes_for(None, 90, 1) == [(9, 90, 1)]
    assert sizes_for(None, 30, None) == [(6, 30, 2)]
    with pytest.raises(Misuse, match="10 nodes need at least 10"):
        sizes_for(10, 9, None)


def test_the_table_and_the_json_show_every_size(
    report: ScaleReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale_command, "run_scale", lambda *_arguments: report)
    assert scale(SIZES, as_json=False) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"{report.running_after_s:.1f}") >= len(SIZES)
    assert scale(SIZES[:1], as_json=True) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=list[ScaleReport]) == [report]


def test_the_most_events_within_a_second_are_counted() -> None:
    assert _most_within([0.0, 0.5, 1.2, 1.3, 1.4, 5.0], 1.0) == 4
    assert _most_within([], 1.0) == 0


# --- folding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept_max", [4096, 3])
def test_followers_that_share_their_folds_get_the_states_that_each_would_make_alone(
    kept_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_folding, "KEPT_MAX", kept_max)
    log = entries(40)
    alone = ClusterState()
    for entry in log:
        alone = apply(alone, decode_record(entry))
    with shared_folding() as fold:
        together = [Follower(MemoryLogServer().client()) for _ in range(2)]
        for entry in log:
            for one in together:
                one._take(entry)
        assert together[0].state is together[1].state
        assert fold.decoded == len(log)
        late = Follower(MemoryLogServer().client())
        for entry in log:
            late._take(entry)
    assert state_hash(alone) == state_hash(together[0].state) == state_hash(late.state)
    assert vars(follower)["apply"] is apply


def test_the_memory_of_a_state_grows_with_what_is_in_it() -> None:
    assert 0 < state_bytes(entries(4)) < state_bytes(entries(4) + other_nodes(200))


def other_nodes(count: int) -> list[LogEntry]:
    """More of the same log: nodes that join."""
    made = []
    for number in range(count):
        joined = ev.NodeJoined(f"other-{number}", "host", 1, "0", 16)
        event = ev.Event(
            id=f"o{number}",
            time=EPOCH,
            writer=joined.node,
            incarnation="i",
            epoch=0,
            cause=None,
            schema=SCHEMA_VERSION,
            previous=GENESIS,
            payload=joined,
        )
        made.append(LogEntry(5 + number, f"facts.node.{joined.node}", encode_event(event), event.id))
    return made


# --- servers --------------------------------------------------------------------------------------------


def in_a_world(main: Callable[[World, SimProcess], Coroutine[Any, Any, None]]) -> None:
    """Run this in a process, and see that it ends well."""
    world = World("servers")
    statuses: list[int] = []
    world.spawn("test", "h", lambda process: main(world, process)).on_exit(statuses.append)
    problems: list[str] = []
    world.on_unhandled = lambda _process, text: problems.append(text)
    world.scheduler.run(100.0)
    assert not problems, problems[0]
    assert statuses == [0]


def test_the_log_takes_each_entry_once_in_its_place_and_tells_it_to_followers_later() -> None:
    async def main(world: World, process: SimProcess) -> None:
        server = ScaleLogServer(world)
        log = server.client(process)
        began_s = world.now_s
        assert await log.append("s", b"a", message_id="1", expected_last=0) == 1
        assert world.now_s - began_s == pytest.approx(2 * WAY_S + COMMIT_S)
        assert await log.append("s", b"a", message_id="1", expected_last=0) == 1
        with pytest.raises(WrongLastSequence):
            await log.append("s", b"b", message_id="2", expected_last=0)
        followed = log.follow()
        assert (await anext(followed)).data == b"a"
        assert world.now_s - began_s >= TELL_S
        together = [log.append(f"t{number}", b"c", message_id=f"t{number}", expected_last=0) for number in range(10)]
        began_s = world.now_s
        await asyncio.gather(*together)
        assert world.now_s - began_s == pytest.approx(2 * WAY_S + 10 * COMMIT_S)
        last = await log.last_on("t9")
        assert last is not None
        assert (last.message_id, (await log.status()).last_sequence) == ("t9", 11)

    in_a_world(main)


def test_leases_end_with_their_time_and_watches_are_told_of_their_keys_alone() -> None:
    async def main(world: World, process: SimProcess) -> None:
        server = ScaleLeasesServer(world)
        leases = server.connect(process)
        lease = await leases.grant(5.0)
        revision = await leases.put("nodes/a", b"1", lease.id)
        await leases.create("leader", b"a", lease.id)
        with pytest.raises(KeyTaken):
            await leases.create("leader", b"b", lease.id)
        began_s = world.now_s
        async with contextlib.aclosing(leases.watch("nodes/", after=revision - 1)) as changes:
            assert [(change.key, change.value) for change in await anext(changes)] == [("nodes/a", b"1")]
            await asyncio.sleep(3.0)
            assert await leases.keep_alive(lease.id) == 5.0
            assert [(change.key, change.value) for change in await anext(changes)] == [("nodes/a", None)]
        assert world.now_s - began_s == pytest.approx(8.0, abs=0.1)
        assert not (await leases.list("")).items
        assert server.requests["keep_alive"] == 1

    in_a_world(main)
