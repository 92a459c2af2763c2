"""A killed gateway: the client that repeats its request at another one goes on at the next token."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import Any

import httpx

from holdfast.gateway.client import AsyncHoldfast
from tests.acceptance.conftest import Cluster
from tests.acceptance.test_load import expected_text
from tests.faults.test_replica_faults import PACE, STREAMS, TOKENS


async def test_streams_of_a_killed_gateway_go_on_at_the_other(start_cluster: Any) -> None:
    cluster: Cluster = start_cluster(engine_args=PACE, gateways=2)
    gateways = cluster.status()["gateways"]
    urls = [gateway["url"] for gateway in gateways]
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
            os.kill(gateways[0]["pid"], signal.SIGKILL)
        for number, task in enumerate(tasks):
            text, _tries = task.result()
            assert text == expected_text(f"stream {number}", number, TOKENS), f"stream {number}"
        resumed = sum(tries > 1 for _text, tries in (task.result() for task in tasks))
        assert resumed >= 1
    # What they had was not drawn again: the replicas went on, and were found.
    assert resumptions(urls[1]).get("attached", 0) >= resumed - resumptions(urls[1]).get("redrawn", 0)
    assert resumptions(urls[1])["attached"] >= 1


def resumptions(url: str) -> dict[str, int]:
    """How streams of other gateways were gone on with, as the gateway counts them."""
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    found = re.findall(r'holdfast_resumptions_total\{.*?outcome="(\w+)".*?\} ([\d.]+)', metrics)
    return {outcome: int(float(count)) for outcome, count in found}
