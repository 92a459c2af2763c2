"""Log and lease servers that are gone for longer than a lease lives: streams, requests and replicas don't notice.

The servers are the test's own, so that nobody starts or thaws them before the test does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.store.embedded import ChildProcess, etcd_server, nats_server
from tests.acceptance.conftest import HTTP_TIMEOUT_S, NO_CANARY, Cluster, Start, holdfast, until
from tests.faults.test_replica_faults import PACE, assert_right, ready, running, under_streams

TTL_S = 3
HOLD_S = 2 * TTL_S
"""An outage lasts this long, counted from when it was noticed."""

PLANES = {"nats": "log", "etcd": "leases"}
OUTAGES = [["nats"], ["etcd"], ["nats", "etcd"]]


class Servers:
    """A nats-server and an etcd. They are started and ended in a loop of their own, between those of the tests."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._servers = {"nats": nats_server(folder / "nats"), "etcd": etcd_server(folder / "etcd")}
        for server in self._servers.values():
            self._runner.run(server.start())

    @property
    def options(self) -> list[str]:
        return [part for name, server in self._servers.items() for part in (f"--{name}", server.url)]

    def fail(self, names: list[str], fault: signal.Signals) -> None:
        for name in names:
            os.kill(self._pid(self._servers[name]), fault)

    def mend(self, names: list[str], fault: signal.Signals) -> None:
        """Thaw them, or start them again."""
        for name in names:
            server = self._servers[name]
            if fault is signal.SIGSTOP:
                os.kill(self._pid(server), signal.SIGCONT)
            else:
                self._runner.run(server.wait())
                self._runner.run(server.start())

    def close(self) -> None:
        for server in self._servers.values():
            self._runner.run(server.kill())
        self._runner.close()

    @staticmethod
    def _pid(server: ChildProcess) -> int:
        assert server.pid is not None
        return server.pid


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture(scope="module")
def cluster(servers: Servers, start_cluster: Start) -> Cluster:
    """One for all tests of this module: each leaves it as it found it."""
    ttl = ["--lease-ttl-s", str(TTL_S)]
    return start_cluster(*servers.options, *ttl, *NO_CANARY, engine_args=PACE, nodes=2, replicas=4, gateways=2)


def whole(status: dict[str, Any]) -> bool:
    """Everything answers, has its lease, and is led."""
    members = [*status["nodes"], *status["gateways"]]
    return (
        not status["degraded"]
        and status["controller"]["status"] == "LEADING"
        and not any(member["message"] for member in members)
        and len(running(status)) == 4
    )


def told_of(cluster: Cluster, down: list[str]) -> dict[str, datetime]:
    """Since when these planes are down, and no other, once `/health` and `/metrics` say so."""
    health = cluster.wait_health(
        lambda health: [name for name, plane in health["details"]["planes"].items() if not plane["up"]] == down
    )
    assert health["status"] == "healthy"
    assert len(health["details"]["degraded"]) == len(down)
    metrics = httpx.get(f"{cluster.url}/metrics", timeout=HTTP_TIMEOUT_S, trust_env=False).text
    since = {name: datetime.fromisoformat(health["details"]["planes"][name]["down_since"]) for name in down}
    for plane in PLANES.values():
        assert f'holdfast_plane_up{{plane="{plane}"}} {0.0 if plane in down else 1.0}' in metrics
        assert (f'holdfast_plane_down_since_timestamp_seconds{{plane="{plane}"}}' in metrics) == (plane in down)
    return since


def status_during(cluster: Cluster, services: list[str]) -> None:
    """`holdfast status` says what is degraded, and since when."""
    result = holdfast("status", "--json", "--data-dir", str(cluster.data_dir))
    assert result.exit_code == (2 if len(services) == 2 else 0), result.output
    status = json.loads(result.stdout)
    for name, service in status["services"].items():
        assert service["reachable"] == (name not in services)
        assert (service["down_since"] is not None) == (name in services)
    assert len(status["degraded"]) == len(services)
    assert all("unreachable since" in sentence for sentence in status["degraded"])


def suspect_one(cluster: Cluster, pid: int) -> None:
    """Something happens that the log is to be told of: a replica freezes, is suspected, and is trusted again."""
    os.kill(pid, signal.SIGSTOP)
    try:
        cluster.wait_health(lambda health: ready(health) == 3)
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.wait_health(lambda health: ready(health) == 4)


def suspicions(cluster: Cluster, before: int, kind: str = "ReplicaSuspected") -> int:
    """How many events of this kind the log has since."""
    return sum(event["payload"]["type"] == kind for event in cluster.log()[before:])


def check_log(events: list[dict[str, Any]], before: int) -> list[dict[str, Any]]:
    """Every event is there once and nobody was given up or restarted since; the events since."""
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert len({event["id"] for event in events}) == len(events)
    since = events[before:]
    expected = {"LeaderElected", "LeaderDeposed", "ReplicaSuspected", "ReplicaTrusted", "StreamsMigrated"}
    assert {event["payload"]["type"] for event in since} <= expected
    return since


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("services", OUTAGES, ids=["nats", "etcd", "both"])
def test_an_outage_of_servers_costs_nothing_and_is_told(
    servers: Servers, cluster: Cluster, services: list[str], fault: signal.Signals
) -> None:
    status = cluster.wait(whole)
    before = len(cluster.log())
    down = [PLANES[name] for name in services]
    try:
        assert_right(asyncio.run(under_streams(cluster, lambda: servers.fail(services, fault))))
        since = min(told_of(cluster, down).values())
        status_during(cluster, services)
        suspect_one(cluster, running(status)[0]["pid"])
        while (datetime.now(UTC) - since).total_seconds() < HOLD_S:
            assert_right(asyncio.run(under_streams(cluster, lambda: None)))
        assert told_of(cluster, down).keys() == {*down}
    finally:
        servers.mend(services, fault)
    assert_right(asyncio.run(under_streams(cluster, lambda: None)))
    after = cluster.wait(whole)
    cluster.wait_health(lambda health: not health["details"]["degraded"])
    assert {one["pid"] for one in running(after)} == {one["pid"] for one in running(status)}
    assert [node["pid"] for node in after["nodes"]] == [node["pid"] for node in status["nodes"]]
    cluster.wait(lambda _status: suspicions(cluster, before, "ReplicaTrusted") == suspicions(cluster, before) >= 1)
    check_log(cluster.log(), before)


def test_lease_servers_that_freeze_for_a_little_longer_than_a_lease_cost_nobody_his_place(
    servers: Servers, cluster: Cluster
) -> None:
    """No call to them fails, since each waits for longer than that: what is missing afterwards is not what was lost."""
    status = cluster.wait(whole)
    before = len(cluster.log())
    for _ in range(3):
        servers.fail(["etcd"], signal.SIGSTOP)
        thaw_at = time.monotonic() + 1.5 * TTL_S
        try:
            until(lambda: time.monotonic() > thaw_at, 60, lambda: "")  # noqa: B023
        finally:
            servers.mend(["etcd"], signal.SIGSTOP)
        cluster.wait(whole)
        quiet_at = time.monotonic() + 1.5 * TTL_S
        until(lambda: time.monotonic() > quiet_at, 60, lambda: "")  # noqa: B023
    check_log(cluster.log(), before)
    assert {one["pid"] for one in running(cluster.wait(whole))} == {one["pid"] for one in running(status)}


def test_after_all_outages_what_dies_is_replaced(servers: Servers, cluster: Cluster) -> None:
    victim = running(cluster.wait(whole))[0]
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.wait(lambda status: whole(status) and victim["pid"] not in {one["pid"] for one in running(status)})


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_members_that_seldom_talk_to_the_lease_servers_tell_of_their_outage_too(
    servers: Servers, start_cluster: Start, fault: signal.Signals
) -> None:
    cluster = start_cluster(*servers.options, "--lease-ttl-s", "3000", replicas=4)
    servers.fail(["etcd"], fault)
    try:
        told_of(cluster, ["leases"])
        status_during(cluster, ["etcd"])
    finally:
        servers.mend(["etcd"], fault)
    told_of(cluster, [])
