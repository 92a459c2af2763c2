"""Requests that are cancelled, out of time or left, on real processes with two gateways, by the command line too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from examples.bench.vanish import Watched, watched_below
from holdfast.actors.system_port import METRICS_KEPT_S
from tests.acceptance.conftest import HTTP_TIMEOUT_S, WAIT_TIMEOUT_S, Cluster, Start, holdfast, until
from tests.acceptance.test_load import expected_text

PACE = {"itl_ms": 10, "prefill_tokens_per_s": 4_000}
TOKENS = 4_000
"""Forty seconds of them."""

PROMPT = "tell me everything"


class Streaming:
    """A streamed completion that is read to its end."""

    def __init__(self, url: str, request_id: str, **headers: str) -> None:
        self.text = ""
        self.last: dict[str, Any] = {}
        self.done = False
        self._headers = {"x-request-id": request_id, **headers}
        self.task = asyncio.create_task(self._read(url))

    async def _read(self, url: str) -> None:
        body = {"model": "mock", "prompt": PROMPT, "seed": 7, "max_tokens": TOKENS, "stream": True}
        body["stream_options"] = {"include_usage": True}
        async with (
            httpx.AsyncClient(base_url=url, timeout=HTTP_TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", "/v1/completions", json=body, headers=self._headers) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self.last = json.loads(line[6:])
                    self.text += "".join(choice["text"] for choice in self.last.get("choices", []))

    async def has(self, words: int) -> None:
        """Wait until so many tokens have come."""
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while len(self.text.split()) < words:
                assert not self.task.done(), self.last
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster(engine_args=PACE, gateways=2)


@pytest.fixture(scope="module")
def urls(cluster: Cluster) -> list[str]:
    return [gateway["url"] for gateway in cluster.status()["gateways"]]


@pytest.fixture(scope="module")
def replicas(cluster: Cluster) -> list[Watched]:
    found = watched_below(psutil.Process(cluster.process.pid))
    return [one for one in found if one.name.startswith("replica")]


def used(replicas: list[Watched]) -> list[tuple[int, int]]:
    """KV blocks and streams of each replica."""
    return [(sample.kv_blocks, sample.streams) for sample in (one.sample() for one in replicas)]


async def something_is_used(replicas: list[Watched]) -> None:
    """Wait until some replica has a stream or a KV block in use."""
    in_use = partial(used, replicas)
    await asyncio.to_thread(until, lambda: set(in_use()) != {(0, 0)}, WAIT_TIMEOUT_S, in_use)


async def blocks_are_free(replicas: list[Watched]) -> None:
    """Wait until no replica has a stream or a KV block in use."""
    in_use = partial(used, replicas)
    # Pages are kept for a moment: one from before would tell of blocks that were free then.
    await asyncio.sleep(METRICS_KEPT_S)
    await asyncio.to_thread(until, lambda: set(in_use()) == {(0, 0)}, WAIT_TIMEOUT_S, in_use)


async def command(cluster: Cluster, *arguments: str) -> tuple[int, str]:
    """A command about the cluster, run in a thread; its exit code and output."""
    result = await asyncio.to_thread(holdfast, "requests", *arguments, "--data-dir", str(cluster.data_dir))
    return result.exit_code, result.output


async def test_a_request_is_shown_and_stopped_at_whichever_gateway_it_is(
    cluster: Cluster, urls: list[str], replicas: list[Watched]
) -> None:
    streams = [Streaming(url, f"at-{number}") for number, url in enumerate(urls)]
    for stream in streams:
        await stream.has(5)
    code, out = await command(cluster, "ls", "--json")
    listed = {one["id"]: one for one in json.loads(out)["data"]}
    assert code == 0
    assert {listed[name]["state"] for name in ("at-0", "at-1")} == {"running"}
    assert listed["at-0"]["gateway"] != listed["at-1"]["gateway"]
    for number, stream in enumerate(streams):
        code, out = await command(cluster, "cancel", f"at-{number}", "--mode", "stop")
        assert (code, out.startswith(f"at-{number} ended by stop after ")) == (0, True), out
        await stream.task
        assert stream.done
        tokens = stream.last["usage"]["completion_tokens"]
        assert stream.text == expected_text(PROMPT, 7, tokens)
    await blocks_are_free(replicas)
    code, out = await command(cluster, "cancel", "at-2")
    assert (code, "No request 'at-2' is open" in out) == (1, True), out


async def test_what_is_below_a_killed_request_ends_with_it_at_the_other_gateway(
    urls: list[str], replicas: list[Watched]
) -> None:
    parent = Streaming(urls[0], "parent")
    await parent.has(3)
    child = Streaming(urls[1], "child", **{"x-holdfast-parent": "parent"})
    await child.has(3)
    grandchild = Streaming(urls[0], "grandchild", **{"x-holdfast-parent": "child"})
    await grandchild.has(3)
    async with httpx.AsyncClient(timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        final = (await client.delete(f"{urls[1]}/v1/requests/parent?mode=kill")).json()
        assert (final["id"], final["cause"]) == ("parent", "kill")
        await asyncio.gather(parent.task, child.task, grandchild.task)
        assert parent.last["error"]["code"] == "request_cancelled"
        assert {child.last["error"]["code"], grandchild.last["error"]["code"]} == {"parent_cancelled"}
        body = {"model": "mock", "prompt": PROMPT}
        late = await client.post(f"{urls[1]}/v1/completions", json=body, headers={"x-holdfast-parent": "parent"})
        assert (late.status_code, late.json()["error"]["code"]) == (499, "parent_cancelled")
    await blocks_are_free(replicas)


async def test_who_leaves_in_the_middle_of_a_long_prompt_frees_its_blocks(
    urls: list[str], replicas: list[Watched]
) -> None:
    body = {"model": "mock", "prompt": "word " * 20_000, "max_tokens": 100, "stream": True}
    async with httpx.AsyncClient(base_url=urls[0], timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await something_is_used(replicas)
        asking.cancel()
        await asyncio.wait([asking])
    await blocks_are_free(replicas)


async def test_a_request_out_of_time_ends_with_504_or_an_event_and_frees_its_blocks(
    urls: list[str], replicas: list[Watched]
) -> None:
    body = {"model": "mock", "prompt": "word " * 20_000, "max_tokens": 100}
    async with httpx.AsyncClient(base_url=urls[0], timeout=HTTP_TIMEOUT_S, trust_env=False) as client:
        answer = await client.post("/v1/completions", json=body, headers={"x-request-timeout-seconds": "0.3"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    stream = Streaming(urls[0], "short", **{"x-request-timeout-seconds": "4"})
    await stream.task
    assert stream.last["error"]["code"] == "deadline_exceeded"
    assert stream.text == expected_text(PROMPT, 7, len(stream.text.split()))
    await blocks_are_free(replicas)


async def test_a_replica_goes_on_no_longer_than_the_request_may_when_its_gateway_is_killed(
    cluster: Cluster, urls: list[str], replicas: list[Watched]
) -> None:
    victim = next(one for one in cluster.status()["gateways"] if one["url"] == urls[1])
    stream = Streaming(urls[1], "orphan", **{"x-request-timeout-seconds": "12"})
    await stream.has(5)
    os.kill(victim["pid"], signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        await stream.task
    # It goes on for whoever resumes it.
    await something_is_used(replicas)
    await blocks_are_free(replicas)
