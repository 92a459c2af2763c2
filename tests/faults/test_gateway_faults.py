"""A killed gateway: the client that repeats its request at another one goes on at the next token."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import httpx

from holdfast.gateway.client import AsyncHoldfast
from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster
from tests.faults.streams import one_that_moves
from tests.faults.test_replica_faults import PACE, STREAMS, TOKENS, assert_right


async def under_resuming_streams(urls: list[str], fault: Callable[[], Any]) -> list[tuple[str, int]]:
    """Run streams of our client over all gateways, do `fault` once half of the tokens are there. What each said, and
    how often it was sent.
    """
    received = 0
    halfway = asyncio.Event()

    async def stream(number: int) -> tuple[str, int]:
        nonlocal received
        text = ""
        prompt = f"stream {number}"
        async with client.completions_stream(model="mock", prompt=prompt, seed=number, max_tokens=TOKENS) as events:
            async for piece in events.texts():
                text += piece
                received += 1
                if received == STREAMS * TOKENS // 2:
                    halfway.set()
            return text, events.tries

    async with AsyncHoldfast(urls) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(stream(number)) for number in range(STREAMS)]
            await halfway.wait()
            fault()
        return [task.result() for task in tasks]


async def test_streams_of_a_killed_gateway_go_on_at_the_other(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, gateways=2)
    gateways = cluster.status()["gateways"]
    urls = [gateway["url"] for gateway in gateways]
    async with one_that_moves(urls):
        answers = await under_resuming_streams(urls, lambda: os.kill(gateways[0]["pid"], signal.SIGKILL))
    assert_right([text for text, _tries in answers])
    resumed = 1 + sum(tries > 1 for _text, tries in answers)
    # What they had was not drawn again: the replicas went on, and were found.
    assert resumptions(urls[1]).get("attached", 0) >= resumed - resumptions(urls[1]).get("redrawn", 0)
    assert resumptions(urls[1])["attached"] >= 1


def resumptions(url: str) -> dict[str, int]:
    """How streams of other gateways were gone on with, as the gateway counts them."""
    metrics = httpx.get(f"{url}/metrics", timeout=HTTP_TIMEOUT_S, trust_env=False).text
    found = re.findall(r'holdfast_resumptions_total\{.*?outcome="(\w+)".*?\} ([\d.]+)', metrics)
    return {outcome: int(float(count)) for outcome, count in found}
