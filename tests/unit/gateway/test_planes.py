"""A gateway says which of the planes it can't reach, and serves on."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from holdfast.core.errors import LogUnavailable
from holdfast.core.events import LeaderElected, ReplicaStopOrdered
from holdfast.gateway.reporting import PROBE_INTERVAL_S, SLOW_S, Probe
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.gateway.processes import gateway_on
from tests.unit.support.history import application
from tests.unit.support.replicas import Site
from tests.unit.support.virtual_time import virtual_time

ROUNDED = timedelta(seconds=1)
"""A plane's end is noted on one clock and told on another, which is read a moment before."""


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application())
    return site


async def metrics(port: int) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


@pytest.mark.parametrize(("down", "other"), [("log", "leases"), ("leases", "log")])
async def test_a_plane_that_is_down_is_told_with_its_time_and_does_not_make_the_gateway_unhealthy(
    site: Site, down: str, other: str
) -> None:
    leases = MemoryLeasesServer()
    async with site:
        await site.replica()
        async with gateway_on(site, leases) as gateway:
            healthy = await gateway.until(200)
            assert healthy["details"]["planes"] == {"log": {"up": True}, "leases": {"up": True}}
            assert healthy["details"]["degraded"] == []
            before = datetime.now(UTC)
            (site.server if down == "log" else leases).stop()
            details = (await gateway.until(200))["details"]
            assert details["planes"][other] == {"up": True}
            assert details["planes"][down]["up"] is False
            since = datetime.fromisoformat(details["planes"][down]["down_since"])
            assert before - ROUNDED <= since <= datetime.now(UTC)
            assert details["degraded"] == [f"the {down} servers don't answer"]
            text = await metrics(gateway.port)
            assert f'holdfast_plane_up{{plane="{down}"}} 0.0' in text
            assert f'holdfast_plane_up{{plane="{other}"}} 1.0' in text
            (told,) = (line for line in text.splitlines() if line.startswith("holdfast_plane_down_since_timestamp"))
            assert f'plane="{down}"' in told
            assert float(told.split()[-1]) == pytest.approx(since.timestamp(), abs=1)
            (site.server if down == "log" else leases).start()


class SilentPlane:
    """Its connection stands; whether and how its servers answer is up to the test."""

    connected = True
    down_since = None

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def status(self) -> None:
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure


@virtual_time
async def test_a_plane_whose_connection_stands_is_down_while_nobody_answers_on_it() -> None:
    plane = SilentPlane()
    probe = Probe(plane, random.Random(1))
    asking = asyncio.create_task(probe.run())
    await asyncio.sleep(100)
    assert probe.down_since is None
    plane.answers.clear()
    await asyncio.sleep(1.25 * PROBE_INTERVAL_S + SLOW_S + 0.1)
    since_s = probe.down_since
    assert since_s is not None
    assert 100 <= since_s <= 100 + 1.25 * PROBE_INTERVAL_S
    plane.failure = LogUnavailable("no leader")
    plane.answers.set()
    await asyncio.sleep(100)
    assert probe.down_since == since_s, "refused instead of silent: down all the while"
    plane.failure = None
    await asyncio.sleep(1.25 * PROBE_INTERVAL_S)
    assert probe.down_since is None
    asking.cancel()


async def test_decisions_of_deposed_leaders_are_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site:
        await site.replica()
        site.decide(LeaderElected("a", "1"), epoch=5)
        site.decide(ReplicaStopOrdered("app.tiny.1", "late"), epoch=1)
        with caplog.at_level(logging.WARNING):
            async with gateway_on(site) as gateway:
                assert (await gateway.until(200))["details"]["decisions_ignored"] == 1
    assert "ReplicaStopOrdered of deposed leader a (epoch 1, now 5) changes nothing" in caplog.text
