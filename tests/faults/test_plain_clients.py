"""A gateway's planned stop under streams of clients that can't resume: each ends where it began, whole.

Beside the streams one goes on for longer than any test, so that the gateway drains for as long as the test looks.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import WAIT_TIMEOUT_S, Cluster, Start
from tests.acceptance.test_load import expected_text, stream_text
from tests.faults.streams import streaming
from tests.faults.test_replica_faults import happened

STREAMS = 8
TOKENS = 250
PACE = {"itl_ms": 20}
"""Streams of 5 s: far longer than a gateway that hurries would let them go on."""
BEGUN = STREAMS * TOKENS // 10
PROMPT = {"model": "mock", "prompt": "new", "max_tokens": 1}


async def told_meanwhile(cluster: Cluster, stop: Callable[[], Any]) -> list[str]:
    """Run streams, do `stop` once they have begun, and hold what the gateway says then; what the streams said."""
    received, begun = 0, asyncio.Event()

    def count() -> None:
        nonlocal received
        received += 1
        if received == BEGUN:
            begun.set()

    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_TIMEOUT_S, trust_env=False) as client:
        async with asyncio.TaskGroup() as group:
            streams = (stream_text(client, f"stream {number}", number, TOKENS, count) for number in range(STREAMS))
            tasks = [group.create_task(stream) for stream in streams]
            await begun.wait()
            await asyncio.to_thread(stop)
            await asyncio.to_thread(cluster.wait_health, lambda health: health.get("state") == "DRAINING")
            refused = await client.post("/v1/completions", json=PROMPT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_stopping")
            assert [(await client.get(path)).status_code for path in ("/health", "/live")] == [503, 200]
        return [task.result()[0] for task in tasks]


def assert_whole(texts: list[str]) -> None:
    assert len(texts) == STREAMS
    for number, text in enumerate(texts):
        assert text == expected_text(f"stream {number}", number, TOKENS), f"stream {number}"


def healthy(health: dict[str, Any]) -> bool:
    return health.get("state") == "HEALTHY"


@pytest.fixture
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster(engine_args=PACE, replicas=2)


async def test_streams_end_at_a_gateway_that_is_drained(cluster: Cluster) -> None:
    async with streaming(cluster) as endless:
        assert_whole(await told_meanwhile(cluster, lambda: cluster.command("drain", "gateway-1")))
        assert "error" not in await anext(endless)
    cluster.command("drain", "gateway-1", "--wait", "--timeout", str(WAIT_TIMEOUT_S))
    (drained,) = happened(cluster, "GatewayDrained")
    assert drained["payload"]["turned_away"] == 0
    assert cluster.health()["state"] == "DRAINED"
    cluster.command("undrain", "gateway-1", "--wait")
    cluster.wait_health(healthy)


async def test_streams_end_at_a_gateway_that_is_told_to_stop(cluster: Cluster) -> None:
    (gateway,) = cluster.status()["gateways"]
    async with streaming(cluster) as endless:
        assert_whole(await told_meanwhile(cluster, lambda: os.kill(gateway["pid"], signal.SIGTERM)))
        assert "error" not in await anext(endless)
    cluster.wait(lambda status: [one["pid"] for one in status["gateways"]] not in ([], [gateway["pid"]], [0]))
    assert happened(cluster, "GatewayLeft")
    cluster.wait_health(healthy)


async def test_the_end_of_the_whole_cluster_does_not_wait_for_streams_but_tells_them(cluster: Cluster) -> None:
    async with streaming(cluster) as endless:
        cluster.signal(signal.SIGINT)
        ended = asyncio.create_task(asyncio.to_thread(cluster.join))
        last = [event async for event in endless][-1]
        assert await ended == 0
    assert "gateway_stopping" in last
