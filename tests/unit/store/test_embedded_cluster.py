"""Sets of our own servers: what stays with their data, and which ports are kept."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from holdfast.core.errors import WorldFailure
from holdfast.store.embedded import ChildProcess
from holdfast.store.embedded_cluster import NOTE, count_with_data, etcd_servers, nats_servers, server_configs


def ports(servers: list[ChildProcess]) -> list[int]:
    return [int(server.url.rpartition(":")[2]) for server in servers]


def arguments(servers: list[ChildProcess]) -> list[list[str]]:
    """Command lines without what clients dial."""
    return [[text for text in server._argv if "client-urls" not in text] for server in servers]


def test_three_servers_keep_their_names_and_ports(tmp_path: Path) -> None:
    servers, leases = nats_servers(tmp_path / "nats", 3), etcd_servers(tmp_path / "etcd", 3)
    assert [server.name for server in servers] == ["nats-server-1", "nats-server-2", "nats-server-3"]
    assert len({*ports(servers), *ports(leases)}) == 6
    configs = [config.read_text() for config in server_configs(tmp_path / "nats")]
    assert len(configs) == 3
    assert all("sync_interval: always" in config for config in configs)
    again, leases_again = nats_servers(tmp_path / "nats", 3), etcd_servers(tmp_path / "etcd", 3)
    assert [config.read_text() for config in server_configs(tmp_path / "nats")] == configs
    assert ports(again) == ports(servers)
    assert [server._argv for server in leases_again] == [server._argv for server in leases]


def test_ports_that_are_taken_are_given_up_save_those_by_which_etcds_know_each_other(tmp_path: Path) -> None:
    servers, leases = nats_servers(tmp_path / "nats", 3), etcd_servers(tmp_path / "etcd", 3)
    with socket.create_server(("127.0.0.1", ports(servers)[0])), socket.create_server(("127.0.0.1", ports(leases)[1])):
        again, leases_again = nats_servers(tmp_path / "nats", 3), etcd_servers(tmp_path / "etcd", 3)
    assert [ports(again)[0] != ports(servers)[0], ports(again)[1:] == ports(servers)[1:]] == [True, True]
    assert [ports(leases_again)[1] != ports(leases)[1], ports(leases_again)[2]] == [True, ports(leases)[2]]
    assert arguments(leases_again) == arguments(leases)


def test_two_sets_on_one_machine_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        nats_servers(tmp_path / name, 3)
    names = {server_configs(tmp_path / name)[0].read_text().splitlines()[0] for name in ("one", "two")}
    assert len(names) == 2


def test_the_number_of_servers_shows_in_their_data(tmp_path: Path) -> None:
    assert count_with_data(tmp_path) is None
    nats_servers(tmp_path / "three", 3)
    assert count_with_data(tmp_path / "three") == 3
    (tmp_path / "one" / "jetstream").mkdir(parents=True)
    assert count_with_data(tmp_path / "one") == 1


@pytest.mark.parametrize("content", ["{", '{"cluster": "c", "client_ports": [1], "peer_ports": [2]}'])
def test_a_note_that_is_damaged_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / NOTE).write_text(content)
    with pytest.raises(WorldFailure, match=NOTE):
        etcd_servers(tmp_path, 3)
