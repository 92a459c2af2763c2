"""Planned stops under streams: a signal or a drain of a replica, a node, a gateway breaks none and loses no token."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from holdfast.gateway.client import AsyncHoldfast
from tests.acceptance.conftest import Cluster, Status, holdfast
from tests.acceptance.test_load import expected_text
from tests.faults.test_replica_faults import PACE, assert_right, happened, ready, running, under_streams

STREAMS = 32
TOKENS = 120


async def through_the_client(urls: list[str], fault: Callable[[], Any]) -> int:
    """Run streams with our client, do `fault` halfway, hold every text; how many streams went on at another gateway."""
    received = 0
    halfway = asyncio.Event()

    async def stream(client: AsyncHoldfast, number: int) -> int:
        nonlocal received
        text, prompt = "", f"stream {number}"
        async with client.completions_stream(model="mock", prompt=prompt, seed=number, max_tokens=TOKENS) as events:
            async for piece in events.texts():
                text += piece
                received += 1
                if received == STREAMS * TOKENS // 2:
                    halfway.set()
            assert text == expected_text(prompt, number, TOKENS), prompt
            return events.tries

    async with AsyncHoldfast(urls) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(client, number)) for number in range(STREAMS)]
        await halfway.wait()
        fault()
    return sum(task.result() > 1 for task in tasks)


def gateway_states(status: Status) -> dict[str, str]:
    return {gateway["id"]: gateway["status"] for gateway in status["gateways"]}


def on_node(status: Status, node: str) -> list[dict[str, Any]]:
    return [replica for replica in status["replicas"] if replica["node"] == node]


# --- replicas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_streams_do_not_notice_that_a_replica_was_told_to_stop(start_cluster: Any, number: int) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    victim = cluster.status()["replicas"][0]
    assert_right(await under_streams(cluster, lambda: os.kill(victim["pid"], number)))
    cluster.wait(
        lambda status: len(running(status)) == 2 and victim["id"] not in {one["id"] for one in status["replicas"]}
    )
    assert happened(cluster, "ReplicaDraining", victim["id"])
    (exited,) = happened(cluster, "ReplicaExited", victim["id"])
    assert (exited["payload"]["exit_code"], exited["payload"]["expected"]) == (0, True)


async def test_a_second_signal_ends_a_replica_at_once_and_its_streams_go_on(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE)
    victim = cluster.status()["replicas"][0]

    def twice() -> None:
        os.kill(victim["pid"], signal.SIGTERM)
        cluster.wait(lambda _status: bool(happened(cluster, "ReplicaDraining", victim["id"])))
        os.kill(victim["pid"], signal.SIGTERM)

    assert_right(await under_streams(cluster, twice))
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaExited", victim["id"])))
    assert happened(cluster, "ReplicaExited", victim["id"])[0]["payload"]["exit_code"] in (0, 128 + signal.SIGTERM)


async def test_the_only_replica_is_drained_only_once_another_one_runs(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, replicas=1)
    (only,) = cluster.status()["replicas"]
    texts = await under_streams(cluster, lambda: cluster.command("drain", only["id"], "--mode", "migrate"))
    assert_right(texts)
    cluster.wait(lambda status: [one["id"] for one in running(status)] == ["default.mock.2"])
    events = cluster.log()
    ready_at = next(
        at
        for at, event in enumerate(events)
        if event["payload"].get("replica") == "default.mock.2" and event["payload"]["type"] == "ReplicaReady"
    )
    stopped_at = next(at for at, event in enumerate(events) if event["payload"]["type"] == "ReplicaStopOrdered")
    assert ready_at < stopped_at


# --- nodes ----------------------------------------------------------------------------------------------


async def test_streams_do_not_notice_that_a_node_was_told_to_stop(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, nodes=2)
    node = cluster.status()["nodes"][1]
    gone = {one["id"] for one in on_node(cluster.status(), node["id"])}
    assert gone
    assert_right(await under_streams(cluster, lambda: os.kill(node["pid"], signal.SIGTERM)))
    cluster.wait(lambda status: len(running(status)) == 2 and not gone & {one["id"] for one in status["replicas"]})
    stopped = [event["payload"]["reason"] for event in happened(cluster, "ReplicaStopOrdered")]
    assert stopped == [f"node {node['id']} stops, and it is replaced"] * len(gone)


async def test_a_node_is_drained_under_streams_and_comes_back(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, nodes=2)
    assert on_node(cluster.status(), "node-2")
    texts = await under_streams(cluster, lambda: cluster.command("drain", "node-2", "--mode", "migrate"))
    assert_right(texts)
    cluster.command("drain", "node-2", "--mode", "migrate", "--wait", "--timeout", "30")
    status = cluster.status()
    assert not on_node(status, "node-2")
    assert len(running(status)) == 2
    assert status["nodes"][1]["status"] == "DRAINED"
    # A drained node stays drained when its process is started again, which `up` does.
    pid = status["nodes"][1]["pid"]
    os.kill(pid, signal.SIGTERM)
    status = cluster.wait(lambda status: status["nodes"][1]["pid"] not in (0, pid))
    cluster.wait(lambda status: status["nodes"][1]["status"] == "DRAINED")
    cluster.command("undrain", "node-2", "--wait")
    cluster.wait(lambda status: status["nodes"][1]["status"] == "ALIVE")


def test_a_drain_without_room_says_what_it_waits_for(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(replicas=1)
    cluster.command("drain", "node-1")
    status = cluster.wait(lambda status: status["nodes"][0]["status"] == "DRAINING")
    deployment = status["applications"]["default"]["deployments"]["mock"]
    assert "no node has room" in deployment["message"]
    assert deployment["replicas_running"] == 1
    late = holdfast("drain", "node-1", "--wait", "--timeout", "0.5", "--data-dir", str(cluster.data_dir))
    assert late.exit_code == 1
    cluster.command("undrain", "node-1", "--wait")
    cluster.wait(lambda status: status["applications"]["default"]["status"] == "RUNNING")
    unknown = holdfast("drain", "nobody", "--data-dir", str(cluster.data_dir))
    assert unknown.exit_code == 2
    assert "nodes: node-1; replicas: default.mock.1; gateways: gateway-1" in unknown.output


# --- gateways -------------------------------------------------------------------------------------------


async def test_streams_of_a_gateway_that_was_told_to_stop_go_on_at_the_other(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(
        engine_args=PACE, gateways=2, environment={"HOLDFAST_GATEWAY__DRAIN_TIMEOUT_S": "0.05"}
    )
    gateways = cluster.status()["gateways"]
    urls = [gateway["url"] for gateway in gateways]
    moved = await through_the_client(urls, lambda: os.kill(gateways[0]["pid"], signal.SIGTERM))
    assert moved >= 1


async def test_a_gateway_is_drained_under_streams_and_comes_back(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, gateways=2)
    urls = [gateway["url"] for gateway in cluster.status()["gateways"]]

    def drain() -> None:
        cluster.command("drain", "gateway-1", "--mode", "migrate", "--wait", "--timeout", "30")

    moved = await through_the_client(urls, drain)
    assert moved >= 1
    assert gateway_states(cluster.status()) == {"gateway-1": "DRAINED", "gateway-2": "HEALTHY"}
    (drained,) = [event for event in cluster.log() if event["payload"]["type"] == "GatewayDrained"]
    assert drained["payload"]["turned_away"] >= moved
    async with httpx.AsyncClient(base_url=urls[0], trust_env=False) as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()["state"]) == (503, "DRAINED")
        assert (await client.get("/live")).status_code == 200
        cluster.command("undrain", "gateway-1", "--wait")
        cluster.wait_health(lambda health: health.get("state") == "HEALTHY" and ready(health) == 2)
