"""The long run's victims, and its look at what is left: only single failures are allowed, and nothing is missed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from examples.bench.chaos.cluster import end_leftovers, find_processes, name_process, send
from examples.bench.chaos.log_check import Fold, check_log
from examples.bench.chaos.victims import Blow, Kind, Process, Target, View, choose, draw_blow
from holdfast.core.entries import encode_event
from holdfast.core.events import NodeJoined
from holdfast.core.ports import LogEntry
from holdfast.core.state import state_hash
from holdfast.gateway.leftovers import MARK, find_marked
from tests.unit.support.history import History

# --- victims ---------------------------------------------------------------------------------------------------


def view(*, replicas: tuple[int, ...] = (1, 1, 2, 2), frozen: tuple[int, ...] = (), **ready: int) -> View:
    """Gateways 11 and 12, nodes 1 and 2, servers 21 and 22, replicas from 101 on, each under the node named."""
    processes = [Process(Kind.GATEWAY, f"gateway-{n}", 10 + n, 0, 0.0) for n in (1, 2)]
    processes += [Process(Kind.NODE, f"node-{n}", n, 0, 0.0) for n in (1, 2)]
    processes += [Process(Kind.NATS, "nats-server", 21, 0, 0.0), Process(Kind.ETCD, "etcd", 22, 0, 0.0)]
    processes += [Process(Kind.REPLICA, f"mock.{101 + n}", 101 + n, node, 0.0) for n, node in enumerate(replicas)]
    counts = {f"gateway-{n}": ready.get(f"gateway_{n}", len(replicas)) for n in (1, 2)}
    return View(processes, {name: count for name, count in counts.items() if count >= 0}, frozenset(frozen))


def hit(there: View, *targets: tuple[Kind, float]) -> list[list[int]] | None:
    found = choose(Blow(0.0, [Target(*target) for target in targets], None), there)
    return None if found is None else [[process.pid for process in group] for group in found]


def test_in_a_whole_cluster_everything_may_be_hit() -> None:
    assert hit(view(), (Kind.REPLICA, 0.0)) == [[101]]
    assert hit(view(), (Kind.REPLICA, 0.99)) == [[104]]
    assert hit(view(), (Kind.NODE, 0.6)) == [[2]]
    assert hit(view(), (Kind.NODE_ALL, 0.0)) == [[1, 101, 102]]
    assert hit(view(), (Kind.GATEWAY, 0.0)) == [[11]]
    assert hit(view(), (Kind.NATS, 0.5), (Kind.ETCD, 0.5)) == [[21], [22]]


def test_a_gateway_is_hit_only_while_the_other_answers_and_reaches_a_replica() -> None:
    assert hit(view(gateway_2=-1), (Kind.GATEWAY, 0.0)) is None
    assert hit(view(gateway_2=0), (Kind.GATEWAY, 0.0)) is None
    assert hit(view(frozen=(12,)), (Kind.GATEWAY, 0.0)) is None
    assert hit(view(gateway_1=-1), (Kind.GATEWAY, 0.0)) == [[11]], "which answers no more itself"
    assert hit(view(), (Kind.GATEWAY, 0.0), (Kind.GATEWAY, 0.0)) is None


def test_nothing_is_hit_while_no_gateway_is_well() -> None:
    for kind in Kind:
        assert hit(view(gateway_1=-1, gateway_2=0), (kind, 0.0)) is None


def test_a_replica_besides_those_hit_and_frozen_must_be_ready_at_every_gateway_that_is_well() -> None:
    assert hit(view(gateway_1=1), (Kind.REPLICA, 0.0)) is None
    assert hit(view(gateway_1=2), (Kind.REPLICA, 0.0)) == [[101]]
    assert hit(view(gateway_1=2, frozen=(104,)), (Kind.REPLICA, 0.0)) is None
    assert hit(view(gateway_1=2), (Kind.REPLICA, 0.0), (Kind.REPLICA, 0.0)) is None
    assert hit(view(gateway_1=2), (Kind.NODE_ALL, 0.0)) is None
    assert hit(view(), (Kind.REPLICA, 0.0), (Kind.REPLICA, 0.0)) == [[101], [102]]


def test_a_node_with_all_replicas_is_not_hit() -> None:
    for kind in (Kind.NODE, Kind.NODE_ALL):
        assert hit(view(replicas=(1, 1, 1, 1)), (kind, 0.0)) == ([[2]])


def test_a_node_counts_with_its_replicas_though_they_live() -> None:
    assert hit(view(gateway_1=3), (Kind.NODE, 0.0)) == [[1]]
    assert hit(view(gateway_1=2), (Kind.NODE, 0.0)) is None


def test_what_is_not_there_is_not_hit() -> None:
    there = view()
    gone = [process for process in there.processes if process.kind is not Kind.NATS]
    assert hit(View(gone, there.ready, there.frozen), (Kind.NATS, 0.0)) is None


def test_blows_follow_from_the_seed_and_are_of_every_kind() -> None:
    first, second = ([draw_blow(rng, (0.1, 0.2)) for _ in range(500)] for rng in (random.Random(3), random.Random(3)))
    assert first == second
    assert {target.kind for blow in first for target in blow.targets} == set(Kind)
    assert any(blow.freeze_s for blow in first)
    assert all(0.1 <= blow.gap_s <= 0.2 for blow in first)
    pairs = [[target.kind for target in blow.targets] for blow in first if len(blow.targets) == 2]
    assert pairs
    assert [Kind.GATEWAY, Kind.GATEWAY] not in pairs


# --- processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("python -m holdfast.actors.replica_main default.mock.7", (Kind.REPLICA, "default.mock.7")),
        ("python -m holdfast.gateway.cli node node-2 --logs x", (Kind.NODE, "node-2")),
        ("python -m holdfast.gateway.cli gateway gateway-1", (Kind.GATEWAY, "gateway-1")),
        ("/bin/nats-server --config x", (Kind.NATS, "nats-server")),
        ("/some/etcd --name=holdfast", (Kind.ETCD, "etcd")),
        ("python -S -I -c program 1 python -m holdfast.gateway.cli node node-2", None),
        ("python -m holdfast.gateway.cli up", None),
        ("", None),
    ],
)
def test_processes_are_known_by_their_command_lines(command: str, named: tuple[Kind, str] | None) -> None:
    assert name_process(command.split()) == named


def test_what_is_left_over_is_found_named_and_ended(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "holdfast-left"]
    with subprocess.Popen(sleeper, env={**os.environ, MARK: str(tmp_path)}) as process:
        while str(process.pid) not in map(str, find_marked(tmp_path)):
            assert process.poll() is None
        left = end_leftovers(tmp_path)
        assert process.wait() == -9
    assert len(left) == 1
    assert f"process {process.pid}" in left[0]
    assert "holdfast-left" in left[0]
    assert end_leftovers(tmp_path) == []


def test_only_the_process_that_was_meant_gets_the_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, env={**os.environ, MARK: str(tmp_path)}) as process:
        try:
            assert list(find_processes(tmp_path)) == [], "none of a cluster's"
            assert not send(Process(Kind.REPLICA, "r", process.pid, 0, 0.0), 9)  # type: ignore[arg-type]
            assert process.poll() is None
        finally:
            process.kill()


# --- the log ---------------------------------------------------------------------------------------------------


def sound_log() -> tuple[list[LogEntry], Fold]:
    """Three nodes join; what a follower knows after two of them."""
    history, hashes = History(), []
    for number in range(3):
        history.fact(NodeJoined(f"node-{number}", "h", 1, "0", 4), by=f"node-{number}")
        hashes.append(state_hash(history.state))
    entries = [
        LogEntry(record.sequence, record.subject, encode_event(record.event), record.event.id)
        for record in history.records
    ]
    return entries, Fold(2, hashes[1])


def test_a_sound_log_passes() -> None:
    entries, seen = sound_log()
    report = check_log(entries, 3, seen)
    assert (report.events, report.problems) == (3, [])
    assert check_log(entries, 3, None).problems == []


def test_a_hole_is_seen() -> None:
    entries, _ = sound_log()
    assert "the sequences are not 1 to 3" in check_log([entries[0], entries[2]], 3, None).problems[0]
    assert "the sequences are not 1 to 4" in check_log(entries, 4, None).problems[0]


def test_an_event_that_stands_there_twice_is_seen() -> None:
    entries, _ = sound_log()
    again = [*entries, msgspec.structs.replace(entries[0], sequence=4, subject="facts.other")]
    assert any("e1 is there already" in problem for problem in check_log(again, 4, None).problems)


def test_what_cannot_be_folded_is_seen() -> None:
    entries, _ = sound_log()
    broken = [entries[0], msgspec.structs.replace(entries[1], data=b"{}"), entries[2]]
    assert "sequence 2 can't be folded" in check_log(broken, 3, None).problems[0]


def test_a_follower_that_saw_something_else_is_noticed() -> None:
    entries, seen = sound_log()
    assert "at sequence 2" in check_log(entries, 3, Fold(2, "other")).problems[0]
    assert "at sequence 9" in check_log(entries, 3, Fold(9, seen.hash)).problems[0]
