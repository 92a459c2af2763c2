"""A stream that breaks off is the stream that it would have been, wherever it breaks, once, twice and three times.

Everything between a client's bytes and the engines is the product's: the HTTP side, the serving side, the wire's
frames, the replicas. Connections are in memory and time is virtual, so that a break is exactly where it is put:
after so many tokens of the first choice, or as the attempt after that arrives, before it is taken in.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import combinations_with_replacement
from typing import Any, NamedTuple, Protocol

import pytest

from holdfast.actors.engines.mock import MockEngine, mock_text, parse_settings
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from holdfast.gateway.app import App, create_app
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
from tests.unit.support.answers import assert_given_up, by_choice
from tests.unit.support.history import application
from tests.unit.support.memory_network import MemoryNetworkLoop
from tests.unit.support.replicas import LocalReplica, Site, eventually, replicas_ready

TOKENS = 8
REPLICAS = 4
PROMPT = "hold fast"
SEED = 7
WHOLE = mock_text(EngineRequest(prompt=PROMPT, sampling=Sampling(seed=SEED)), TOKENS)
ENDS = [len(mock_text(EngineRequest(prompt=PROMPT, sampling=Sampling(seed=SEED)), n)) for n in range(TOKENS + 1)]
STRADDLES = WHOLE[ENDS[5] - 2 : ENDS[6] + 2]
"""A stop string that begins in the fifth token and ends in the seventh."""
NEARLY = WHOLE[ENDS[1] + 1 : ENDS[3] + 2] + "@"
"""Looks like a stop string from the second token to the fourth, and is none."""


class Break(NamedTuple):
    """Where the first choice loses its replica: after so many tokens; or, `early`, as its next attempt arrives."""

    tokens: int
    early: bool = False


class Breaks:
    """What is still to break, and which replica an engine belongs to."""

    def __init__(self) -> None:
        self.left: list[Break] = []
        self.cut: dict[BreakingEngine, LocalReplica] = {}

    def due(self, engine: BreakingEngine, tokens: int, *, early: bool) -> bool:
        """The first choice has so many tokens there: cut its replica off if that is where the next break is."""
        if not self.left or self.left[0] != (tokens, early):
            return False
        self.left.pop(0)
        self.cut[engine].cut()
        return True


class BreakingEngine(MockEngine):
    """Loses its connections when it is told to."""

    def __init__(self, breaks: Breaks) -> None:
        super().__init__(parse_settings({}), "tiny", random.Random(1))
        self._breaks = breaks
        self._first: int | None = None

    async def admit(self, key: int, request: EngineRequest) -> int:
        if request.sampling.seed == SEED and request.prompt in (None, PROMPT):
            is_cut = self._breaks.due(self, len(request.accepted), early=True)
            self._first = None if is_cut else key
        return await super().admit(key, request)

    async def _pace(self) -> None:
        await super()._pace()
        first = self._running.get(self._first) if self._first is not None else None
        if first is not None and self._breaks.due(self, first.position, early=False):
            self._first = None


class Ask(Protocol):
    """Sends the request, breaks it off at the places, and reads to the end; `after` is the last event's id before."""

    async def __call__(self, places: list[Break], after: str | None = None) -> Answer: ...


async def with_breaks(path: str, body: dict[str, Any], test: Callable[[Ask], Awaitable[None]]) -> None:
    """Run a test with a function that sends the request and breaks it off at the given places."""
    site, breaks = Site(), Breaks()
    site.deploy(application(replicas=REPLICAS))
    async with site:
        for _ in range(REPLICAS):
            engine = BreakingEngine(breaks)
            breaks.cut[engine] = await site.replica(engine=engine)
        serving = await site.gateway()
        app: App = create_app(serving)

        async def send(places: list[Break], after: str | None = None) -> Answer:
            await eventually(lambda: replicas_ready(serving) == REPLICAS)
            breaks.left = list(places)
            if places:
                for replica in site.replicas.values():
                    # What a replica holds it would hand over at once: nothing would be drawn, and nothing break off.
                    replica.replica._held.shelf.expire(math.inf)
            moved = serving.migrations.total()
            answer = await ask(app, path, body, {"last-event-id": after} if after else None)
            if not barren(places):
                assert not breaks.left, "a break was not reached"
                assert serving.migrations.total() - moved >= len(places)
            breaks.left = []
            return answer

        await test(send)
        await eventually(lambda: all(replica.free for replica in site.replicas.values()))


def in_memory(path: str, body: dict[str, Any], test: Callable[[Ask], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=MemoryNetworkLoop) as runner:
        runner.run(with_breaks(path, body, test))


def barren(places: list[Break]) -> bool:
    """Whether so many attempts in a row were taken in and broke off without a token that the stream is given up."""
    begun = [0, *(place.tokens for place in places)]
    without = [place.tokens == begun[n] and not place.early for n, place in enumerate(places)]
    return any(all(without[n : n + BARREN_ATTEMPTS_MAX]) for n in range(len(without) - BARREN_ATTEMPTS_MAX + 1))


def everywhere(tokens: int) -> Iterator[list[Break]]:
    """Every way to break a stream of so many tokens one to three times."""
    for count in (1, 2, 3):
        for places in combinations_with_replacement(range(tokens), count):
            yield [Break(place) for place in places]
    for first, second in combinations_with_replacement(range(tokens), 2):
        yield [Break(first), Break(first, early=True), Break(second)]


USAGE = {"stream": True, "stream_options": {"include_usage": True}}
LOOSE = {"temperature": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.5, "min_tokens": 5}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion with logprobs": (COMPLETIONS, completion(max_tokens=TOKENS, logprobs=3, **USAGE, **LOOSE)),
    "chat with logprobs": (CHAT, chat(max_tokens=TOKENS, logprobs=True, top_logprobs=2, **USAGE)),
    "three choices": (CHAT, chat(max_tokens=TOKENS, n=3, **USAGE, **LOOSE)),
    "two prompts": (COMPLETIONS, completion(max_tokens=TOKENS, echo=True, **USAGE) | {"prompt": [PROMPT, "three"]}),
    "a stop string over three tokens": (COMPLETIONS, completion(max_tokens=64, stop=[STRADDLES], logprobs=1, **USAGE)),
    "all but a stop string": (COMPLETIONS, completion(max_tokens=TOKENS, stop=[NEARLY, STRADDLES + "@"], **USAGE)),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_is_the_same_wherever_it_breaks_off_up_to_three_times(name: str) -> None:
    path, body = REQUESTS[name]

    async def test(send: Ask) -> None:
        undisturbed = by_choice(await send([]))
        assert undisturbed[-1][-1].endswith("[DONE]")
        assert '"usage":{' in undisturbed[-1][-2]
        for places in everywhere(TOKENS - 1):
            answer = await send(places)
            if barren(places):
                check_given_up(answer, undisturbed)
            else:
                assert by_choice(answer) == undisturbed, places

    in_memory(path, body, test)


def check_given_up(answer: Answer, undisturbed: dict[int, list[str]]) -> None:
    """The right beginning of the stream, and the error; the error alone where there was no token yet."""
    if answer.status == 200:
        assert_given_up(answer, undisturbed, "stream_lost")
    else:
        assert (answer.status, answer.error["code"]) == (503, "stream_lost")


RESUMABLE = {
    "chat with logprobs": REQUESTS["chat with logprobs"],
    "a stop string over three tokens": (COMPLETIONS, completion(max_tokens=64, stop=[STRADDLES], **USAGE)),
    "all but a stop string": REQUESTS["all but a stop string"],
}


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_stream_is_taken_up_after_any_event_and_breaks_off_anywhere(name: str) -> None:
    path, body = RESUMABLE[name]

    async def test(send: Ask) -> None:
        undisturbed = await send([])
        ids, whole = [event.id for event in undisturbed.events], events_of(undisturbed)
        for after in sorted({one for one in ids if not one.endswith(":0")}):
            for place in range(1, TOKENS - 1):
                answer = await send([Break(place)], after)
                assert events_of(answer) == whole[ids.index(after) + 1 :], (after, place)

    in_memory(path, body, test)


@pytest.mark.parametrize("name", RESUMABLE)
def test_a_stream_that_was_given_up_can_be_taken_up_where_it_ended(name: str) -> None:
    path, body = RESUMABLE[name]

    async def test(send: Ask) -> None:
        whole = events_of(await send([]))
        for place in range(1, TOKENS - 1):
            given_up = await send([Break(place)] * (BARREN_ATTEMPTS_MAX + 1))
            rest = await send([], given_up.events[-1].id)
            assert events_of(given_up)[:-1] + events_of(rest) == whole, place

    in_memory(path, body, test)


def events_of(answer: Answer) -> list[str]:
    """The events of a stream of one choice."""
    return [event for events in by_choice(answer).values() for event in events]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_whole_answer_is_the_same_when_it_breaks_off_three_times(name: str) -> None:
    path, body = REQUESTS[name]
    whole = {key: value for key, value in body.items() if not key.startswith("stream")}

    async def test(send: Ask) -> None:
        undisturbed = told(await send([]))
        for places in combinations_with_replacement(range(1, TOKENS - 1), 3):
            if len(set(places)) > 1:
                assert told(await send([Break(place) for place in places])) == undisturbed, places

    in_memory(path, whole, test)


def told(answer: Answer) -> dict[str, Any]:
    """An answer but for its id and its time."""
    assert answer.status == 200
    return {key: value for key, value in answer.json.items() if key not in ("id", "created")}


def test_the_stop_strings_here_are_where_they_should_be() -> None:
    """In the fifth to seventh token, and nowhere before; the other begins where it should and is not there."""
    assert ENDS[4] < WHOLE.index(STRADDLES) < ENDS[5]
    assert ENDS[6] < WHOLE.index(STRADDLES) + len(STRADDLES) < ENDS[7]
    assert WHOLE.index(NEARLY[:-1]) == ENDS[1] + 1
    assert NEARLY not in WHOLE
