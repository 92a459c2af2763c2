"""A second signal to a gateway or a node ends it at once, whatever it waits for; replicas are in `test_drains.py`.

Each waits for a stream that goes on for longer than any test: only the second signal can end it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import WAIT_TIMEOUT_S, Cluster, Start, until
from tests.faults.streams import streaming
from tests.faults.test_replica_faults import happened, ready, running

PACE = {"itl_ms": 20}
PATIENT = '{"graceful_shutdown_timeout_s": 3600}'
"""Longer than any test (seconds), as is what the gateway waits for."""


async def to_its_end(events: AsyncIterator[str]) -> None:
    async for _event in events:
        pass


def ended(cluster: Cluster, name: str, number: int) -> bool:
    """Whether `up` has told that its child ended by this signal."""
    return f"{name} ended (exit code {128 + number})" in cluster.output


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_a_gateway_that_waits_for_its_streams(
    start_cluster: Start, second: signal.Signals
) -> None:
    cluster = start_cluster(engine_args=PACE, replicas=1, environment={"HOLDFAST_GATEWAY__DRAIN_TIMEOUT_S": "3600"})
    (gateway,) = cluster.status()["gateways"]
    async with streaming(cluster) as events:
        os.kill(gateway["pid"], signal.SIGTERM)
        cluster.wait_health(lambda health: health.get("state") == "DRAINING")
        await anext(events)
        assert not ended(cluster, "gateway-1", second)
        os.kill(gateway["pid"], second)
        until(lambda: ended(cluster, "gateway-1", second), WAIT_TIMEOUT_S, lambda: cluster.output)
        with pytest.raises(httpx.TransportError):
            await to_its_end(events)
    assert not happened(cluster, "GatewayLeft")
    cluster.wait(lambda status: [one["pid"] for one in status["gateways"]] != [gateway["pid"]])
    cluster.wait_health(lambda health: health.get("state") == "HEALTHY" and ready(health) == 1)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_a_node_that_waits_for_its_replicas_and_their_streams_go_on(
    start_cluster: Start, second: signal.Signals
) -> None:
    cluster = start_cluster("--deployment-args", PATIENT, engine_args=PACE, replicas=1)
    (node,), (replica,) = cluster.status()["nodes"], cluster.status()["replicas"]
    async with streaming(cluster) as events:
        os.kill(node["pid"], signal.SIGTERM)
        cluster.wait(lambda _status: bool(happened(cluster, "NodeStopping")))
        await anext(events)
        assert not ended(cluster, "node-1", second)
        os.kill(node["pid"], second)
        until(lambda: ended(cluster, "node-1", second), WAIT_TIMEOUT_S, lambda: cluster.output)
        for _token in range(10):
            await anext(events)
        assert not happened(cluster, "NodeLeft")

    def replaced(status: dict[str, Any]) -> bool:
        (member,) = status["nodes"]
        pids = {one["pid"] for one in running(status)}
        return member["pid"] not in (0, node["pid"]) and bool(pids - {replica["pid"]})

    cluster.wait(replaced)
