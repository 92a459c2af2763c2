"""More load than a cluster can take, on real processes: whole answers or well-formed rejections, by priority.

Counts and
shapes only; `make bench-overload` has the times.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from examples.bench.overload import closed, gateway_below, opened
from examples.bench.shots import Gun, Shot
from examples.bench.slow_readers import EVENT_BYTES, RECEIVE_BYTES, all_held_back, held_back, read_slowly
from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from tests.acceptance.conftest import HTTP_TIMEOUT_S, WAIT_TIMEOUT_S, Cluster, Start, until_value

STREAMS = 8
ENGINE = {"ttft_ms": 50, "itl_ms": 10, "streams_max": STREAMS // 2}
TOKENS = 16
OFFERED_PER_S = 200.0
"""About ten times what two replicas with four streams each can do."""

SLOW = 40
SMALL_BUFFERS = {"HOLDFAST_GATEWAY__SEND_BUFFER_BYTES": "16384", "HOLDFAST_SERVING__UNSENT_TOKENS_MAX": "64"}
PER_READER_BYTES_MAX = 512 * 1024
HELD_TIMEOUT_S = 120.0
LONG_TOKENS = 2_000


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster(engine_args=ENGINE)


def payloads_of(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
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


@pytest.fixture(scope="module")
def first_shots(cluster: Cluster) -> list[Shot]:
    """What came of the first overload."""
    return asyncio.run(overloaded(cluster, 4.0))


def test_ten_times_the_load_brings_whole_answers_and_rejections_lowest_first(first_shots: list[Shot]) -> None:
    shots = first_shots
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


def test_a_spell_of_rejections_is_two_facts_with_all_counts(cluster: Cluster, first_shots: list[Shot]) -> None:
    def told(kind: str) -> list[dict[str, Any]]:
        return payloads_of(cluster, kind)

    (ended,) = until_value(lambda: told("RejectionsEnded"), bool, WAIT_TIMEOUT_S)
    assert len(told("RejectionsBegan")) == 1
    assert sum(ended["rejected"].values()) >= sum(shot.status == 503 for shot in first_shots) > 0


async def test_thresholds_hold_for_all_once_they_are_set_and_the_log_has_the_decision(cluster: Cluster) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
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


@pytest.fixture
def tight(start_cluster: Start) -> Cluster:
    """With buffers that few tokens fill."""
    return start_cluster(engine_args={"itl_ms": 5}, environment=SMALL_BUFFERS)


async def test_clients_that_read_slowly_are_held_back_and_hold_back_nobody(tight: Cluster) -> None:
    gateway = gateway_below(psutil.Process(tight.process.pid))
    gun = Gun(tight.port, "mock", TOKENS)
    await closed(gun, 4, 1.0)
    before_bytes = gateway.memory_info().rss
    over, begun = asyncio.Event(), asyncio.Semaphore(SLOW)
    slow = [asyncio.create_task(read_slowly(tight.port, over, begun)) for _ in range(SLOW)]
    shots = await closed(gun, 4, 1.0)
    assert await all_held_back(tight.port, SLOW, HELD_TIMEOUT_S) == SLOW
    shots += await closed(gun, 4, 2.0)
    async with httpx.AsyncClient(base_url=tight.url, timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        listed = (await client.get("/v1/requests", params={"limit": 2 * SLOW})).json()["data"]
    after_bytes = gateway.memory_info().rss
    over.set()
    assert all(await asyncio.gather(*slow))
    gun.close()
    # Far less has been drawn for each than it asked for, and not even that is all in the gateway.
    assert len(listed) == SLOW
    assert max(one["completion_tokens"] for one in listed) * EVENT_BYTES < PER_READER_BYTES_MAX
    assert (after_bytes - before_bytes) / SLOW < PER_READER_BYTES_MAX
    assert {shot.status for shot in shots} == {200}
    assert [shot.wrong for shot in shots if shot.wrong] == []


async def test_a_client_that_was_held_back_gets_every_token_once_it_reads(tight: Cluster) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        connection.connect(("127.0.0.1", tight.port))
        body = {"model": "mock", "prompt": "hold fast", "seed": 7, "max_tokens": LONG_TOKENS, "stream": True}
        data = json.dumps(body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        assert await all_held_back(tight.port, 1, HELD_TIMEOUT_S) == 1
        connection.settimeout(HELD_TIMEOUT_S)
        lines = await asyncio.to_thread(_read_answer, connection)
    assert await asyncio.to_thread(held_back, tight.port) == 0
    chunks = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    asked = EngineRequest(prompt="hold fast", sampling=Sampling(seed=7))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == mock_text(asked, LONG_TOKENS)
    assert not payloads_of(tight, "StreamsMigrated")


def _read_answer(connection: socket.socket) -> list[bytes]:
    """The lines of a chunked answer's events, read to its end."""
    received = b""
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = connection.recv(1 << 16)
        assert data, "the connection was cut"
        received += data
    _head, _, rest = received.partition(b"\r\n\r\n")
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(body).splitlines()
