"""Whoever is told to end, or drained, under streams: nobody notices, and replacements come first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import Cluster, clusters
from tests.faults.test_gateway_faults import under_resuming_streams
from tests.faults.test_replica_faults import PACE, assert_right, happened, ready, running, under_streams

REPLICAS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all: whoever left is back, or replaced, at the end of each test."""
    with clusters(tmp_path_factory) as start:
        yield start(engine_args=PACE, replicas=REPLICAS, nodes=2, gateways=2)


@pytest.fixture(autouse=True)
def _whole(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.wait(lambda status: len(running(status)) == REPLICAS and not status["degraded"])
    cluster.wait_health(lambda health: ready(health) == REPLICAS)


async def test_streams_end_on_a_replica_that_is_told_to_end(cluster: Cluster) -> None:
    victim = running(cluster.status())[0]
    assert_right(await under_streams(cluster, lambda: os.kill(victim["pid"], signal.SIGTERM)))
    cluster.wait(lambda _status: bool(happened(cluster, "ReplicaExited", victim["id"])))
    (draining,) = happened(cluster, "ReplicaDraining", victim["id"])
    (exited,) = happened(cluster, "ReplicaExited", victim["id"])
    assert exited["payload"]["exit_code"] == 0
    since = cluster.log()[cluster.log().index(draining) :]
    placed = next(event for event in since if event["payload"]["type"] == "ReplicaPlaced")
    assert since.index(placed) < since.index(exited), "its replacement waited for its end"
    assert not happened(cluster, "ReplicaSuspected")


async def test_a_node_that_is_told_to_end_is_replaced_first(cluster: Cluster) -> None:
    status = cluster.status()
    node = next(node for node in status["nodes"] if node["id"] != status["controller"]["node"])
    had = {one["id"] for one in running(status) if one["node"] == node["id"]}
    assert_right(await under_streams(cluster, lambda: os.kill(node["pid"], signal.SIGTERM)))
    cluster.wait(lambda _status: bool(happened(cluster, "NodeLeft")))
    assert {one["payload"]["node"] for one in happened(cluster, "NodeLeft")} == {node["id"]}
    assert fewest_in_use(cluster, "NodeStopping") == REPLICAS
    exits = {event["payload"]["replica"]: event["payload"]["exit_code"] for event in happened(cluster, "ReplicaExited")}
    assert {exits[one] for one in had} <= {0}


async def test_streams_of_a_gateway_that_is_told_to_end_go_on_at_the_other(cluster: Cluster) -> None:
    gateways = cluster.status()["gateways"]
    urls = [gateway["url"] for gateway in gateways]
    answers = await under_resuming_streams(urls, lambda: os.kill(gateways[0]["pid"], signal.SIGTERM))
    assert_right([text for text, _tries in answers])
    cluster.wait(lambda _status: bool(happened(cluster, "GatewayLeft")))
    assert {one["payload"]["gateway"] for one in happened(cluster, "GatewayLeft")} == {gateways[0]["id"]}
    cluster.wait(lambda status: status["gateways"][0]["pid"] not in (0, gateways[0]["pid"]))


def fewest_in_use(cluster: Cluster, since: str) -> int:
    """How many replicas were there at least, that could take streams, from the last event of a kind on."""
    events = cluster.log()
    first = max(place for place, event in enumerate(events) if event["payload"]["type"] == since)
    usable = set[str]()
    fewest = None
    for place, event in enumerate(events):
        told = event["payload"]
        if told["type"] == "ReplicaReady":
            usable.add(told["replica"])
        elif told["type"] in ("ReplicaStopOrdered", "ReplicaDraining", "ReplicaExited"):
            usable.discard(told["replica"])
        if place >= first:
            fewest = len(usable) if fewest is None else min(fewest, len(usable))
    assert fewest is not None
    return fewest
