"""What the tests of migration share: a request sent to a cluster, its events as they come, and how often it moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx

from tests.acceptance.conftest import HTTP_TIMEOUT_S, WAIT_TIMEOUT_S, Cluster, until, until_value
from tests.unit.gateway.client import Answer

_METRIC = re.compile(r"^(?P<name>holdfast_\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_REPLICA = re.compile(r'replica="([^"]+)"')


async def send(
    cluster: Cluster, path: str, body: dict[str, Any], on_event: Callable[[int], None] = lambda _events: None
) -> Answer:
    """Send a request and read to its end; `on_event` is told how many events have come, at each."""
    limits = httpx.Timeout(HTTP_TIMEOUT_S)
    received, events = b"", 0
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=limits, trust_env=False) as client,
        client.stream("POST", path, json=body) as response,
    ):
        async for data in response.aiter_raw():
            received += data
            for _ in range(data.count(b"\n\n")):
                events += 1
                on_event(events)
    return Answer(response.status_code, dict(response.headers), [received])


def migrations(cluster: Cluster) -> int:
    """Streams that the gateway has moved, as its metrics tell: those that left a replica, and did not fail for it."""
    left = [(labels, value) for name, labels, value in _metrics(cluster) if name == "holdfast_migrations_total"]
    return int(sum(value for labels, value in left if 'outcome="failed"' not in labels))


def busy(cluster: Cluster) -> dict[str, int]:
    """The replicas that have streams of the gateway's, and how many."""
    found = {}
    for name, labels, value in _metrics(cluster):
        replica = _REPLICA.search(labels)
        if name == "holdfast_replica_inflight_requests" and value and replica is not None:
            found[replica[1]] = int(value)
    return found


def told_of_migrations(cluster: Cluster) -> int:
    """Streams that moved, as the log tells."""
    moved = [event["payload"] for event in cluster.log() if event["payload"]["type"] == "StreamsMigrated"]
    return sum(payload["streams"] for payload in moved)


def wait_until_told(cluster: Cluster, streams: int) -> None:
    """Wait until the log tells of so many streams that moved."""
    until_value(lambda: told_of_migrations(cluster), lambda told: told >= streams, WAIT_TIMEOUT_S)


def wait_for_full_strength(cluster: Cluster, replicas: int) -> None:
    """Wait until the gateway uses so many replicas, and has no stream."""

    def whole() -> bool:
        models = cluster.health().get("details", {}).get("models", {}).values()
        return [(model["replicas_ready"], model["in_flight"]) for model in models] == [(replicas, 0)]

    until(whole, WAIT_TIMEOUT_S, cluster.health)


def _metrics(cluster: Cluster) -> list[tuple[str, str, float]]:
    text = httpx.get(f"{cluster.url}/metrics", timeout=HTTP_TIMEOUT_S, trust_env=False).text
    return [(found["name"], found["labels"], float(found["value"])) for found in _METRIC.finditer(text)]
