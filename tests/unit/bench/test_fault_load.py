"""The load of `bench faults`: no stream is counted as fine that broke, was wrong, or got nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from examples.bench.load import Order, Outcome, Streams
from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.gateway.client import Event, StreamBroken

TOKENS = 20
ORDER = Order(urls=[], model="mock", streams=1, tokens=TOKENS, spread_s=0)


class FakeStream:
    """As `AsyncStream`: the pieces, an event that ends the choice, and the error if there is one."""

    def __init__(self, pieces: list[str], tries: int, error: Exception | None) -> None:
        self.tries = tries
        self.last_event_id = ""
        self._pieces, self._error = pieces, error

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Event]:
        ends = [] if self._error or not self._pieces else [""]
        for number, piece in enumerate(self._pieces + ends, 1):
            self.last_event_id = f"cmpl-1:{min(number, len(self._pieces))}"
            yield Event(self.last_event_id, {"choices": [{"index": 0, "text": piece}]})
        if self._error:
            raise self._error


class FakeClient:
    def __init__(self, change: Callable[[list[str]], list[str]], tries: int, error: Exception | None) -> None:
        self._change, self._tries, self._error = change, tries, error

    def completions_stream(self, *, prompt: str, seed: int, **_: Any) -> FakeStream:
        request = EngineRequest(prompt=prompt, sampling=Sampling(seed=seed))
        texts = [mock_text(request, tokens) for tokens in range(TOKENS + 1)]
        pieces = [text[len(before) :] for before, text in itertools.pairwise(texts)]
        return FakeStream(self._change(pieces), self._tries, self._error)


async def one(
    change: Callable[[list[str]], list[str]] = lambda pieces: pieces,
    tries: int = 1,
    error: Exception | None = None,
    resumes: bool = False,
) -> Outcome:
    """What a single stream is counted as."""
    order = msgspec.structs.replace(ORDER, resumes=resumes)
    over = asyncio.Event()
    over.set()
    client: Any = FakeClient(change, tries, error)
    (outcome,) = await Streams(order, client, lambda: None).run(over)
    return outcome


async def test_a_right_stream_is_fine() -> None:
    outcome = await one()
    assert (outcome.error, outcome.wrong) == (None, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: [],
        lambda pieces: pieces[:-1],
        lambda pieces: [*pieces[:5], *pieces[6:]],
        lambda pieces: [*pieces[:5], *pieces[4:]],
        lambda pieces: [*pieces[:5], " other", *pieces[6:]],
        lambda pieces: [*pieces[:4], pieces[5], pieces[4], *pieces[6:]],
        lambda pieces: [*pieces, ""],
    ],
    ids=["nothing", "cut", "lost", "repeated", "another", "order", "one more without text"],
)
async def test_a_wrong_stream_is_seen(change: Callable[[list[str]], list[str]]) -> None:
    outcome = await one(change)
    assert (outcome.error, outcome.wrong) == (None, True)


async def test_a_broken_stream_is_seen() -> None:
    outcome = await one(lambda pieces: pieces[:3], error=StreamBroken("it broke"))
    assert outcome.error is not None
    assert "it broke" in outcome.error


async def test_a_stream_that_the_client_had_to_mend_is_broken_unless_its_gateway_was_to_die() -> None:
    mended = await one(tries=2)
    assert (mended.error, mended.wrong) == ("the client had to send it 2 times", False)
    resumed = await one(tries=2, resumes=True)
    assert (resumed.error, resumed.wrong, resumed.tries) == (None, False, 2)
