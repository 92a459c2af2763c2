"""Killed replicas of a real transformer: the streams that go on elsewhere are those that they would have been.

All kinds of requests run at once while replicas are killed, each time one that has streams. The answers are compared
whole with undisturbed ones: texts, log probabilities, calls, finish reasons, usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE, Cluster, clusters
from tests.faults.exactness import busy, migrations, send, wait_for_full_strength, wait_until_told
from tests.faults.test_replica_faults import running
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, chat, completion
from tests.unit.support.answers import by_choice

REPLICAS = 2
COMMON: dict[str, Any] = {"model": "holdfast-tiny", "stream": True, "stream_options": {"include_usage": True}}
SAID = " ".join(["größer 東京☂🙂"] * 8)
"""Characters of one to four bytes; the model has a token for each byte."""

SCHEMA = {
    "type": "object",
    "properties": {"said": {"const": SAID}},
    "required": ["said"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "say", "parameters": SCHEMA}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "choices with log probabilities and penalties": (
        COMPLETIONS,
        completion(
            **COMMON,
            n=2,
            max_tokens=300,
            temperature=1.1,
            logprobs=2,
            presence_penalty=0.5,
            frequency_penalty=0.2,
            ignore_eos=True,
        ),
    ),
    "no end before so many tokens": (
        CHAT,
        chat(**COMMON, max_tokens=300, min_tokens=200, logprobs=True, top_logprobs=2),
    ),
    "JSON by a schema": (
        CHAT,
        chat(**COMMON, response_format={"type": "json_schema", "json_schema": {"name": "speech", "schema": SCHEMA}}),
    ),
    "a tool call": (CHAT, chat(**COMMON, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)),
}


class Wave:
    """All requests at once, and how far each has come."""

    def __init__(self, cluster: Cluster, requests: dict[str, tuple[str, dict[str, Any]]]) -> None:
        self._events = dict.fromkeys(requests, 0)
        self._more = asyncio.Event()
        self._tasks = {
            name: asyncio.create_task(send(cluster, path, body, lambda events, name=name: self._on_event(name, events)))  # type: ignore[misc]
            for name, (path, body) in requests.items()
        }
        for task in self._tasks.values():
            task.add_done_callback(lambda _done: self._more.set())

    async def all_have(self, events: int) -> None:
        """Wait until every request has got so many events more, or its end: on a busy machine some get far ahead."""
        goals = {name: count + events for name, count in self._events.items()}
        while any(self._events[name] < goal and not self._tasks[name].done() for name, goal in goals.items()):
            self._more.clear()
            await self._more.wait()
        assert not all(task.done() for task in self._tasks.values()), "all ended before their time"

    async def answers(self) -> dict[str, Answer]:
        return {name: await task for name, task in self._tasks.items()}

    def _on_event(self, name: str, events: int) -> None:
        self._events[name] = events
        self._more.set()


async def kill_one_that_is_busy(cluster: Cluster) -> None:
    """Kill the replica that has the most streams."""
    streams = await asyncio.to_thread(busy, cluster)
    pids = {one["id"]: one["pid"] for one in running(await asyncio.to_thread(cluster.status))}
    os.kill(pids[max(streams, key=lambda replica: streams[replica])], signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Replicas of the shipped model, for all tests here."""
    with clusters(tmp_path_factory) as start:
        yield start(engine="torch", replicas=REPLICAS, environment=PATIENCE)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, dict[int, list[str]]]:
    async def ask() -> dict[str, Answer]:
        return await Wave(cluster, REQUESTS).answers()

    return {name: by_choice(answer) for name, answer in asyncio.run(ask()).items()}


def test_the_requests_are_answered_as_they_should_be(undisturbed: dict[str, dict[int, list[str]]]) -> None:
    choices, long, structured, call = (undisturbed[name] for name in REQUESTS)
    assert all('"finish_reason":"length"' in choices[choice][-1] for choice in (0, 1))
    assert len(long[0]) >= 200
    deltas = [json.loads(event.split(" ", 1)[1])["choices"][0]["delta"] for event in structured[0]]
    texts = [delta.get("content", "") for delta in deltas]
    assert json.loads("".join(texts)) == {"said": SAID}
    assert texts.count("") > len(SAID) / 4, "characters take several tokens"
    assert '"finish_reason":"tool_calls"' in call[0][-1]


@pytest.mark.parametrize("kills", [1, 2, 3])
async def test_streams_of_all_kinds_are_the_same_when_their_replicas_are_killed(
    cluster: Cluster, undisturbed: dict[str, dict[int, list[str]]], kills: int
) -> None:
    wait_for_full_strength(cluster, REPLICAS)
    before = migrations(cluster)
    wave = Wave(cluster, REQUESTS)
    for _ in range(kills):
        await wave.all_have(20)
        await kill_one_that_is_busy(cluster)
    for name, answer in (await wave.answers()).items():
        assert by_choice(answer) == undisturbed[name], name
    moved = migrations(cluster) - before
    assert moved >= kills
    wait_until_told(cluster, moved)
