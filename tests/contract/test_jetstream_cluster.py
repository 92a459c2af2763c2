"""The log on three servers: any one of them may die, the stream's leader included."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from holdfast.core.ports import Log
from holdfast.store.embedded import ChildProcess
from holdfast.store.embedded_cluster import nats_servers
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.nats_connection import Connection
from holdfast.store.settings import JetStreamSettings
from tests.contract.helpers import Reading, eventually
from tests.contract.worlds import jetstream_settings

ELECTION_S = 120.0
"""Catches hangs only: servers that start again take many times longer on a busy machine than the 9 s of an election."""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path, stack: AsyncExitStack) -> list[ChildProcess]:
    servers = nats_servers(tmp_path, 3)
    for server in servers:
        await stack.enter_async_context(server)
    return servers


def settings_for(servers: list[ChildProcess]) -> JetStreamSettings:
    urls = [server.url for server in servers]
    return jetstream_settings(*urls, replicas=3, append_timeout_s=ELECTION_S, open_timeout_s=ELECTION_S)


async def leader(log: JetStreamLog, servers: list[ChildProcess]) -> ChildProcess:
    """The server that leads the stream; its name ends in its number."""
    name = (await log._api.stream_info(ELECTION_S))["cluster"]["leader"]
    return servers[int(name.rpartition("-")[2]) - 1]


async def write(log: Log, subject: str, count: int) -> None:
    last = 0
    for number in range(count):
        last = await log.append(subject, b"%d" % number, message_id=f"{subject}-{number}", expected_last=last)


async def test_the_death_of_the_leader_loses_and_doubles_nothing(
    cluster: list[ChildProcess], stack: AsyncExitStack
) -> None:
    settings = settings_for(cluster)
    log = await JetStreamLog.open(settings)
    stack.push_async_callback(log.close)
    assert (await log.status()).replicas == 3
    async with Reading(log.follow()) as reading, asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(write(log, f"facts.w.{number}", 100))
        await reading.count(60)
        victim = await leader(log, cluster)
        await victim.kill()
        entries = await reading.count(300, timeout_s=ELECTION_S)
        await victim.start()
    assert [entry.sequence for entry in entries] == list(range(1, 301))
    for number in range(3):
        assert [e.data for e in entries if e.subject == f"facts.w.{number}"] == [b"%d" % i for i in range(100)]


async def test_a_server_that_is_left_alone_is_left_by_its_clients_too(
    cluster: list[ChildProcess], stack: AsyncExitStack
) -> None:
    log = await JetStreamLog.open(settings_for(cluster))
    stack.push_async_callback(log.close)
    await write(log, "facts.before", 3)
    before = await log._session.connection(ELECTION_S)
    alone = next(server for server in cluster if server.url == before.url)
    async with Reading(log.follow()) as reading:
        await reading.count(3)
        for server in cluster:
            if server is not alone:
                await server.kill()
        appending = asyncio.create_task(write(log, "facts.after", 1))
        await eventually(before.lost.is_set, timeout_s=ELECTION_S)
        for server in cluster:
            if server is not alone:
                await server.start()
        await appending
        assert [entry.sequence for entry in await reading.count(4, timeout_s=ELECTION_S)] == [1, 2, 3, 4]


async def test_a_server_that_hangs_is_left_for_the_others_and_the_log_goes_on(
    cluster: list[ChildProcess], stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await JetStreamLog.open(settings_for(cluster))
    stack.push_async_callback(log.close)
    await write(log, "facts.before", 10)
    url = (await log.status()).url
    frozen = next(server for server in cluster if server.url == url)
    assert frozen.pid is not None
    dialled: list[str] = []

    async def note(settings: JetStreamSettings, url: str) -> Connection:
        dialled.append(url)
        return await Connection.dial(settings, url)

    monkeypatch.setattr(log._session, "_dial", note)
    async with Reading(log.follow(after=10)) as reading:
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            await write(log, "facts.after", 10)
            entries = await reading.count(10, timeout_s=ELECTION_S)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        assert [entry.sequence for entry in entries] == list(range(11, 21))
    assert dialled
    assert dialled[0] != url
