"""Planned stops under streams: a signal or a drain of a replica, a node, a gateway breaks none and loses no token."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from holdfast.gateway.client import AsyncHoldfast
from tests.acceptance.conftest import HTTP_TIMEOUT_S, WAIT_TIMEOUT_S, Cluster, Status, clusters, holdfast
from tests.acceptance.test_load import expected_text
from tests.faults.streams import one_that_moves
from tests.faults.test_replica_faults import PACE, assert_right, happened, ready, running, under_streams

STREAMS = 32
TOKENS = 300
BEGUN = STREAMS * TOKENS // 10
"""After so many tokens in all, most streams are still to come, on whichever gateway."""
REPLICAS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for most tests here: whoever left is back, or replaced, at the end of each."""
    with clusters(tmp_path_factory) as start:
        environment = {"HOLDFAST_GATEWAY__DRAIN_TIMEOUT_S": "0.05"}
        yield start(engine_args=PACE, replicas=REPLICAS, nodes=2, gateways=2, environment=environment)


@pytest.fixture
def whole(cluster: Cluster) -> Iterator[Cluster]:
    """The same, and all of it there before and after the test."""

    def all_there(status: Status) -> bool:
        members = {member["status"] for member in (*status["nodes"], *status["gateways"])}
        return len(running(status)) == REPLICAS and not status["degraded"] and members == {"ALIVE", "HEALTHY"}

    cluster.wait(all_there)
    cluster.wait_health(lambda health: bool(health) and ready(health) == REPLICAS)
    yield cluster
    cluster.wait(all_there)


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One replica on one node."""
    with clusters(tmp_path_factory) as start:
        yield start(engine_args=PACE, replicas=1)


async def through_the_client(urls: list[str], fault: Callable[[], Any]) -> int:
    """Run streams with our client, do `fault` to the first gateway once they have begun, and hold every text.

    How many streams went on at another gateway: one at least.
    """
    received = 0
    begun = asyncio.Event()

    async def stream(client: AsyncHoldfast, number: int) -> int:
        nonlocal received
        text, prompt = "", f"stream {number}"
        async with client.completions_stream(model="mock", prompt=prompt, seed=number, max_tokens=TOKENS) as events:
            async for piece in events.texts():
                text += piece
                received += 1
                if received == BEGUN:
                    begun.set()
            assert text == expected_text(prompt, number, TOKENS), prompt
            return events.tries

    async with one_that_moves(urls), AsyncHoldfast(urls) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(client, number)) for number in range(STREAMS)]
        await begun.wait()
        await asyncio.to_thread(fault)
    return 1 + sum(task.result() > 1 for task in tasks)


def gateway_states(status: Status) -> dict[str, str]:
    return {gateway["id"]: gateway["status"] for gateway in status["gateways"]}


def on_node(status: Status, node: str) -> list[dict[str, Any]]:
    return [replica for replica in status["replicas"] if replica["node"] == node]


def member(status: Status, node: str) -> dict[str, Any]:
    return next(one for one in status["nodes"] if one["id"] == node)


def node_with_replicas(status: Status) -> dict[str, Any]:
    return member(status, running(status)[-1]["node"])


# --- replicas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_streams_do_not_notice_that_a_replica_was_told_to_stop(whole: Cluster, number: int) -> None:
    victim = running(whole.status())[0]
    assert_right(await under_streams(whole, lambda: os.kill(victim["pid"], number)))
    whole.wait(
        lambda status: (
            len(running(status)) == REPLICAS and victim["id"] not in {one["id"] for one in status["replicas"]}
        )
    )
    (draining,) = happened(whole, "ReplicaDraining", victim["id"])
    (exited,) = happened(whole, "ReplicaExited", victim["id"])
    assert (exited["payload"]["exit_code"], exited["payload"]["expected"]) == (0, True)
    decided = {"ReplicaPlaced", "ReplicaReplaced"}
    since = [event for event in whole.log() if event["sequence"] > draining["sequence"]]
    replacement = next(event for event in since if event["payload"]["type"] in decided)
    assert replacement["sequence"] < exited["sequence"], "its replacement waited for its end"


async def test_a_second_signal_ends_a_replica_at_once_and_its_streams_go_on(whole: Cluster) -> None:
    victim = running(whole.status())[0]

    def twice() -> None:
        # Two different ones: a signal that comes while the same one waits is lost.
        os.kill(victim["pid"], signal.SIGTERM)
        os.kill(victim["pid"], signal.SIGINT)

    assert_right(await under_streams(whole, twice))
    whole.wait(lambda _status: bool(happened(whole, "ReplicaExited", victim["id"])))
    exit_code = happened(whole, "ReplicaExited", victim["id"])[0]["payload"]["exit_code"]
    assert exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT)


async def test_the_only_replica_is_drained_only_once_another_one_runs(lone: Cluster) -> None:
    (only,) = lone.status()["replicas"]
    texts = await under_streams(lone, lambda: lone.command("drain", only["id"], "--mode", "migrate"))
    assert_right(texts)
    lone.wait(lambda status: [one["id"] for one in running(status)] == ["default.mock.2"])
    events = lone.log()
    ready_at = next(
        at
        for at, event in enumerate(events)
        if event["payload"].get("replica") == "default.mock.2" and event["payload"]["type"] == "ReplicaReady"
    )
    stopped_at = next(at for at, event in enumerate(events) if event["payload"]["type"] == "ReplicaStopOrdered")
    assert ready_at < stopped_at


# --- nodes ----------------------------------------------------------------------------------------------


async def test_streams_do_not_notice_that_a_node_was_told_to_stop(whole: Cluster) -> None:
    node = node_with_replicas(whole.status())
    gone = {one["id"] for one in on_node(whole.status(), node["id"])}
    assert_right(await under_streams(whole, lambda: os.kill(node["pid"], signal.SIGTERM)))
    whole.wait(lambda status: len(running(status)) == REPLICAS and not gone & {one["id"] for one in status["replicas"]})
    stopped = {one: happened(whole, "ReplicaStopOrdered", one)[0]["payload"]["reason"] for one in gone}
    assert stopped == dict.fromkeys(gone, f"node {node['id']} stops, and it is replaced")
    assert {happened(whole, "ReplicaExited", one)[0]["payload"]["exit_code"] for one in gone} == {0}
    assert fewest_in_use(whole.log(), "NodeStopping") == REPLICAS


def fewest_in_use(events: list[dict[str, Any]], since: str) -> int:
    """How many replicas were there at least, that could take streams, from the first event of a kind on."""
    usable, counts = set[str](), list[int]()
    for event in events:
        told = event["payload"]
        if told["type"] == "ReplicaReady":
            usable.add(told["replica"])
        elif told["type"] in ("ReplicaStopOrdered", "ReplicaDraining", "ReplicaExited"):
            usable.discard(told["replica"])
        if counts or told["type"] == since:
            counts.append(len(usable))
    return min(counts)


async def test_a_node_is_drained_under_streams_and_comes_back(whole: Cluster) -> None:
    node = node_with_replicas(whole.status())["id"]
    texts = await under_streams(whole, lambda: whole.command("drain", node, "--mode", "migrate"))
    assert_right(texts)
    whole.command("drain", node, "--mode", "migrate", "--wait", "--timeout", f"{WAIT_TIMEOUT_S:g}")
    status = whole.status()
    assert not on_node(status, node)
    assert len(running(status)) == REPLICAS
    assert member(status, node)["status"] == "DRAINED"
    # A drained node stays drained when its process is started again, which `up` does.
    pid = member(status, node)["pid"]
    os.kill(pid, signal.SIGTERM)
    status = whole.wait(lambda status: member(status, node)["pid"] not in (0, pid))
    whole.wait(lambda status: member(status, node)["status"] == "DRAINED")
    whole.command("undrain", node, "--wait")
    whole.wait(lambda status: member(status, node)["status"] == "ALIVE")


def test_a_drain_without_room_says_what_it_waits_for(lone: Cluster) -> None:
    lone.command("drain", "node-1")
    status = lone.wait(lambda status: status["nodes"][0]["status"] == "DRAINING")
    deployment = status["applications"]["default"]["deployments"]["mock"]
    assert "no node has room" in deployment["message"]
    assert deployment["replicas_running"] == 1
    late = holdfast("drain", "node-1", "--wait", "--timeout", "0.5", "--data-dir", str(lone.data_dir))
    assert late.exit_code == 1
    lone.command("undrain", "node-1", "--wait")
    lone.wait(lambda status: status["applications"]["default"]["status"] == "RUNNING")
    unknown = holdfast("drain", "nobody", "--data-dir", str(lone.data_dir))
    assert unknown.exit_code == 2
    (replica,) = lone.status()["replicas"]
    assert f"nodes: node-1; replicas: {replica['id']}; gateways: gateway-1" in unknown.output


# --- gateways -------------------------------------------------------------------------------------------


async def test_streams_of_a_gateway_that_was_told_to_stop_go_on_at_the_other(whole: Cluster) -> None:
    gateways = whole.status()["gateways"]
    urls = [gateway["url"] for gateway in gateways]
    assert await through_the_client(urls, lambda: os.kill(gateways[0]["pid"], signal.SIGTERM)) >= 1


async def test_a_gateway_is_drained_under_streams_and_comes_back(whole: Cluster) -> None:
    urls = [gateway["url"] for gateway in whole.status()["gateways"]]

    def drain() -> None:
        whole.command("drain", "gateway-1", "--mode", "migrate", "--wait", "--timeout", f"{WAIT_TIMEOUT_S:g}")

    moved = await through_the_client(urls, drain)
    assert gateway_states(whole.status()) == {"gateway-1": "DRAINED", "gateway-2": "HEALTHY"}
    (drained,) = [event for event in whole.log() if event["payload"]["type"] == "GatewayDrained"]
    assert drained["payload"]["turned_away"] >= moved
    async with httpx.AsyncClient(base_url=urls[0], timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()["state"]) == (503, "DRAINED")
        assert (await client.get("/live")).status_code == 200
        whole.command("undrain", "gateway-1", "--wait")
        whole.wait_health(lambda health: health.get("state") == "HEALTHY" and ready(health) == REPLICAS)
