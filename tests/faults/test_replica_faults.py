"""Replicas that die, freeze and come back under streams: every token once, in order, and the right one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster
from tests.acceptance.test_load import expected_text, stream_text
from tests.faults.streams import many_streaming

STREAMS = 16
TOKENS = 120
PACE = {"itl_ms": 6}
KILLS = 6


@pytest.fixture
def cluster(paced_cluster: Cluster) -> Cluster:
    """The cluster that tests share, with its node and both replicas there, whatever the test before did to them."""
    paced_cluster.wait(
        lambda status: len(running(status)) == 2 and not status["degraded"] and status["nodes"][0]["status"] == "ALIVE"
    )
    paced_cluster.wait_health(lambda health: bool(health) and ready(health) == 2)
    return paced_cluster


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

    async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S, limits=limits) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(stream_text(client, f"stream {number}", number, TOKENS, count))
                for number in range(STREAMS)
            ]
            await halfway.wait()
            fault()
        return [task.result()[0] for task in tasks]


async def while_streams_come(cluster: Cluster, worst: Callable[[], None]) -> int:
    """Run `worst` beside wave after wave of streams until it returns, and hold every text; how many there were."""
    over = asyncio.create_task(asyncio.to_thread(worst))
    streams = 0
    async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
        while not over.done() or not streams:
            wave = (stream_text(client, f"stream {number}", number, TOKENS) for number in range(STREAMS))
            assert_right([text for text, _ids in await asyncio.gather(*wave)])
            streams += STREAMS
    await over
    return streams


def assert_right(texts: list[str]) -> None:
    for number, text in enumerate(texts):
        assert text == expected_text(f"stream {number}", number, TOKENS), f"stream {number}"


async def test_streams_go_on_with_the_right_tokens_when_a_replica_is_killed(cluster: Cluster) -> None:
    victim = cluster.status()["replicas"][0]
    texts = await under_streams(cluster, lambda: os.kill(victim["pid"], signal.SIGKILL))
    assert_right(texts)
    replaced = cluster.wait(
        lambda status: len(running(status)) == 2 and victim["id"] not in {one["id"] for one in running(status)}
    )
    assert victim["pid"] not in {one["pid"] for one in running(replaced)}


async def test_streams_outlast_one_random_replica_after_the_other(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, replicas=3)
    rng, killed = random.Random(3), set[int]()

    def kill_some() -> None:
        for _ in range(KILLS):
            victim = rng.choice(running(cluster.status()))["pid"]
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            cluster.wait(lambda status: len({one["pid"] for one in running(status)} - killed) == 3)
            cluster.wait_health(lambda health: ready(health) == 3)

    assert await while_streams_come(cluster, kill_some) >= STREAMS
    assert len(happened(cluster, "ReplicaExited")) == len(killed) == KILLS


async def test_streams_leave_a_frozen_replica_which_serves_again_once_thawed(cluster: Cluster) -> None:
    frozen = cluster.status()["replicas"][0]
    try:
        async with many_streaming(cluster, 4):
            assert_right(await under_streams(cluster, lambda: os.kill(frozen["pid"], signal.SIGSTOP)))
            cluster.wait_health(lambda health: ready(health) == 1)
    finally:
        os.kill(frozen["pid"], signal.SIGCONT)
    cluster.wait_health(lambda health: ready(health) == 2)
    assert frozen["pid"] in {one["pid"] for one in running(cluster.status())}
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaTrusted", frozen["id"])))
    suspected = happened(cluster, "ReplicaSuspected", frozen["id"])
    trusted = happened(cluster, "ReplicaTrusted", frozen["id"])
    assert suspected[0]["payload"]["streams"] > 0
    assert trusted[0]["cause"] == suspected[0]["id"]
    cluster.wait(lambda _status: bool(happened(cluster, "StreamsFenced", frozen["id"])))


async def test_streams_leave_an_engine_that_hangs_while_its_replica_lives_and_it_is_replaced(
    cluster: Cluster,
) -> None:
    hung = cluster.status()["replicas"][0]
    async with many_streaming(cluster, 4):
        assert_right(await under_streams(cluster, lambda: os.kill(hung["pid"], signal.SIGUSR1)))
        cluster.wait(
            lambda status: len(running(status)) == 2 and hung["id"] not in {one["id"] for one in running(status)}
        )
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaExited", hung["id"])))
    (exited,) = happened(cluster, "ReplicaExited", hung["id"])
    assert exited["payload"]["exit_code"] == 1
    assert "no step" in exited["payload"]["message"]


async def test_a_stream_that_stands_still_leaves_its_replica_alone(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(
        engine_args={**PACE, "faults": True}, environment={"HOLDFAST_SERVING__STREAM_STALL_TIMEOUT_S": "0.5"}
    )
    stalled: list[asyncio.Task[tuple[str, Any]]] = []

    async def ask_for_a_stall() -> tuple[str, Any]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
            return await stream_text(client, "[[fault:stall]]", 7, 40, lambda: None)

    texts = await under_streams(cluster, lambda: stalled.append(asyncio.create_task(ask_for_a_stall())))
    assert_right(texts)
    assert (await stalled[0])[0] == expected_text("[[fault:stall]]", 7, 40)
    cluster.wait(lambda _status: bool(happened(cluster, "StreamsMigrated")))
    assert not happened(cluster, "ReplicaExited")


async def test_a_replica_whose_gpu_fails_says_why_and_is_replaced_while_its_streams_go_on(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args={**PACE, "faults": True})
    prompt, asked = "[[fault:xid 79]]", list[asyncio.Task[tuple[str, Any]]]()

    async def ask_for_an_xid() -> tuple[str, Any]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
            return await stream_text(client, prompt, 7, TOKENS)

    texts = await under_streams(cluster, lambda: asked.append(asyncio.create_task(ask_for_an_xid())))
    assert_right(texts)
    assert (await asked[0])[0] == expected_text(prompt, 7, TOKENS)
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaExited")))
    (exited,) = happened(cluster, "ReplicaExited")
    assert exited["payload"]["exit_code"] == 1
    assert exited["payload"]["message"] == "DeviceFailed: XID 79 on device 0: the GPU has fallen off the bus"
    failed = exited["payload"]["replica"]
    cluster.wait(lambda status: len(running(status)) == 2 and failed not in {one["id"] for one in running(status)})
    cluster.wait(lambda _status: bool(happened(cluster, "StreamsMigrated", failed)))


async def test_streams_wait_for_the_only_replica_to_be_replaced(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, replicas=1)
    victim = cluster.status()["replicas"][0]
    texts = await under_streams(cluster, lambda: os.kill(victim["pid"], signal.SIGKILL))
    assert_right(texts)


async def test_streams_do_not_notice_that_their_node_was_killed(cluster: Cluster) -> None:
    node = cluster.status()["nodes"][0]
    texts = await under_streams(cluster, lambda: os.kill(node["pid"], signal.SIGKILL))
    assert_right(texts)
    cluster.wait(lambda status: len(running(status)) == 2 and status["nodes"][0]["pid"] not in (0, node["pid"]))


async def test_a_request_that_kills_its_engines_is_given_up_and_the_others_go_on(cluster: Cluster) -> None:
    # The last test of the shared cluster: after so many crashes in a row the next start waits.
    poison = {"model": "mock", "prompt": "[[fault:crash]]", "max_tokens": 50}

    async def send_poison() -> httpx.Response:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S) as client:
            return await client.post("/v1/completions", json=poison)

    before = len(happened(cluster, "ReplicaExited"))
    sent: list[asyncio.Task[httpx.Response]] = []
    texts = await under_streams(cluster, lambda: sent.append(asyncio.create_task(send_poison())))
    assert_right(texts)
    answer = await sent[0]
    assert answer.status_code == 503
    cluster.wait_health(lambda health: ready(health) == 2)
    messages = [event["payload"]["message"] for event in happened(cluster, "ReplicaExited")[before:]]
    # The first one had brought tokens; those after it did not.
    assert 1 <= len(messages) <= BARREN_ATTEMPTS_MAX + 1
    assert all("asked for a crash" in message for message in messages)


def running(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [replica for replica in status["replicas"] if replica["state"] == "RUNNING"]


def ready(health: dict[str, Any]) -> int:
    return sum(model["replicas_ready"] for model in health["details"]["models"].values())


def happened(cluster: Cluster, kind: str, replica: str | None = None) -> list[dict[str, Any]]:
    """The events of a kind, about one replica or any."""
    return [
        event
        for event in cluster.log()
        if event["payload"]["type"] == kind and replica in (None, event["payload"].get("replica"))
    ]
