"""Many streams at once: all complete, all with the right text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import msgspec

from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from tests.acceptance.conftest import HTTP_TIMEOUT_S, Cluster

STREAMS = 64
TOKENS = 256


def expected_text(prompt: str, seed: int, tokens: int) -> str:
    """What the mock engine says to a prompt."""
    return mock_text(EngineRequest(prompt=prompt, sampling=Sampling(seed=seed)), tokens)


async def stream_text(
    client: httpx.AsyncClient, prompt: str, seed: int, tokens: int, on_token: Callable[[], None] = lambda: None
) -> tuple[str, list[str]]:
    """A streamed completion's text, and the ids of its events. `on_token` is called for each as it comes."""
    body = {"model": "mock", "prompt": prompt, "seed": seed, "max_tokens": tokens, "stream": True}
    text, ids, done = [], [], False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            elif line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                text += [choice["text"] for choice in msgspec.json.decode(line[6:])["choices"]]
                on_token()
    assert done
    return "".join(text), ids


async def test_64_streams_of_256_tokens_are_complete_and_correct(mock_cluster: Cluster) -> None:
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(base_url=mock_cluster.url, timeout=HTTP_TIMEOUT_S, limits=limits) as client:
        results = await asyncio.gather(
            *(stream_text(client, f"stream {number}", number, TOKENS) for number in range(STREAMS))
        )
    for number, (text, ids) in enumerate(results):
        assert text == expected_text(f"stream {number}", number, TOKENS)
        counts = [int(one.rsplit(":", 1)[1]) for one in ids]
        assert counts == sorted(counts)
        assert set(range(1, TOKENS + 1)) <= set(counts)
