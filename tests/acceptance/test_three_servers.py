"""`holdfast up --servers 3`: three log servers and three lease servers on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Cluster, Start, Status
from tests.acceptance.test_up import assert_refused, complete, running

KINDS = ("nats", "etcd")


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster("--servers", "3")


def healthy(status: Status) -> bool:
    return not status["degraded"]


def test_status_shows_every_server_with_its_process_and_role(cluster: Cluster) -> None:
    status = cluster.wait(healthy)
    for kind, name in (("nats", "nats-server"), ("etcd", "etcd")):
        service = status["services"][kind]
        servers = service["servers"]
        assert [one["name"] for one in servers] == [f"{name}-1", f"{name}-2", f"{name}-3"]
        assert [one["url"] for one in servers] == service["urls"]
        assert all(one["reachable"] and psutil.pid_exists(one["pid"]) for one in servers)
        assert sorted(one["role"] for one in servers) == ["follower", "follower", "leader"]
        assert (service["url"], service["pid"]) in [(one["url"], one["pid"]) for one in servers]
    assert status["log"]["replicas"] == 3
    shown = cluster.command("status")
    assert all(one["url"] in shown for kind in KINDS for one in status["services"][kind]["servers"])


def test_the_doctor_finds_nothing_wrong_with_three_servers(cluster: Cluster) -> None:
    cluster.wait(healthy)
    rows = {row["check"]: row for row in json.loads(cluster.command("doctor", "--json"))}
    assert "all 3 are well" in rows["log servers"]["found"]
    assert "all 3 are well" in rows["lease servers"]["found"]
    assert rows["stream"]["result"] == rows["fsync of log"]["result"] == "ok"


def test_another_number_of_servers_is_refused_where_there_is_data_and_the_next_up_goes_on(cluster: Cluster) -> None:
    """After an orderly end, and after `kill -9` of everything."""
    before, history = cluster.wait(healthy), cluster.log()
    text = complete(cluster)
    assert len(cluster.processes()) == 3 + 3 + 1 + 1 + 2  # servers, node, gateway, replicas
    assert cluster.stop() == 0, cluster.output
    assert cluster.processes() == []

    up = ["up", "--data-dir", str(cluster.data_dir), "--port", str(cluster.port)]
    assert_refused([*up, "--servers", "1"], "3 nats-servers", "leave --servers out", "--data-dir")

    cluster.start("--nodes", "1")  # says nothing about servers
    after = cluster.wait(healthy)
    for kind in KINDS:
        assert after["services"][kind]["urls"] == before["services"][kind]["urls"]
    assert len(running(after)) == 2
    assert cluster.log()[: len(history)] == history
    assert complete(cluster) == text

    history = cluster.log()
    cluster.kill_everything()
    cluster.start("--nodes", "1")
    cluster.wait(healthy)
    assert cluster.log()[: len(history)] == history
    assert complete(cluster) == text


def test_data_of_one_server_is_not_taken_for_that_of_three(start_cluster: Start) -> None:
    """The last test of the module: it ends the cluster that the others look at."""
    cluster = start_cluster()
    assert cluster.stop() == 0, cluster.output
    assert_refused(
        ["up", "--data-dir", str(cluster.data_dir), "--port", str(cluster.port), "--servers", "3"],
        "1 nats-server ",
        "leave --servers out",
    )


def test_more_copies_of_the_log_than_servers_are_refused(tmp_path: Path) -> None:
    up = ["up", "--engine", "mock", "--data-dir", str(tmp_path / "d")]
    assert_refused(up, "HOLDFAST_NATS__REPLICAS is 3", "--servers", environment={"HOLDFAST_NATS__REPLICAS": "3"})


def test_servers_that_are_all_given_leave_none_to_count(tmp_path: Path) -> None:
    given = ["--nats", "nats://127.0.0.1:1", "--etcd", "http://127.0.0.1:1"]
    assert_refused(
        ["up", "--servers", "3", "--engine", "mock", "--data-dir", str(tmp_path / "d"), *given], "leave it out"
    )
