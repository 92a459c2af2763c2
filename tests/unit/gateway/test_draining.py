"""A gateway that is drained takes nothing new, lets go of what it has, says so, and comes back when told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from holdfast.actors.follower import Follower
from holdfast.core import events as ev
from holdfast.core.config import DrainMode
from holdfast.core.entries import decode_record, encode_event
from holdfast.core.ports import LogEntry
from holdfast.gateway.draining import READ_ON_MAX_S, GatewayDrain
from holdfast.gateway.settings import load_settings
from holdfast.gateway.standing import STARTING_S, Standing
from tests.unit.gateway.client import CHAT, chat, connected
from tests.unit.gateway.processes import RunningGateway, gateway_on
from tests.unit.support.history import History, application
from tests.unit.support.replicas import PATIENCE_S, LocalReplica, Site, eventually, hasten
from tests.unit.support.virtual_time import virtual_time

LONG_S = 3_600.0
SLOW_MS, TOKENS = 500, 100
"""A stream that goes on for as long as anybody looks, unless its engine is hastened."""


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application())
    return site


def order(site: Site, mode: DrainMode | None = None, deadline_s: float | None = None) -> None:
    """The leader drains the gateway."""
    site.read()
    site.decide(ev.DrainOrdered("gateway", "g", mode, deadline_s))


def lift(site: Site) -> None:
    site.read()
    site.decide(ev.DrainLifted("gateway", "g"))


async def state(gateway: RunningGateway) -> str:
    return str((await gateway.health())[1]["state"])


async def until_state(gateway: RunningGateway, wanted: str) -> None:
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while (found := await state(gateway)) != wanted:
        assert asyncio.get_running_loop().time() < deadline_s, f"it is {found}"
        await asyncio.sleep(0.01)


async def begun(connection: Any, replica: LocalReplica) -> bytes:
    """Ask for a stream; its head, with the first event."""
    await connection.post(CHAT, chat(stream=True, max_tokens=TOKENS))
    head: bytes = await connection.reader.readuntil(b"\n\n")
    await eventually(lambda: not replica.free)
    return head


async def test_a_drained_gateway_refuses_requests_and_serves_again_when_the_drain_is_lifted(site: Site) -> None:
    async with site:
        await site.replica()
        async with gateway_on(site) as gateway:
            assert (await gateway.until(200))["state"] == "HEALTHY"
            order(site)
            await until_state(gateway, "DRAINED")
            status, body = await gateway.health()
            assert (status, body["reasons"]) == (503, ["it is drained"])
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
                assert (await client.get("/live")).status_code == 200
                refused = await client.post(CHAT, json=chat())
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_stopping")
                assert refused.headers["retry-after"] == "1"
                lift(site)
                await gateway.until(200)
                assert (await client.post(CHAT, json=chat(max_tokens=3))).status_code == 200
            site.read()
            assert not site.state.gateways["g"].drained


async def test_what_is_open_may_finish_until_the_deadline(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=SLOW_MS)
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await begun(connection, replica)
                order(site, "finish", LONG_S)
                await until_state(gateway, "DRAINING")
                hasten(replica)
                assert b"[DONE]" in await connection.reader.readuntil(b"[DONE]\n\n")
            await until_state(gateway, "DRAINED")
            await eventually(lambda: site.read().gateways["g"].drained)


async def test_without_a_deadline_what_is_open_ends_by_itself(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=SLOW_MS)
        async with gateway_on(site, drain_timeout_s=0) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await begun(connection, replica)
                order(site)
                await until_state(gateway, "DRAINING")
                hasten(replica)
                await connection.reader.readuntil(b"[DONE]\n\n")
            await until_state(gateway, "DRAINED")
            await eventually(lambda: bool(drained(site)))
            assert [record.payload for record in drained(site)] == [ev.GatewayDrained("g", 0)]


@pytest.mark.parametrize(("mode", "deadline_s"), [("finish", 0.1), ("migrate", LONG_S)])
async def test_what_is_open_then_is_told_to_go_on_elsewhere_and_is_kept_for_that(
    site: Site, mode: DrainMode, deadline_s: float
) -> None:
    async with site:
        replica = await site.replica(itl_ms=SLOW_MS)
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await begun(connection, replica)
                order(site, mode, deadline_s)
                async with asyncio.timeout(PATIENCE_S):
                    rest = (await connection.reader.readuntil(b"}}\n\n")).decode()
            assert (
                json.loads(rest[rest.rindex('{"error"') : rest.rindex("}}") + 2])["error"]["code"] == "gateway_stopping"
            )
            await until_state(gateway, "DRAINED")
            assert not replica.free
            await eventually(lambda: site.read().gateways["g"].drained)
            facts = [record.payload for record in drained(site)]
            assert facts == [ev.GatewayDrained("g", 1)]


def drained(site: Site) -> list[ev.Event]:
    entries = (site.server.entry(sequence) for sequence in range(1, site.server.last_sequence + 1))
    events = [decode_record(entry).event for entry in entries if entry is not None]
    return [event for event in events if isinstance(event.payload, ev.GatewayDrained)]


async def first_answer(gateway: RunningGateway) -> httpx.Response:
    """What the first request gets that finds the port open."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await client.post(CHAT, json=chat(max_tokens=3))
                except httpx.TransportError:
                    await asyncio.sleep(0)


async def test_a_gateway_that_is_started_again_is_drained_from_the_beginning(site: Site) -> None:
    async with site:
        await site.replica()
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            order(site)
            await until_state(gateway, "DRAINED")
        async with gateway_on(site, incarnation="2") as gateway:
            refused = await first_answer(gateway)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_stopping")
            body = await gateway.until(503)
            assert body["state"] in ("STARTING", "DRAINING", "DRAINED")
            await until_state(gateway, "DRAINED")


async def test_a_lifted_drain_interrupts_one_that_waits(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=SLOW_MS)
        async with gateway_on(site) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await begun(connection, replica)
                order(site, "finish", LONG_S)
                await until_state(gateway, "DRAINING")
                lift(site)
                await gateway.until(200)
                hasten(replica)
                await connection.reader.readuntil(b"[DONE]\n\n")
        assert not drained(site)


@virtual_time
async def test_a_gateway_is_starting_until_it_can_serve_or_has_had_the_time_to() -> None:
    standing = Standing()
    assert standing.state(healthy=False) == "STARTING"
    standing.joined()
    assert standing.state(healthy=False) == "STARTING"
    await asyncio.sleep(STARTING_S)
    assert standing.state(healthy=False) == "UNHEALTHY"
    again = Standing()
    again.joined()
    assert again.state(healthy=True) == "HEALTHY"
    assert again.state(healthy=False) == "UNHEALTHY"


class Told:
    """A log whose entries come when they are told. Each says how many there are behind it."""

    def __init__(self) -> None:
        self.entries: asyncio.Queue[LogEntry] = asyncio.Queue()

    async def follow(self, _after: int) -> AsyncIterator[LogEntry]:
        while True:
            yield await self.entries.get()

    def tell(self, record: ev.Record, behind: int) -> None:
        data = encode_event(record.event)
        self.entries.put_nowait(LogEntry(record.sequence, record.subject, data, record.event.id, behind))


class Turning:
    """A gateway's requests, of which one is open until it is turned away."""

    def __init__(self) -> None:
        self.standing = Standing()
        self.turned_away_s: list[float] = []

    def turn_away(self) -> int:
        self.turned_away_s.append(asyncio.get_running_loop().time())
        return 1

    async def idle(self) -> None: ...


@pytest.mark.parametrize(("lifted_s", "turned_away_s"), [(READ_ON_MAX_S / 2, []), (2 * READ_ON_MAX_S, [READ_ON_MAX_S])])
@virtual_time
async def test_a_drain_that_may_be_lifted_further_down_in_the_log_waits_for_what_stands_there_but_not_for_ever(
    lifted_s: float, turned_away_s: list[float]
) -> None:
    history, log, requests = History(), Told(), Turning()
    facts: list[tuple[ev.Fact, str]] = []
    history.fact(ev.GatewayJoined("g", "host", 1, "http://g:1", "1"), by="g")
    history.decide(ev.LeaderElected("n", "1"), epoch=1)
    drained = SimpleNamespace(record=lambda fact, cause: facts.append((fact, cause)))
    follower = Follower(log)  # type: ignore[arg-type]
    settings = load_settings(cluster="test")
    drain = GatewayDrain("g", settings, requests, follower, drained)  # type: ignore[arg-type]
    order = history.decide(ev.DrainOrdered("gateway", "g", "migrate", 0.0))
    history.decide(ev.DrainLifted("gateway", "g"))
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(drain.run())]
    *before, lifted = history.records
    for record in before:
        log.tell(record, 1)
    await asyncio.sleep(lifted_s)
    assert requests.standing.draining
    assert requests.turned_away_s == turned_away_s
    assert facts == [(ev.GatewayDrained("g", 1), order)] * len(turned_away_s)
    log.tell(lifted, 0)
    await asyncio.sleep(LONG_S / 2)
    assert not requests.standing.draining
    assert requests.turned_away_s == turned_away_s
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
