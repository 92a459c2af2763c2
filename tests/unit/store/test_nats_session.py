"""The session leaves a server that knows of no leader, and only then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from holdfast.core.errors import LogUnavailable
from holdfast.store.nats_link import Message, NoResponders
from holdfast.store.nats_session import LEADERLESS_MAX_S, Session
from holdfast.store.settings import JetStreamSettings
from tests.unit.support.virtual_time import now_s, virtual_time

SETTINGS = JetStreamSettings(urls=("nats://a:1", "nats://b:1", "nats://c:1"))


class FakeLink:
    """A connection that only can be lost."""

    server_version = "2.12.3"

    def __init__(self, url: str) -> None:
        self.url = url
        self.discovered_urls: list[str] = []
        self.lost = asyncio.Event()

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Message:
        raise NoResponders(subject)

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        raise NotImplementedError

    async def subscribe(self, inbox: str, deliver: Callable[[Any], Awaitable[None]]) -> Any:
        raise NotImplementedError

    async def unsubscribe(self, subscription: Any) -> None:
        raise NotImplementedError

    def new_inbox(self) -> str:
        raise NotImplementedError

    async def probe(self, timeout_s: float) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.lost.set()


async def dial(_settings: JetStreamSettings, url: str) -> FakeLink:
    return FakeLink(url)


async def opened() -> Session:
    session = Session(SETTINGS, dial=dial, chance=random.Random(1))
    await session.open()
    return session


@virtual_time
async def test_a_server_without_a_leader_is_left_for_another_after_some_seconds() -> None:
    session = await opened()
    first = await session.connection(1.0)
    began_s = now_s()
    while not first.lost.is_set():
        await asyncio.sleep(0.5)
        await session.leaderless(first)
    assert LEADERLESS_MAX_S < now_s() - began_s <= LEADERLESS_MAX_S + 1.0
    second = await session.connection(1.0)
    assert second.url != first.url
    await session.leaderless(second)
    assert not second.lost.is_set(), "it has its own time"
    await session.close()


@virtual_time
async def test_a_leader_that_answers_now_and_then_keeps_the_connection() -> None:
    session = await opened()
    connection = await session.connection(1.0)
    for _ in range(10):
        await session.leaderless(connection)
        await asyncio.sleep(LEADERLESS_MAX_S * 0.9)
        await session.leaderless(connection)
        session.led()
        await asyncio.sleep(LEADERLESS_MAX_S)
    assert await session.connection(1.0) is connection
    await session.close()


@virtual_time
async def test_what_is_late_to_tell_of_an_earlier_connection_says_nothing_of_this_one() -> None:
    session = await opened()
    first = await session.connection(1.0)
    await first.close()
    await asyncio.sleep(SETTINGS.reconnect_wait_max_s)
    second = await session.connection(1.0)
    assert second is not first
    for _ in range(3):
        await session.leaderless(first)
        await asyncio.sleep(LEADERLESS_MAX_S)
    assert await session.connection(1.0) is second
    await session.close()


@virtual_time
async def test_whoever_waits_for_a_connection_hears_of_the_end_of_the_session() -> None:
    session = await opened()
    first = await session.connection(1.0)
    await first.close()
    await asyncio.sleep(0)
    waiting = asyncio.create_task(session.connection(60.0))
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(LogUnavailable):
        await waiting
    assert now_s() < 1.0
