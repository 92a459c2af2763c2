"""The long run's checks: they let pass what the gateway makes of the mock's tokens, and nothing else."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from examples.bench.chaos import load as load_module
from examples.bench.chaos.checking import StreamCheck, Wrong, check_answer
from examples.bench.chaos.load import Load, Pause, Pauses, Violation
from examples.bench.chaos.questions import Question, draw
from holdfast.actors.engines.mock import MockEngine, parse_settings
from holdfast.core.stream import Stream, StreamStatus
from holdfast.gateway.answers import Collected
from holdfast.gateway.asking import Asked, ask_chat, ask_completion
from holdfast.gateway.backend import Delta
from holdfast.gateway.client import Answer, Event, StreamBroken
from holdfast.gateway.generate import CHAT, COMPLETIONS, response_id
from holdfast.gateway.http_settings import HttpSettings
from holdfast.gateway.openai import Usage
from holdfast.gateway.sse import Head

TOKENS_MAX = 40
QUESTIONS = 60


def questions(where: Callable[[Question], bool] = lambda _question: True) -> list[Question]:
    rng = random.Random(7)
    drawn = [draw(rng, number, TOKENS_MAX) for number in range(20 * QUESTIONS)]
    return [question for question in drawn if where(question)][:QUESTIONS]


# --- what the gateway would answer, without sockets --------------------------------------------------------


def asked_of(question: Question) -> Asked:
    body = msgspec.json.encode({**question.body, "stream": True} if question.streamed else question.body)
    return (ask_chat if question.chat else ask_completion)(body, HttpSettings())


def head_of(question: Question, asked: Asked) -> Head:
    form = CHAT if question.chat else COMPLETIONS
    return Head(response_id(form.id_prefix, asked.seed), 1, asked.model, asked.include_usage, asked.logprobs)


async def deltas_of(asked: Asked) -> tuple[list[Delta], Usage]:
    """Every choice's tokens, one delta each, the choices in turns."""
    engine = MockEngine(parse_settings({}), "mock", random.Random(1))
    streams = [Stream(choice, asked.stops) for choice in asked.choices]
    for key, stream in enumerate(streams):
        stream.admitted(await engine.admit(key, stream.start()))
    deltas = []
    while not all(stream.ended for stream in streams):
        step = await engine.step()
        logprobs = step.logprobs or [None] * len(step.keys)
        for key, at, token, text, logprob in zip(
            step.keys, step.positions, step.tokens, step.texts, logprobs, strict=True
        ):
            streams[key].token(at, token, text, logprob)
        for key, reason in step.finished:
            streams[key].finished(reason)
        for key, stream in enumerate(streams):
            pieces = stream.take()
            over = stream.status is StreamStatus.FINISHED and stream.finish_reason
            if pieces or over:
                deltas.append(Delta(key, pieces, over or None))
            if over:
                stream.finish_reason = None
    prompt, completion = streams[0].prompt_tokens or 0, sum(len(stream.accepted) for stream in streams)
    return deltas, Usage(prompt, completion, prompt + completion)


def events_of(question: Question) -> list[Event]:
    asked = asked_of(question)
    deltas, usage = asyncio.run(deltas_of(asked))
    form = CHAT if question.chat else COMPLETIONS
    encoder = form.encoder(head_of(question, asked), len(asked.choices), None)
    whole = b"".join(encoder.encode([delta]) for delta in deltas) + encoder.done(usage)
    events = []
    for block in whole.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        if data != "data: [DONE]":
            events.append(Event(name.removeprefix("id: "), msgspec.json.decode(data.removeprefix("data: "))))
    return events


def answer_of(question: Question) -> Answer:
    asked = asked_of(question)
    deltas, usage = asyncio.run(deltas_of(asked))
    collected = Collected(len(asked.choices))
    collected.add(deltas)
    form = CHAT if question.chat else COMPLETIONS
    return Answer(msgspec.json.decode(form.answer(head_of(question, asked), collected, usage)), "r", 1)


def check(question: Question, events: list[Event]) -> None:
    one = StreamCheck(question)
    for event in events:
        one.take(event)
    one.end()


# --- what passes ---------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_questions_of_all_kinds() -> None:
    first, second = questions(), questions()
    assert first == second
    for kind in (
        lambda q: q.chat and q.streamed and q.logprobs >= 0,
        lambda q: not q.chat and not q.streamed and q.logprobs >= 0,
        lambda q: q.stops and q.choices > 1,
        lambda q: not q.tokens,
        lambda q: "seed" not in q.body,
    ):
        assert questions(kind)


def test_right_streams_pass() -> None:
    for question in questions(lambda question: question.streamed):
        check(question, events_of(question))


def test_right_answers_pass() -> None:
    for question in questions(lambda question: not question.streamed):
        check_answer(question, answer_of(question))


def test_some_streams_end_at_a_stop_string_within_a_token() -> None:
    stopped = [events_of(question) for question in questions(lambda q: bool(q.streamed and q.stops and q.choices == 1))]
    ends = [events[-2 if not events[-1].data["choices"] else -1].data["choices"][0] for events in stopped]
    assert "stop" in {end["finish_reason"] for end in ends}


# --- what does not ---------------------------------------------------------------------------------------------


def plain_stream() -> tuple[Question, list[Event]]:
    """A completion of several tokens with its usage."""
    question = questions(lambda q: q.streamed and not q.chat and not q.stops and q.tokens > 9 and q.usage)[0]
    return question, events_of(question)


def refuses(question: Question, events: list[Event], text: str) -> None:
    with pytest.raises(Wrong, match=text):
        check(question, events)


def changed(events: list[Event], at: int, change: Callable[[dict[str, Any]], None]) -> list[Event]:
    data = copy.deepcopy(events[at].data)
    change(data)
    return [*events[:at], Event(events[at].id, data), *events[at + 1 :]]


def test_a_lost_token_is_seen() -> None:
    question, events = plain_stream()
    refuses(question, [*events[:4], *events[5:]], "choice 0: token 4|id")


def test_a_repeated_token_is_seen() -> None:
    question, events = plain_stream()
    refuses(question, [*events[:5], events[4], *events[5:]], "token")


def test_tokens_in_another_order_are_seen() -> None:
    question, events = plain_stream()
    refuses(question, [*events[:4], events[5], events[4], *events[6:]], "token")


def test_another_token_is_seen() -> None:
    question, events = plain_stream()
    refuses(question, changed(events, 3, lambda data: data["choices"][0].update(text=" wrong")), "' wrong'")


def test_an_event_with_another_count_in_its_id_is_seen() -> None:
    question, events = plain_stream()
    name, _, count = events[3].id.rpartition(":")
    moved = Event(f"{name}:{int(count.split(',')[0]) + 1}", events[3].data)
    refuses(question, [*events[:3], moved, *events[4:]], "the event's id")


def test_another_answer_in_the_middle_is_seen() -> None:
    question, events = plain_stream()
    refuses(question, changed(events, 3, lambda data: data.update(id="cmpl-" + "0" * 32)), "the answer's id")


def test_a_stream_that_merely_stops_is_seen() -> None:
    question, events = plain_stream()
    refuses(question, events[:5], "had no finish reason")
    refuses(question, [], "had no finish reason")


def test_an_early_end_is_seen() -> None:
    question, events = plain_stream()
    end = next(at for at, event in enumerate(events) if event.data["choices"][0]["finish_reason"])
    refuses(question, [*events[:5], events[end]], "tokens of choice 0, which ended after 5 tokens")


def test_a_wrong_finish_reason_is_seen() -> None:
    question, events = plain_stream()
    end = next(at for at, event in enumerate(events) if event.data["choices"][0]["finish_reason"])
    refuses(
        question, changed(events, end, lambda data: data["choices"][0].update(finish_reason="stop")), "finish reason"
    )


def test_a_wrong_or_missing_usage_is_seen() -> None:
    question, events = plain_stream()
    refuses(
        question,
        changed(events, len(events) - 1, lambda data: data["usage"].update(completion_tokens=1)),
        "completion_tokens",
    )
    refuses(question, events[:-1], "usage")


def test_a_wrong_log_probability_is_seen() -> None:
    question = questions(lambda q: q.streamed and q.logprobs > 0)[0]
    events = events_of(question)

    def change(data: dict[str, Any]) -> None:
        data["choices"][0]["logprobs"]["content"][0]["logprob"] = -0.3

    at = next(at for at, event in enumerate(events) if event.data["choices"][0].get("logprobs"))
    refuses(question, changed(events, at, change), "logprob: is -0.3")


def test_a_seed_that_was_not_asked_for_is_seen() -> None:
    question, events = plain_stream()
    other = msgspec.structs.replace(question, body={**question.body, "seed": 1})
    refuses(other, events, "seed")


def test_a_wrong_answer_is_seen() -> None:
    question = questions(lambda q: not q.streamed and not q.chat)[0]
    answer = answer_of(question)
    wrongs: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda data: data["choices"][0].update(text=data["choices"][0]["text"] + " more"), "text"),
        (lambda data: data["choices"][0].update(finish_reason="content_filter"), "finish reason"),
        (lambda data: data["usage"].update(prompt_tokens=0), "usage"),
        (lambda data: data["choices"].pop(), "choices"),
    ]
    for change, text in wrongs:
        data = copy.deepcopy(answer.data)
        change(data)
        with pytest.raises(Wrong, match=text):
            check_answer(question, Answer(data, "r", 1))


# --- how a request's end is counted ------------------------------------------------------------------------------


class FakeStream:
    """As `AsyncStream`: gives events, and ends as it is told."""

    def __init__(self, events: list[Event], end: str) -> None:
        self.request_id, self.tries = "r", 1
        self._events, self._end = events, end

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event
        if self._end == "broken":
            raise StreamBroken("it broke")
        if self._end == "hung":
            await asyncio.Event().wait()


class FakeClient:
    def __init__(self, give: Callable[[Question], FakeStream | Answer], load: list[Load]) -> None:
        self._give = give
        self._load = load

    def stream(self, path: str, body: dict[str, Any], options: object) -> FakeStream:
        found = self._answer(path, body, True)
        assert isinstance(found, FakeStream)
        return found

    async def post(self, path: str, body: dict[str, Any], options: object) -> Answer:
        found = self._answer(path, body, False)
        assert isinstance(found, Answer)
        return found

    def _answer(self, path: str, body: dict[str, Any], streamed: bool) -> FakeStream | Answer:
        self._load[0].stopping = True
        mine = next(q for q in questions() if q.body == body and q.path == path and q.streamed == streamed)
        return self._give(mine)


async def one_request(give: Callable[[Question, list[Event]], FakeStream]) -> tuple[Load, list[Violation]]:
    """A load of a single streamed request."""
    seen: list[Violation] = []
    loads: list[Load] = []
    events: dict[int, list[Event]] = {}

    def answer(question: Question) -> FakeStream:
        return give(question, events[question.number])

    for question in questions():
        if question.streamed:
            events[question.number] = await asyncio.to_thread(events_of, question)
    load = Load(FakeClient(answer, loads), random.Random(7), TOKENS_MAX, seen.append)  # type: ignore[arg-type]
    loads.append(load)
    assert questions()[0].streamed
    await load.work()
    return load, seen


async def test_every_end_of_a_request_is_counted_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    load, seen = await one_request(lambda _question, events: FakeStream(events, ""))
    assert (dict(load.ended), seen) == ({"right": 1}, [])
    assert load.tokens > 0

    load, seen = await one_request(lambda _question, events: FakeStream(events[:2], ""))
    assert dict(load.ended) == {"wrong": 1}
    assert (seen[0].what, seen[0].request_id) == ("wrong", "chaos-0")

    load, seen = await one_request(lambda _question, events: FakeStream(events[:2], "broken"))
    assert dict(load.ended) == {"broken": 1}
    assert load.errors == {"StreamBroken": 1}
    assert "it broke" in seen[0].text

    load, seen = await one_request(lambda _question, events: FakeStream([Event("x", {})], ""))
    assert dict(load.ended) == {"wrong": 1}

    monkeypatch.setattr(load_module, "draw", lambda *args: msgspec.structs.replace(draw(*args), leaves=1))
    load, seen = await one_request(lambda _question, events: FakeStream(events[:3], "hung"))
    assert (dict(load.ended), seen) == ({"left": 1}, [])
    monkeypatch.setattr(load_module, "draw", draw)

    monkeypatch.setattr(load_module, "HUNG_S", 0.01)
    load, seen = await one_request(lambda _question, events: FakeStream(events[:2], "hung"))
    assert dict(load.ended) == {"hung": 1}
    assert seen[0].what == "hung"


def test_pauses_are_told_apart_by_what_they_are_due_to() -> None:
    pauses = Pauses()
    frozen_then, resumed, short, long = (
        Pause(2.0, "frozen", 101.0, 1),
        Pause(1.0, "resumed", 200.0, 2),
        Pause(0.1, "short", 300.0, 1),
        Pause(0.2, "long", 301.0, 1),
    )
    for pause in (frozen_then, resumed, short, long):
        pauses.note(pause, [(100.5, 103.0)])
    assert pauses == Pauses([frozen_then], [resumed], [long, short])
