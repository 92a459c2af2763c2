"""Replicas that die, freeze and come back under streams: every token once, in order, and the right one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx

from tests.acceptance.conftest import Cluster
from tests.acceptance.test_load import expected_text, stream_text

STREAMS = 16
TOKENS = 120
PACE = {"itl_ms": 6}


async def under_streams(cluster: Cluster, fault: Callable[[], Any]) -> list[str]:
    """Run streams, do `fault` once half of the tokens are there, and return what the clients got."""
    limits = httpx.Limits(max_connections=STREAMS)
    halfway = asyncio.Event()
    received = 0

    def count() -> None:
        nonlocal received
        received += 1
        if received == STREAMS * TOKENS // 2:
            halfway.set()

    async with httpx.AsyncClient(base_url=cluster.url, timeout=60, limits=limits) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(stream_text(client, f"stream {number}", number, TOKENS, count))
                for number in range(STREAMS)
            ]
            await halfway.wait()
            fault()
        return [task.result()[0] for task in tasks]


def assert_right(texts: list[str]) -> None:
    for number, text in enumerate(texts):
        assert text == expected_text(f"stream {number}", number, TOKENS), f"stream {number}"


async def test_streams_go_on_with_the_right_tokens_when_a_replica_is_killed(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    victim = cluster.status()["replicas"][0]
    texts = await under_streams(cluster, lambda: os.kill(victim["pid"], signal.SIGKILL))
    assert_right(texts)
    replaced = cluster.wait(
        lambda status: len(running(status)) == 2 and victim["id"] not in {one["id"] for one in running(status)}
    )
    assert victim["pid"] not in {one["pid"] for one in running(replaced)}


async def test_streams_leave_a_frozen_replica_which_serves_again_once_thawed(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    frozen = cluster.status()["replicas"][0]
    try:
        texts = await under_streams(cluster, lambda: os.kill(frozen["pid"], signal.SIGSTOP))
        assert_right(texts)
        cluster.wait_health(lambda health: ready(health) == 1)
    finally:
        os.kill(frozen["pid"], signal.SIGCONT)
    cluster.wait_health(lambda health: ready(health) == 2)
    assert frozen["pid"] in {one["pid"] for one in running(cluster.status())}


async def test_streams_wait_for_the_only_replica_to_be_replaced(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, replicas=1)
    victim = cluster.status()["replicas"][0]
    texts = await under_streams(cluster, lambda: os.kill(victim["pid"], signal.SIGKILL))
    assert_right(texts)


async def test_streams_do_not_notice_that_their_node_was_killed(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    node = cluster.status()["nodes"][0]
    texts = await under_streams(cluster, lambda: os.kill(node["pid"], signal.SIGKILL))
    assert_right(texts)
    cluster.wait(lambda status: len(running(status)) == 2 and status["nodes"][0]["pid"] not in (0, node["pid"]))


def running(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [replica for replica in status["replicas"] if replica["state"] == "RUNNING"]


def ready(health: dict[str, Any]) -> int:
    return sum(model["replicas_ready"] for model in health["details"]["models"].values())
