"""Streams that go on for longer than any test, so that one is there for certain when something is done to it.

Shorter ones may have ended: a replica makes tokens whether or not a busy machine lets their clients read them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from holdfast.gateway.client import AsyncHoldfast
from tests.acceptance.conftest import WAIT_TIMEOUT_S, Cluster
from tests.acceptance.test_load import expected_text

ENDLESS_TOKENS = 30_000
ENDLESS: dict[str, Any] = {"model": "mock", "prompt": "go on", "max_tokens": ENDLESS_TOKENS, "stream": True}


@contextlib.asynccontextmanager
async def streaming(cluster: Cluster) -> AsyncIterator[AsyncIterator[str]]:
    """The events of a stream that has begun."""
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_TIMEOUT_S, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=ENDLESS) as answer,
    ):
        assert answer.status_code == 200
        events = (line async for line in answer.aiter_lines() if line.startswith("data: "))
        await anext(events)
        yield events


@contextlib.asynccontextmanager
async def many_streaming(cluster: Cluster, number: int) -> AsyncIterator[None]:
    """So many such streams, of which nobody reads on. Each new one goes to a replica that has the fewest."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(streaming(cluster))
        yield


@contextlib.asynccontextmanager
async def one_that_moves(urls: list[str]) -> AsyncIterator[None]:
    """Such a stream of our client, begun at the first of these gateways: it goes on at another before this ends."""
    began, (prompt, seed) = asyncio.Event(), ("go on", 7)

    async def read() -> None:
        text = ""
        async with (
            AsyncHoldfast(urls, rand=lambda: 0.0) as client,
            client.completions_stream(model="mock", prompt=prompt, seed=seed, max_tokens=ENDLESS_TOKENS) as events,
        ):
            async for piece in events.texts():
                text += piece
                began.set()
                if events.tries > 1:
                    break
            assert events.tries > 1, "it has ended where it began"
        assert expected_text(prompt, seed, ENDLESS_TOKENS).startswith(text)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        await began.wait()
        yield
