"""More load than a cluster can take, on real processes: whole answers or well-formed rejections, by priority.

Counts and
shapes only; `make bench-overload` has the times.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import httpx
import pytest

from examples.bench.overload import closed, opened
from examples.bench.shots import Gun, Shot
from examples.bench.slow_readers import read_slowly
from tests.acceptance.conftest import Cluster, Start, until

STREAMS = 8
ENGINE = {"ttft_ms": 50, "itl_ms": 10, "streams_max": STREAMS // 2}
TOKENS = 16
OFFERED_PER_S = 200.0
"""About ten times what two replicas with four streams each can do."""

SLOW = 40


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster(engine_args=ENGINE)


def payloads_of(cluster: Cluster, kind: str) -> list[dict[str, object]]:
    payloads = [event["payload"] for event in cluster.log()]
    return [payload for payload in payloads if payload["type"] == kind]


async def overloaded(cluster: Cluster, seconds: float) -> list[Shot]:
    gun = Gun(cluster.port, "mock", TOKENS)
    try:
        await closed(gun, STREAMS, 1.5)
        shots, left_out = await opened(gun, OFFERED_PER_S, seconds, random.Random(7))
    finally:
        gun.close()
    assert not left_out
    return shots


async def test_ten_times_the_load_brings_whole_answers_and_rejections_lowest_first(cluster: Cluster) -> None:
    shots = await overloaded(cluster, 4.0)
    assert [shot.wrong for shot in shots if shot.wrong] == []
    statuses = Counter(shot.status for shot in shots)
    assert set(statuses) == {200, 503}
    assert statuses[503] > statuses[200] > STREAMS
    lost = Counter(shot.priority for shot in shots if shot.status == 503)
    assert not lost["critical"]
    asked = Counter(shot.priority for shot in shots)
    assert lost["batch"] / asked["batch"] > lost["default"] / asked["default"]
    assert all(1 <= shot.retry_after_s <= 90 for shot in shots if shot.status == 503)
    assert len({shot.retry_after_s for shot in shots if shot.status == 503}) > 10


async def test_a_spell_of_rejections_is_two_facts_with_all_counts(cluster: Cluster) -> None:
    def told(kind: str) -> int:
        return len(payloads_of(cluster, kind))

    before = told("RejectionsEnded")
    shots = await overloaded(cluster, 2.0)
    rejected = sum(shot.status == 503 for shot in shots)
    assert rejected
    await asyncio.to_thread(until, lambda: told("RejectionsEnded") > before, 40.0, lambda: told("RejectionsBegan"))
    began, ended = payloads_of(cluster, "RejectionsBegan"), payloads_of(cluster, "RejectionsEnded")
    assert len(began) == len(ended) <= before + 1
    counts = ended[-1]["rejected"]
    assert isinstance(counts, dict)
    assert sum(counts.values()) >= rejected


async def test_thresholds_hold_for_all_once_they_are_set_and_the_log_has_the_decision(cluster: Cluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=30, trust_env=False) as client:
        change = {"model": "mock", "requests_in_flight_threshold": 1, "queue_age_threshold_s": 0}
        answer = await client.post("/busy_threshold", json=change)
        assert (answer.status_code, answer.json()["requests_in_flight_threshold"]) == (200, 1)
        assert (await client.get("/busy_threshold")).json()["thresholds"] == [answer.json()]
        (decided,) = payloads_of(cluster, "BusyThresholdSet")
        assert decided["model"] == "mock"
        shots = await overloaded(cluster, 2.0)
        assert {shot.status for shot in shots} == {200, 503}
        back = await client.post("/busy_threshold", json={name: None for name in change} | {"model": "mock"})
        assert back.json()["requests_in_flight_threshold"] is None


async def test_clients_that_read_slowly_hold_back_nobody(start_cluster: Start) -> None:
    cluster = start_cluster(engine_args={"itl_ms": 20})
    over, begun = asyncio.Event(), asyncio.Semaphore(SLOW)
    slow = [asyncio.create_task(read_slowly(cluster.port, over, begun)) for _ in range(SLOW)]
    gun = Gun(cluster.port, "mock", TOKENS)
    shots = await closed(gun, 4, 3.0)
    gun.close()
    over.set()
    assert all(await asyncio.gather(*slow))
    assert {shot.status for shot in shots} == {200}
    assert [shot.wrong for shot in shots if shot.wrong] == []
