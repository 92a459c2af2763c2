"""Streams whose replicas are killed, once, twice and three times, are the streams that they would have been.

The replicas are real processes of the mock engine, which kill themselves (SIGKILL) when the stream has exactly so many
tokens, as the prompt tells them to. The answer is compared whole: texts, log probabilities, finish reasons, usage.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from tests.acceptance.conftest import PATIENCE, Cluster, clusters
from tests.faults.exactness import busy, migrations, send, wait_for_full_strength, wait_until_told
from tests.faults.test_replica_faults import running
from tests.unit.gateway.client import CHAT, COMPLETIONS, chat, completion
from tests.unit.support.answers import by_choice

REPLICAS = 4
TOKENS = 40
PROMPT = "hold fast"
WHOLE = EngineRequest(prompt=PROMPT, sampling=Sampling(seed=7))
USAGE = {"model": "mock", "stream": True, "stream_options": {"include_usage": True}}
LOOSE = {"temperature": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.5, "min_tokens": 20}


def text_between(first: int, last: int) -> str:
    """The stream's text from the middle of its token number `first` to within number `last`, both from 1."""
    begin, end = (len(mock_text(WHOLE, tokens)) for tokens in (first - 1, last - 1))
    return mock_text(WHOLE, TOKENS)[begin + 2 : end + 2]


STOP = text_between(10, 13)
NEARLY = text_between(4, 7) + "@"
"""Looks like a stop string from the fourth token to the seventh, and is none."""
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": (COMPLETIONS, completion(max_tokens=TOKENS, logprobs=3, **(USAGE | LOOSE))),
    "chat": (CHAT, chat(max_tokens=TOKENS, logprobs=True, top_logprobs=2, **USAGE, **LOOSE)),
    "stop string": (COMPLETIONS, completion(max_tokens=TOKENS, stop=[STOP, NEARLY], logprobs=1, **USAGE)),
}
KILLS = [
    ("completion", "17"),
    ("completion", "1 2 39"),
    ("chat", "3 30"),
    ("chat", "5 20 21"),
    ("stop string", "10"),
    ("stop string", "5 11"),
    ("stop string", "10 11 12"),
    ("stop string", "4 6 12"),
]
"""After how many tokens the replica is killed. The stop string is in the tokens 10 to 13."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Replicas of a paced mock engine that can be told to kill itself, for all tests here."""
    with clusters(tmp_path_factory) as start:
        yield start(engine_args={"itl_ms": 6, "faults": True}, replicas=REPLICAS, environment=PATIENCE)


def killing(body: dict[str, Any], kills: str) -> dict[str, Any]:
    """The request with a prompt that kills; the engine doesn't take that for a part of it."""
    mark = f"[[fault:kill {kills}]]"
    if "prompt" in body:
        return {**body, "prompt": body["prompt"] + mark}
    return {**body, "messages": [{**message, "content": message["content"] + mark} for message in body["messages"]]}


@pytest.mark.parametrize(("name", "kills"), KILLS)
async def test_a_stream_is_the_same_when_its_replicas_are_killed(cluster: Cluster, name: str, kills: str) -> None:
    path, body = REQUESTS[name]
    undisturbed = by_choice(await send(cluster, path, body))
    assert undisturbed[-1][-1].endswith("[DONE]")
    assert f'"finish_reason":"{"stop" if name == "stop string" else "length"}"' in undisturbed[0][-1]
    wait_for_full_strength(cluster, REPLICAS)
    moved, times = migrations(cluster), len(kills.split())
    assert by_choice(await send(cluster, path, killing(body, kills))) == undisturbed
    assert migrations(cluster) == moved + times
    wait_until_told(cluster, moved + times)


async def test_choices_are_the_same_when_a_replica_of_theirs_is_killed_three_times(cluster: Cluster) -> None:
    body = chat(n=3, max_tokens=600, logprobs=True, top_logprobs=1, **USAGE, **LOOSE)
    undisturbed = by_choice(await send(cluster, CHAT, body))
    wait_for_full_strength(cluster, REPLICAS)
    pids = {one["id"]: one["pid"] for one in running(cluster.status())}
    moved = migrations(cluster)
    marks = {100: asyncio.Event(), 250: asyncio.Event(), 400: asyncio.Event()}

    def on_event(events: int) -> None:
        if events in marks:
            marks[events].set()

    sent = asyncio.create_task(send(cluster, CHAT, body, on_event))
    for mark in marks.values():
        await mark.wait()
        streams = await asyncio.to_thread(busy, cluster)
        os.kill(pids.pop(next(replica for replica in streams if replica in pids)), signal.SIGKILL)
    assert by_choice(await sent) == undisturbed
    assert migrations(cluster) - moved >= len(marks)
    wait_until_told(cluster, migrations(cluster))


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"tools": [{"type": "function", "function": {"name": "moor"}}], "tool_choice": "required"},
    ],
)
async def test_what_the_engine_has_no_grammar_for_is_refused_before_the_first_token(
    cluster: Cluster, asked: dict[str, Any]
) -> None:
    answer = await send(cluster, CHAT, chat(**USAGE, **asked))
    assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
    assert answer.error["param"] in asked


async def test_a_stream_that_was_given_no_seed_keeps_the_one_that_was_drawn(cluster: Cluster) -> None:
    wait_for_full_strength(cluster, REPLICAS)
    body = completion(model="mock", max_tokens=TOKENS, stream=True)
    del body["seed"]
    answer = await send(cluster, COMPLETIONS, killing(body, "3 20 21"))
    seed = int(answer.chunks[0]["id"][-16:], 16)
    text = "".join(chunk["choices"][0]["text"] for chunk in answer.chunks)
    assert text == mock_text(EngineRequest(prompt=PROMPT, sampling=Sampling(seed=seed)), TOKENS)
