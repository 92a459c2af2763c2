"""A gateway that is told to stop leaves nobody with half an answer and no word about it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from holdfast.actors.follower import Follower
from holdfast.core.cluster import MemberStatus
from holdfast.core.status import GatewayStatus, report
from tests.unit.gateway.client import CHAT, chat, connected
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.history import application
from tests.unit.support.replicas import Site, eventually

DRAIN_S = 0.1
SOON_S = 20.0
"""What is under way, or how long the gateway may wait, would take far longer."""


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application())
    return site


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_open_after_the_drain_is_told_to_go_elsewhere(
    site: Site, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with site:
        replica = await site.replica(itl_ms=50)
        async with gateway_on(site, drain_timeout_s=DRAIN_S) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await connection.post(CHAT, chat(stream=stream, max_tokens=1_000))
                head = await connection.reader.readuntil(b"\n\n") if stream else b""
                await eventually(lambda: not replica.free)
                gateway.stop.set()
                async with asyncio.timeout(DRAIN_S + SOON_S):
                    answer = (head + await connection.reader.read()).decode()
                    await gateway.stopped
            counted = gateway.metrics()
        outcome = "moved" if stream else "overloaded"
        labels = f'model="tiny",outcome="{outcome}",resumed="false",route="{CHAT}"'
        assert f"holdfast_requests_total{{{labels}}} 1.0" in counted.splitlines()
        error = json.loads(answer[answer.rindex('{"error"') : answer.rindex("}}") + 2])["error"]
        assert (error["code"], error["type"]) == ("gateway_stopping", "server_error")
        assert "[DONE]" not in answer
        assert answer.startswith("HTTP/1.1 200" if stream else "HTTP/1.1 503")
        assert stream or "retry-after: 1" in answer
        # Who can go on with a stream elsewhere finds it there; nobody can ask for an answer that is not streamed.
        await eventually(lambda: replica.free is not stream)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_gateway_that_waits_for_the_log_ends_when_it_is_told_to(site: Site) -> None:
    async with site:
        site.server.stop()
        async with gateway_on(site) as gateway:
            await asyncio.sleep(0)
            assert not gateway.stopped.done()
            gateway.stop.set()
            async with asyncio.timeout(SOON_S):
                await asyncio.wait([gateway.stopped])
            gateway.stopped.result()


async def test_a_body_that_never_comes_does_not_hold_up_the_end(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site:
        await site.replica()
        async with gateway_on(site, drain_timeout_s=DRAIN_S) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                connection.head(CHAT, "content-length: 1000")
                await eventually(lambda: "holdfast_inflight_requests 1.0" in gateway.metrics())
                gateway.stop.set()
                async with asyncio.timeout(DRAIN_S + SOON_S):
                    await gateway.stopped
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "cut 1 connections" in caplog.text


async def test_the_log_hears_of_the_drain_when_it_begins(site: Site) -> None:
    async with site:
        await site.replica(itl_ms=50)
        follower = Follower(site.server.client("reader"))
        following = asyncio.create_task(follower.run())
        async with gateway_on(site, drain_timeout_s=60) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await connection.post(CHAT, chat(stream=True, max_tokens=1_000))
                await connection.reader.readuntil(b"\n\n")
                gateway.stop.set()
                async with asyncio.timeout(SOON_S):
                    state = await follower.until(lambda state: state.gateways["g"].status is MemberStatus.STOPPING)
                assert report(state, None).gateways[0].status is GatewayStatus.DRAINING
            await gateway.stopped
            async with asyncio.timeout(SOON_S):
                await follower.until(lambda state: state.gateways["g"].status is MemberStatus.LEFT)
        following.cancel()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_gateway_that_is_told_to_hurry_lets_go_soon_also_where_it_waits_already(
    site: Site, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.gateway.draining.HURRIED_S", DRAIN_S)
    async with site:
        replica = await site.replica(itl_ms=50)
        async with gateway_on(site, drain_timeout_s=3_600) as gateway:
            await gateway.until(200)
            async with connected(gateway.port) as connection:
                await connection.post(CHAT, chat(stream=True, max_tokens=1_000))
                head = await connection.reader.readuntil(b"\n\n")
                await eventually(lambda: not replica.free)
                if waits:
                    gateway.stop.set()
                    await gateway.until(503)
                gateway.hurry.set()
                gateway.stop.set()
                answer = (head + await connection.reader.read()).decode()
            await gateway.stopped
    assert '"code":"gateway_stopping"' in answer
