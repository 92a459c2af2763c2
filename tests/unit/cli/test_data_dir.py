"""The data directory: its layout, its lock, and what it tells about the cluster."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.core.errors import Misuse, WorldFailure
from holdfast.gateway.cli.finding import find_cluster
from holdfast.gateway.data_dir import ClusterFile, DataDirectory, Member, Service

NATS = Service(["nats://127.0.0.1:20001"], embedded=True, servers=[Member("nats-server", 1)])
ETCD = Service(["http://127.0.0.1:20002"], embedded=True, servers=[Member("etcd", 2)])


def cluster_file(*, running: bool = True) -> ClusterFile:
    return ClusterFile("blue", "1", 3, running, datetime(2026, 1, 1, tzinfo=UTC), 5.0, NATS, ETCD, [], [])


def test_one_at_a_time_holds_it(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path / "d").lock()
    try:
        with pytest.raises(Misuse, match=rf"process {os.getpid()}"):
            DataDirectory(tmp_path / "d").lock()
        assert first.in_use()
    finally:
        first.unlock()
    assert not first.in_use()
    DataDirectory(tmp_path / "d").lock().unlock()


def test_a_directory_of_somebody_elses_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(Misuse, match="no Holdfast data"):
        DataDirectory(tmp_path).lock()
    assert not (tmp_path / "layout").exists()


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misuse, match="--data-dir"):
        DataDirectory(tmp_path / "file").lock()


def test_what_is_written_about_the_cluster_is_read_back(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert directory.read_cluster() is None
    directory.write_cluster(cluster_file())
    assert directory.read_cluster() == cluster_file()
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(WorldFailure, match=r"cluster\.json"):
        directory.read_cluster()


def test_commands_find_a_running_cluster_by_its_directory(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path).lock()
    try:
        directory.write_cluster(cluster_file())
        found = find_cluster(tmp_path, None, None)
    finally:
        directory.unlock()
    assert found.settings.cluster == "blue"
    assert found.settings.log_settings().urls == ("nats://127.0.0.1:20001",)
    assert found.settings.log_settings().stream == "HOLDFAST_blue"
    assert found.settings.lease_settings().endpoints == ("http://127.0.0.1:20002",)


@pytest.mark.parametrize(("running", "words"), [(True, "was killed"), (False, "is stopped")])
def test_commands_say_when_the_cluster_has_ended(tmp_path: Path, running: bool, words: str) -> None:
    DataDirectory(tmp_path).write_cluster(cluster_file(running=running))
    with pytest.raises(Misuse, match=words):
        find_cluster(tmp_path, None, None)


def test_urls_go_before_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_cluster(tmp_path, ["nats://a:1,nats://b:2"], ["http://c:3", "http://d:4"])
    assert found.settings.nats.urls == ("nats://a:1", "nats://b:2")
    assert found.settings.etcd.endpoints == ("http://c:3", "http://d:4")
    monkeypatch.setenv("HOLDFAST_NATS__URLS", '["nats://e:5"]')
    monkeypatch.setenv("HOLDFAST_ETCD__ENDPOINTS", '["http://f:6"]')
    assert find_cluster(tmp_path, None, None).settings.nats.urls == ("nats://e:5",)


def test_nodes_see_to_the_logs_of_replicas_and_up_to_all_others(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "d").lock()
    directory.unlock()
    for name in ("up.log", "nats-server-1.log", "node-1.log", "app.tiny.1.log", "node-1.log.1"):
        (directory.logs / name).touch()
    assert {path.name for path in directory.logs_but_replicas()} == {"up.log", "nats-server-1.log", "node-1.log"}
