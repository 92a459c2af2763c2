"""Only the lease of a process of this machine is ended, and only once that process is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from holdfast.actors.identity import Identity
from holdfast.core.errors import LeasesUnavailable
from holdfast.gateway import ending
from holdfast.gateway.processes import identify, place
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.memory_leases import MemoryLeases, MemoryLeasesServer

HERE = place()
HOST = socket.gethostname()
ELSEWHERE = [("another", HERE), (HOST, "another-boot/1"), (HOST, "")]
"""Hosts and places. A process that doesn't tell its place may be anywhere that has our host's name."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MemoryLeasesServer:
    server = MemoryLeasesServer()

    @asynccontextmanager
    async def open_leases(_settings: Settings) -> AsyncIterator[MemoryLeases]:
        leases = server.client(request_timeout_s=0.05)
        await leases.status()
        yield leases

    monkeypatch.setattr(ending, "open_leases", open_leases)
    return server


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def held(server: MemoryLeasesServer, host: str, pid: int, at: str) -> Identity:
    """A node with its lease."""
    identity = Identity("test", "node", "a", "1", host, pid, at)
    leases = server.client()
    await leases.put(identity.lease_key, identity.lease_value(), (await leases.grant(600)).id)
    return identity


def keys(server: MemoryLeasesServer) -> list[str]:
    return [item.key for item in server.list("").items]


def test_a_member_tells_its_place() -> None:
    identity = identify(load_settings(), "node", "a")
    assert identity.place == HERE == place()
    assert identity.place


async def test_the_lease_of_a_process_that_is_gone_is_ended_with_a_note(server: MemoryLeasesServer, dead: int) -> None:
    identity = await held(server, HOST, dead, HERE)
    (ended,) = await ending.end_leases_of_dead(load_settings(), "node", "a")
    assert (ended.holder, ended.pid) == ("a", dead)
    assert keys(server) == [f"ended/{identity.lease_key}"]
    assert await ending.end_leases_of_dead(load_settings(), "node", "a") == []


async def test_the_lease_of_a_process_that_lives_is_left_alone(server: MemoryLeasesServer) -> None:
    identity = await held(server, HOST, os.getpid(), HERE)
    assert await ending.end_leases_of_dead(load_settings(), "node", "a") == []
    assert keys(server) == [identity.lease_key]


@pytest.mark.parametrize(("host", "at"), ELSEWHERE, ids=["host", "container or boot", "unknown"])
async def test_a_process_id_of_elsewhere_says_nothing(
    server: MemoryLeasesServer, dead: int, host: str, at: str
) -> None:
    identity = await held(server, host, dead, at)
    assert await ending.end_leases_of_dead(load_settings(), "node", "a") == []
    await ending.end_lease(load_settings(), "node", "a", dead)
    assert keys(server) == [identity.lease_key]


async def test_a_supervisor_ends_the_lease_of_its_child_and_not_of_the_next_one(
    server: MemoryLeasesServer, dead: int
) -> None:
    identity = await held(server, HOST, dead, HERE)
    await ending.end_lease(load_settings(), "node", "a", dead + 1)
    assert keys(server) == [identity.lease_key]
    await ending.end_lease(load_settings(), "node", "a", dead)
    assert keys(server) == [f"ended/{identity.lease_key}"]


async def test_a_supervisor_goes_on_where_no_lease_server_answers(
    server: MemoryLeasesServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    await ending.end_lease(load_settings(), "node", "a", 1)
    assert "ends with its time to live" in caplog.text
    with pytest.raises(LeasesUnavailable):
        await ending.end_leases_of_dead(load_settings(), "node", "a")
