"""Tool calls and constrained output over HTTP: what is asked of the engine, and the shapes of what comes back."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import msgspec
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.engines.mock import load_mock
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import EngineInfo, EngineRequest, Grammar, ToolUse
from holdfast.core.stream import FINISH_STOP, Piece, Stream
from holdfast.gateway.app import HttpSettings, create_app
from holdfast.gateway.asking import Asked, ask_chat
from holdfast.gateway.backend import DEFAULT_CLAIM, Claim, Delta, Resumption, Session
from holdfast.gateway.sse import Head
from holdfast.gateway.tool_calls import Arguments, Began, CallParser, Part, Text, call_id
from holdfast.gateway.tool_stream import chat_encoder
from holdfast.gateway.tracing import UNTRACED, RequestTrace
from tests.unit.gateway.client import CHAT, ask, chat
from tests.unit.gateway.fakes import FakeBackend, FakeSession, delivered_of
from tests.unit.gateway.server import serving

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}
NOW = {"name": "now"}
TOOLS: Any = [{"type": "function", "function": WEATHER}, {"type": "function", "function": NOW}]
NAMED: Any = {"type": "function", "function": {"name": "now"}}
JSON_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":"Köln}"}}\n</tool_call>'
SECOND = '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
TEXTS = (
    CALL,
    CALL + SECOND,
    "Let me look.\n" + CALL + SECOND,
    "No call <tool_ca",
    "<tool_call>no call",
    '<tool_call>\n{"name": "", "arguments": {}',
    '<tool_call>\n{"name": "f", "argumental": {}',
    CALL + " and more",
    CALL[:60],
    "",
)


class SayingBackend(FakeBackend):
    """Says one text, a few characters a token."""

    def __init__(self, text: str, chunk: int = 3) -> None:
        super().__init__(chunk=1)
        self.text, self.characters = text, chunk

    def open(
        self,
        model: str,
        choices: Sequence[EngineRequest],
        *,
        stops: Sequence[str],
        timeout_s: float | None = None,
        name: str = "",
        resumption: Resumption | None = None,
        trace: RequestTrace = UNTRACED,
        claim: Claim = DEFAULT_CLAIM,
    ) -> Session:
        self.seen = list(choices)
        return _Saying(self, choices, stops, delivered_of(resumption, len(choices)))


class _Saying(FakeSession):
    def _token(self, stream: Stream) -> None:
        backend = self._backend
        assert isinstance(backend, SayingBackend)
        at = len(stream.accepted)
        piece = backend.text[at * backend.characters : (at + 1) * backend.characters]
        if not piece:
            stream.finished(FINISH_STOP)
        else:
            stream.token(at, at, piece)


def asked(**fields: Any) -> Asked:
    return ask_chat(json.dumps(chat(**fields)).encode(), HttpSettings())


# --- what is asked ----------------------------------------------------------------------------------------


def test_a_schema_reaches_the_engine_in_the_order_that_it_was_written_in() -> None:
    grammar = asked(response_format=JSON_SCHEMA).choices[0].grammar
    assert grammar == Grammar(json.dumps(SCHEMA, separators=(",", ":")))
    assert asked(response_format={"type": "json_object"}).choices[0].grammar == Grammar('{"type":"object"}')
    assert asked(response_format={"type": "text"}).choices[0].grammar is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ToolUse([WEATHER, NOW])),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolUse([WEATHER, NOW], parallel=False)),
        ({"tool_choice": "required"}, ToolUse([WEATHER, NOW], forced=True)),
        ({"tool_choice": NAMED}, ToolUse([WEATHER, NOW], ["now"], forced=True, parallel=False)),
        ({"tool_choice": "none"}, None),
    ],
)
def test_tools_reach_the_engine_with_what_may_be_called(fields: dict[str, Any], expected: ToolUse | None) -> None:
    found = asked(tools=TOOLS, **fields)
    assert found.choices[0].tools == expected
    assert found.calls is (expected is not None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": TOOLS, "logprobs": True}, "logprobs"),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
        ({"tools": TOOLS, "response_format": JSON_SCHEMA}, "response_format"),
        ({"response_format": JSON_SCHEMA, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        asked(**fields)
    assert refused.value.param == param


def test_calls_and_their_results_are_passed_on() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "call_1"},
    ]
    assert asked(messages=messages).choices[0].messages == messages


def test_an_ordinary_request_is_on_the_wire_as_it_was() -> None:
    fields = msgspec.to_builtins(asked().choices[0])
    assert not fields.keys() & {"grammar", "tools"}


# --- what is a call ---------------------------------------------------------------------------------------


def _merged(parts: Iterator[Part]) -> list[Part]:
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(last, Text) and isinstance(part, Text):
            merged[-1] = Text(last.text + part.text)
        elif isinstance(last, Arguments) and isinstance(part, Arguments):
            merged[-1] = Arguments(last.call, last.text + part.text)
        else:
            merged.append(part)
    return merged


def _parsed(pieces: Sequence[str], reason: str = FINISH_STOP) -> tuple[list[Part], str]:
    parser = CallParser()
    parts = [part for piece in pieces for part in parser.feed(piece)]
    rest, found = parser.end(reason)
    return _merged(iter([*parts, *rest])), found


def test_calls_are_told_apart_from_content() -> None:
    expected = [
        Text("Let me look.\n"),
        Began(0, "get_weather"),
        Arguments(0, '{"city":"Köln}"}'),
        Began(1, "now"),
        Arguments(1, "{}"),
    ]
    assert _parsed(["Let me look.\n" + CALL + SECOND]) == (expected, "tool_calls")


def test_a_call_that_was_cut_off_has_the_reason_that_cut_it() -> None:
    parts, reason = _parsed([CALL[:60]], "length")
    assert parts[0] == Began(0, "get_weather")
    assert reason == "length"
    assert _parsed([CALL[:60]], FINISH_STOP)[1] == "stop"


def test_of_a_further_call_that_was_cut_off_before_its_name_nothing_is_shown() -> None:
    parts, reason = _parsed([CALL + SECOND[:20]], "length")
    assert parts == [Began(0, "get_weather"), Arguments(0, '{"city":"Köln}"}')]
    assert reason == "length"


@pytest.mark.parametrize("text", TEXTS[3:7])
def test_what_is_no_call_is_content(text: str) -> None:
    assert _parsed([text]) == ([Text(text)], "stop")


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 200), max_size=12))
def test_how_the_text_is_cut_into_pieces_makes_no_difference(text: str, cuts: list[int]) -> None:
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in zip(at, [*at[1:], len(text)], strict=True)]
    assert _parsed(pieces) == _parsed([text])


# --- what comes back --------------------------------------------------------------------------------------


async def test_calls_come_whole_in_a_whole_answer() -> None:
    answer = await ask(create_app(SayingBackend("So.\n" + CALL)), CHAT, chat(tools=TOOLS))
    choice = answer.json["choices"][0]
    function = {"name": "get_weather", "arguments": '{"city":"Köln}"}'}
    calls = [{"id": call_id(answer.json["id"], 0, 0), "type": "function", "function": function}]
    assert choice["message"] == {"role": "assistant", "content": "So.\n", "refusal": None, "tool_calls": calls}
    assert choice["finish_reason"] == "tool_calls"


async def test_text_alone_is_an_answer_like_any_other() -> None:
    answer = await ask(create_app(SayingBackend("Just <text>.")), CHAT, chat(tools=TOOLS))
    choice = answer.json["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Just <text>.", "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("characters", [1, 7, 500])
async def test_a_streamed_call_begins_with_its_name_and_ends_with_its_reason(characters: int) -> None:
    backend = SayingBackend("Ü\u2028" + CALL + SECOND, characters)
    answer = await ask(create_app(backend), CHAT, chat(tools=TOOLS, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in answer.chunks]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert "".join(delta.get("content") or "" for delta in deltas) == "Ü\u2028"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    begun = [call for call in calls if "id" in call]
    assert [(call["index"], call["function"]["name"]) for call in begun] == [(0, "get_weather"), (1, "now")]
    assert all(call["type"] == "function" for call in begun)
    arguments = ["", ""]
    for call in calls:
        arguments[call["index"]] += call["function"]["arguments"]
    assert arguments == ['{"city":"Köln}"}', "{}"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in answer.chunks][-1] == "tool_calls"
    tokens = -(-len(backend.text) // characters)
    assert [event.id.rpartition(":")[2] for event in answer.events[1 : tokens + 1]] == [
        str(n + 1) for n in range(tokens)
    ]


async def test_a_streamed_text_that_ends_within_a_marker_is_whole() -> None:
    answer = await ask(create_app(SayingBackend("a <tool")), CHAT, chat(tools=TOOLS, stream=True))
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in answer.chunks]
    assert "".join(texts) == "a <tool"


# --- the official client ----------------------------------------------------------------------------------


class Place(pydantic.BaseModel):
    """For the client's own parsing."""

    city: str


@pytest.fixture
def backend() -> SayingBackend:
    return SayingBackend(CALL + SECOND)


@pytest.fixture
async def client(backend: SayingBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(create_app(backend)) as port,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


MESSAGES: Any = [{"role": "user", "content": "Where?"}]


async def test_the_official_client_gets_calls_and_sends_their_results(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required")
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    assert [call.function.name for call in message.tool_calls if call.type == "function"] == ["get_weather", "now"]
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    again: Any = [*MESSAGES, message.model_dump(), *results]
    await client.chat.completions.create(model="tiny", messages=again, tools=TOOLS, tool_choice="required")


async def test_the_official_client_puts_streamed_calls_together(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Köln}"}, {}]
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_official_client_parses_output_by_its_schema(
    client: openai.AsyncOpenAI, backend: SayingBackend, stream: bool
) -> None:
    backend.text = '{"city":"Köln"}'
    if stream:
        async with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Place) as events:
            parsed = (await events.get_final_completion()).choices[0].message.parsed
    else:
        answer = await client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Place)
        parsed = answer.choices[0].message.parsed
    assert parsed == Place(city="Köln")
    grammar = backend.seen[0].grammar
    assert grammar is not None
    assert json.loads(grammar.schema)["required"] == ["city"]


# --- engines that can't -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asks", "param"), [({"grammar": Grammar("{}")}, "response_format"), ({"tools": ToolUse([NOW])}, "tools")]
)
async def test_the_mock_engine_refuses_before_the_first_token(asks: dict[str, Any], param: str) -> None:
    engine = load_mock({}, "mock", random.Random(0))
    with pytest.raises(RequestRefused) as refused:
        await engine.admit(1, EngineRequest(prompt="x", **asks))
    assert (refused.value.code, refused.value.param) == ("unsupported_value", param)
    assert engine.info.features == []


def test_an_engine_that_an_older_version_described_has_no_features() -> None:
    older = {
        "model": "tiny",
        "context_tokens_max": 9,
        "kv_blocks": 9,
        "streams_max": 9,
        "deterministic": True,
        "device": "cpu",
    }
    assert msgspec.json.decode(msgspec.json.encode(older), type=EngineInfo).features == []


@pytest.mark.parametrize("text", TEXTS)
async def test_a_stream_of_calls_is_resumed_after_any_of_its_events(text: str) -> None:
    app = create_app(SayingBackend(text), HttpSettings())
    body = chat(tools=TOOLS, stream=True)
    whole = (await ask(app, CHAT, body)).events
    for at in range(1, len(whole) - 2):
        rest = (await ask(app, CHAT, body, {"last-event-id": whole[at].id})).events
        assert [deltas(event.data) for event in rest] == [deltas(event.data) for event in whole[at + 1 :]]


@pytest.mark.parametrize("drawn", range(6))
def test_who_has_more_of_a_stream_than_was_drawn_again_gets_none_of_it_twice(drawn: int) -> None:
    """It was stopped meanwhile. What may have become a marker was held back then, and the client has it."""
    head = Head("chatcmpl-1", 0, "tiny", include_usage=False, logprobs=-1, calls=True)
    texts = ["a", " <too", "l box>", " <tool_ca", "mera", "."]
    pieces = [Piece(at + 1, text, None) for at, text in enumerate(texts[:drawn])]
    encoder = chat_encoder(head, 1, [6])
    events = encoder.encode([Delta(0, pieces, None), Delta(0, [], FINISH_STOP)]).decode()
    assert events.startswith("id: chatcmpl-1:6\ndata: {")
    assert deltas(events.partition("data: ")[2]) == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert encoder.ended


def deltas(data: str) -> Any:
    """What an event brings, without what is not of its choice."""
    return data if data == "[DONE]" else json.loads(data)["choices"]
