"""Leaders and nodes that die while their machine runs on, or freeze: who leads next, and what the log says of it.

Where leases live for ten minutes, what happens within a test does not happen because they end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster, clusters
from tests.faults.test_replica_faults import (
    PACE,
    assert_right,
    happened,
    ready,
    running,
    under_streams,
    while_streams_come,
)

LONG_TTL = ("--lease-ttl-s", "600")
SHORT_TTL = ("--lease-ttl-s", "3")

FAILED_STARTS = 5
"""After so many the next start waits for a while, which a freeze of the leader fits into."""

Event = dict[str, Any]


@pytest.fixture(scope="module")
def enduring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests with leases that outlast them: whoever was killed is back or replaced at the end of each."""
    with clusters(tmp_path_factory) as start:
        yield start(*LONG_TTL, engine_args=PACE, nodes=2, replicas=4)


@pytest.fixture
def cluster(enduring: Cluster) -> Cluster:
    """The same, with all of it there, and replicas on both nodes."""
    whole = enduring.wait(lambda status: len(running(status)) == 4 and len(alive(status)) >= 2)
    leader, replicas = whole["controller"]["node"], running(whole)
    if not {one["node"] for one in replicas} - {leader}:
        for one in replicas[:2]:  # what is replaced goes where there is less
            os.kill(one["pid"], signal.SIGKILL)
        moved = {one["pid"] for one in replicas[:2]}
        enduring.wait(lambda now: len(running(now)) == 4 and not moved & {one["pid"] for one in running(now)})
    return enduring


def alive(status: dict[str, Any]) -> list[int]:
    """The processes of the nodes, once all take part."""
    nodes = status["nodes"]
    return [node["pid"] for node in nodes] if {node["status"] for node in nodes} == {"ALIVE"} else []


def processes_of(status: dict[str, Any], node: str) -> list[int]:
    """A node's process and its replicas'."""
    (found,) = (one for one in status["nodes"] if one["id"] == node)
    return [found["pid"], *(one["pid"] for one in running(status) if one["node"] == node)]


def kill(*pids: int) -> datetime:
    """SIGKILL to all; when."""
    now = datetime.now(UTC)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return now


def first(events: list[Event], kind: str, after: datetime) -> Event:
    """The first event of a kind after a moment."""
    since = [event for event in events if datetime.fromisoformat(event["time"]) >= after]
    found = [event for event in since if event["payload"]["type"] == kind]
    assert found, [(event["time"], event["writer"], event["payload"]) for event in since]
    return found[0]


def follows_in_s(event: Event, moment: datetime) -> float:
    return (datetime.fromisoformat(event["time"]) - moment).total_seconds()


def assert_one_leader_at_a_time(events: list[Event]) -> None:
    """Epochs of decisions never fall, and each event is there once, in a sequence without holes."""
    epochs = [event["epoch"] for event in events if event["subject"].endswith("decisions")]
    assert epochs == sorted(epochs)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert len({event["id"] for event in events}) == len(events)


async def test_the_next_leader_does_not_wait_for_the_lease_of_a_killed_one(cluster: Cluster) -> None:
    before = cluster.status()["controller"]
    killed: list[datetime] = []
    assert_right(await under_streams(cluster, lambda: killed.append(kill(before["pid"]))))
    cluster.wait(lambda status: len(running(status)) == 4 and before["pid"] not in (alive(status) or [before["pid"]]))
    events = cluster.log()
    election, rejoined = first(events, "LeaderElected", killed[0]), first(events, "NodeJoined", killed[0])
    assert election["payload"]["node"] != before["node"]
    assert election["sequence"] < rejoined["sequence"], "it was not the restarted node that cleared the way"
    lost = first(events, "NodeLost", killed[0])
    assert (lost["payload"]["node"], lost["payload"]["reason"]) == (before["node"], "its process ended")
    assert_one_leader_at_a_time(events)
    print(f"the next leader was elected {follows_in_s(election, killed[0]):.3f} s after kill -9 of the last")


async def test_streams_do_not_notice_a_frozen_leader_nor_the_next_one(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(*SHORT_TTL, engine_args=PACE, nodes=2, replicas=4)
    stale = cluster.status()["controller"]

    def freeze() -> None:
        os.kill(stale["pid"], signal.SIGSTOP)
        try:
            cluster.wait(lambda status: status["controller"]["epoch"] > stale["epoch"])
        finally:
            os.kill(stale["pid"], signal.SIGCONT)
        cluster.wait(lambda _: bool(happened_any(cluster, "LeaderDeposed")))

    await while_streams_come(cluster, freeze)
    assert_one_leader_at_a_time(cluster.log())


async def test_leaders_killed_one_after_the_other_and_all_at_once_are_followed(cluster: Cluster) -> None:

    def whole_after(epoch: int, pids: set[int]) -> dict[str, Any]:
        return cluster.wait(
            lambda status: (
                status["controller"]["status"] == "LEADING"
                and status["controller"]["epoch"] > epoch
                and len(running(status)) == 4
                and not pids & {*(alive(status) or pids)}
            )
        )

    status = cluster.status()
    for _ in range(2):
        leader = status["controller"]
        kill(leader["pid"])
        status = whole_after(leader["epoch"], {leader["pid"]})
    pids = {node["pid"] for node in status["nodes"]}
    kill(*pids)
    whole_after(status["controller"]["epoch"], pids)
    assert_one_leader_at_a_time(cluster.log())


async def test_a_node_killed_with_its_replicas_is_made_up_for_on_the_other_node(cluster: Cluster) -> None:
    status = cluster.status()
    victim = next(node["id"] for node in status["nodes"] if node["id"] != status["controller"]["node"])
    pids = processes_of(status, victim)
    assert len(pids) >= 2
    killed: list[datetime] = []
    assert_right(await under_streams(cluster, lambda: killed.append(kill(*pids))))
    cluster.wait(lambda status: len(running(status)) == 4 and not {one["pid"] for one in running(status)} & {*pids})
    events = cluster.log()
    lost = first(events, "NodeLost", killed[0])
    assert (lost["payload"]["node"], lost["payload"]["reason"]) == (victim, "its process ended")
    made_up = [event for event in events if event["cause"] == lost["id"]]
    assert [event["payload"]["type"] for event in made_up] == ["ReplicaReplaced"] * (len(pids) - 1)
    assert {event["payload"]["node"] for event in made_up} == {status["controller"]["node"]}


def test_a_killed_gateway_is_given_up_and_comes_back(cluster: Cluster) -> None:
    gateway = cluster.status()["gateways"][0]
    killed = kill(gateway["pid"])
    after = cluster.wait(
        lambda status: status["gateways"][0]["pid"] != gateway["pid"] and status["gateways"][0]["status"] == "HEALTHY"
    )
    assert not after["gateways"][0]["message"]
    lost = first(cluster.log(), "GatewayLost", killed)
    assert lost["payload"]["reason"] == "its process ended"


@contextmanager
def node_of_our_own(cluster: Cluster, name: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `holdfast node` that nothing starts again, as under a service manager that gave up."""
    services = cluster.status()["services"]
    urls = [part for name in ("nats", "etcd") for part in (f"--{name}", services[name]["url"])]
    command = [sys.executable, "-m", "holdfast.gateway.cli", "node", name, "--logs", str(folder), *LONG_TTL, *urls]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_another_service_manager_can_tell_that_a_process_has_ended(cluster: Cluster, tmp_path: Path) -> None:
    with node_of_our_own(cluster, "extra", tmp_path) as node:

        def extra(status: dict[str, Any]) -> dict[str, Any]:
            return next((one for one in status["nodes"] if one["id"] == "extra"), {"status": None, "message": ""})

        cluster.wait(lambda status: extra(status)["status"] == "ALIVE" and not extra(status)["message"])
        assert "no lease of a dead process" in cluster.command("leases", "end", "node", "extra")
        node.kill()
        node.wait()
        assert f"process {node.pid}" in cluster.command("leases", "end", "node", "extra")
        cluster.wait(lambda status: extra(status)["status"] == "LOST")
    (lost,) = (event for event in happened_any(cluster, "NodeLost") if event["payload"]["node"] == "extra")
    assert lost["payload"]["reason"] == "its process ended"


def test_a_thawed_leader_has_its_decision_refused_and_says_so(start_cluster: Any) -> None:
    """Before it freezes it knows a decision that is due while it is frozen: thawed, it takes that one before it reads.

    The replacement of a replica whose starts failed is such a one: it waits for the back-off.
    """
    cluster: Cluster = start_cluster(
        *SHORT_TTL,
        nodes=2,
        replicas=1,
        engine_args={"faults": True},
        environment={"HOLDFAST_SERVING__MIGRATION_LIMIT": "0"},
    )
    for number in range(FAILED_STARTS):
        cluster.wait(lambda status: len(running(status)) == 1)
        cluster.wait_health(lambda health: ready(health) == 1)
        poison = {"model": "mock", "prompt": "[[fault:crash]]", "max_tokens": 50}
        answer = httpx.post(f"{cluster.url}/v1/completions", json=poison, timeout=HTTP_TIMEOUT_S, trust_env=False)
        assert answer.status_code == 503
        cluster.wait(lambda _status: len(happened(cluster, "ReplicaExited")) > number)  # noqa: B023
        assert len(happened(cluster, "ReplicaExited")) == number + 1
    stale = cluster.status()["controller"]
    frozen = datetime.now(UTC)
    os.kill(stale["pid"], signal.SIGSTOP)
    try:
        cluster.wait(lambda status: status["controller"]["epoch"] > stale["epoch"] and len(running(status)) == 1)
    finally:
        os.kill(stale["pid"], signal.SIGCONT)
    cluster.wait(lambda _: bool(happened_any(cluster, "LeaderDeposed")))
    events = cluster.log()
    (deposed,) = happened_any(cluster, "LeaderDeposed")
    election = next(event for event in events if event["epoch"] > stale["epoch"])
    assert deposed["writer"] == stale["node"]
    assert deposed["payload"]["refused"] == "ReplicaReplaced"
    assert (deposed["payload"]["epoch"], deposed["payload"]["by_epoch"]) == (stale["epoch"], election["epoch"])
    assert deposed["cause"] == election["id"]
    assert_one_leader_at_a_time(events)
    cluster.wait(lambda status: bool(alive(status)))
    print(f"the next leader was elected {follows_in_s(election, frozen):.3f} s after the last one froze")


def happened_any(cluster: Cluster, kind: str) -> list[Event]:
    return [event for event in cluster.log() if event["payload"]["type"] == kind]
