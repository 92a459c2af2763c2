"""Output that a grammar constrains: always valid, and bitwise the same however often the stream was resumed."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from holdfast.actors.engines.torch import grammar_check, grammars
from holdfast.actors.engines.torch.engine import TorchEngine
from holdfast.actors.engines.torch.grammars import Guide
from holdfast.core.errors import RequestRefused
from holdfast.core.requests import (
    FEATURE_JSON_SCHEMA,
    FEATURE_TOOLS,
    FEATURE_TOOLS_FORCED,
    EngineRequest,
    Grammar,
    Sampling,
    ToolUse,
)
from holdfast.gateway.tool_calls import whole_message
from tests.unit.torch_engine.models import SHIPPED, make_model
from tests.unit.torch_engine.running import Recorded, load, run, run_alone, run_one

CREW: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "rank": {"enum": ["captain", "mate", "cook"]},
        "knots": {"type": "array", "items": {"$ref": "#/$defs/knot"}, "maxItems": 2},
    },
    "required": ["name", "age", "rank", "knots"],
    "additionalProperties": False,
    "$defs": {"knot": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]{2,5}$"}]}},
}
PORT = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 6}
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "moor",
        "parameters": {
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/place"}},
            "required": ["place"],
            "additionalProperties": False,
            "$defs": {"place": {"enum": ["north quay", "Süd ☂"]}},
        },
    },
    {"name": "set_sail"},
]
DEFAULT = Sampling()
HERMES_TEMPLATE = (
    "{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    '<tool_call>{"name": <name>, "arguments": <arguments>}</tool_call><|end|>{% endif %}'
    "{%- for message in messages %}<|user|>{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.place }}</tool_call>{% endfor %}"
    "{%- if message.role == 'tool' %} (result){% endif %}<|end|>{% endfor %}<|assistant|>"
)


def _request(sampling: Sampling = DEFAULT, **fields: Any) -> EngineRequest:
    return EngineRequest(messages=[{"role": "user", "content": "Who?"}], max_tokens=160, sampling=sampling, **fields)


def _schema(schema: dict[str, Any]) -> Grammar:
    return Grammar(json.dumps(schema))


REQUESTS = (
    _request(Sampling(seed=1), grammar=_schema(CREW), logprobs=2),
    _request(Sampling(temperature=0.0), grammar=_schema(CREW), logprobs=2),
    _request(Sampling(seed=2, top_p=0.7, frequency_penalty=0.8), grammar=_schema(CREW), logprobs=2),
    _request(Sampling(seed=3, top_k=5, presence_penalty=0.5), grammar=_schema(PORT), min_tokens=6, logprobs=2),
    _request(Sampling(seed=4), tools=ToolUse(FUNCTIONS, forced=True), logprobs=0),
    _request(Sampling(seed=5), logprobs=2),
    _request(Sampling(seed=6, temperature=0.7), min_tokens=20),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    engine = load(SHIPPED)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def alone() -> tuple[Recorded, ...]:
    return tuple(run_alone(SHIPPED, request) for request in REQUESTS)


def _assert_rest(stream: Recorded, whole: Recorded, accepted: int) -> None:
    assert stream.tokens == whole.tokens[accepted:]
    assert stream.texts == whole.texts[accepted:]
    assert stream.logprobs == whole.logprobs[accepted:]
    assert stream.finish == whole.finish


def _refusal(engine: TorchEngine, request: EngineRequest) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        run_one(engine, request)
    return refused.value


# --- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [CREW, PORT, {"type": "object", "maxProperties": 0}, {"const": {"a": [1, "ü"]}}])
def test_whatever_is_drawn_is_what_the_schema_allows(engine: TorchEngine, schema: dict[str, Any]) -> None:
    requests = {seed: _request(Sampling(seed=seed), grammar=_schema(schema)) for seed in range(60)}
    for stream in asyncio.run(run(engine, requests)).values():
        assert stream.finish == "stop"
        jsonschema.validate(json.loads(stream.text), schema)


def test_forced_calls_are_calls_of_the_given_functions(engine: TorchEngine) -> None:
    requests = {
        seed: _request(Sampling(seed=seed), tools=ToolUse(FUNCTIONS, forced=True, parallel=seed % 2 == 0))
        for seed in range(40)
    }
    most = 0
    for seed, stream in asyncio.run(run(engine, requests)).items():
        content, calls, reason = whole_message(stream.texts, stream.finish or "", "id", 0)
        assert content is None
        assert reason == ("tool_calls" if stream.finish == "stop" else "length")
        most = max(most, len(calls))
        assert len(calls) == 1 or seed % 2 == 0
        for call in calls if reason == "tool_calls" else ():
            parameters = next(function for function in FUNCTIONS if function["name"] == call.name).get("parameters")
            jsonschema.validate(json.loads(call.arguments), parameters or {"maxProperties": 0})
    assert most > 1


def test_a_named_function_is_the_one_that_is_called(engine: TorchEngine) -> None:
    tools = ToolUse(FUNCTIONS, ["set_sail"], forced=True, parallel=False)
    assert run_one(engine, _request(tools=tools)).text == (
        '<tool_call>\n{"name": "set_sail", "arguments": {}}\n</tool_call>'
    )


def test_where_the_grammar_leaves_nothing_but_the_end_the_text_ends(engine: TorchEngine) -> None:
    stream = run_one(engine, _request(grammar=_schema({"const": 7}), min_tokens=50))
    assert (stream.text, stream.finish) == ("7", "stop")


def test_the_least_number_of_tokens_counts_as_long_as_the_grammar_goes_on(engine: TorchEngine) -> None:
    for seed in range(10):
        request = _request(Sampling(seed=seed), grammar=_schema({"type": "integer"}), min_tokens=9)
        assert len(run_one(engine, request).tokens) >= 9


def test_the_limit_of_tokens_cuts_the_json_off(engine: TorchEngine) -> None:
    stream = run_one(engine, msgspec.structs.replace(REQUESTS[0], max_tokens=5))
    assert (len(stream.tokens), stream.finish) == (5, "length")


def test_logprobs_are_those_of_the_model_and_not_of_the_grammar(engine: TorchEngine) -> None:
    free = run_one(engine, _request(Sampling(temperature=0.0), logprobs=3))
    bound = run_one(engine, _request(Sampling(temperature=0.0), logprobs=3, grammar=_schema({"type": "array"})))
    assert free.logprobs[0] is not None
    assert bound.logprobs[0] is not None
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.tokens[0] not in [token for token, _, _ in bound.logprobs[0].top]


# --- the same bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
def test_a_stream_resumed_at_any_position_goes_on_as_if_nothing_had_happened(
    engine: TorchEngine, alone: tuple[Recorded, ...], number: int
) -> None:
    whole = alone[number]
    requests = {
        accepted: msgspec.structs.replace(REQUESTS[number], accepted=whole.tokens[:accepted])
        for accepted in range(len(whole.tokens) + 1)
    }
    streams = asyncio.run(run(engine, requests))
    for accepted in requests:
        _assert_rest(streams[accepted], whole, accepted)


def test_a_crowd_changes_no_bit_of_a_stream_with_or_without_a_grammar(
    engine: TorchEngine, alone: tuple[Recorded, ...]
) -> None:
    requests = {key: REQUESTS[key % len(REQUESTS)] for key in range(28)}
    for key, stream in asyncio.run(run(engine, requests)).items():
        whole = alone[key % len(REQUESTS)]
        assert (stream.tokens, stream.finish) == (whole.tokens, whole.finish)
        if requests[key].logprobs >= 0:
            assert stream.logprobs == whole.logprobs


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ('{"type":"ship"}', "ship"),
        ("[]", "must be an object"),
        ("{", "Expecting"),
        ('{"not":{"type":"string"}}', "not"),
        ('{"$ref":"#/nowhere"}', "nowhere"),
        ('{"type":"string","pattern":"(?<=a)b"}', "look-around"),
        ('{"type":"array","uniqueItems":true}', "uniqueItems"),
        ('{"allOf":[{"type":"string"},{"type":"null"}]}', "incompatible"),
        ('{"x-guidance":{"lenient":true},"type":"array","uniqueItems":true}', "uniqueItems"),
        ('{"enum":["' + "x" * 70_000 + '"]}', "65536"),
        ('{"items":' * 3000 + "{}" + "}" * 3000, "nested"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(engine: TorchEngine, schema: str, says: str) -> None:
    refusal = _refusal(engine, _request(grammar=Grammar(schema)))
    assert (refusal.code, refusal.param) == ("invalid_json_schema", "response_format")
    assert says in refusal.message


def _ended_children_s() -> float:
    """Processor time of this process's children that have ended: another program's load doesn't add to it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_schema_that_takes_for_ever_to_compile_is_refused_in_bounded_time_and_harms_nobody(
    engine: TorchEngine, alone: tuple[Recorded, ...]
) -> None:
    request = _request(grammar=_schema({"type": "integer", "multipleOf": 9_999_991}))
    engine._grammars._checker.close()  # what it has done for other tests is not counted
    before_s = _ended_children_s()
    refusal = _refusal(engine, request)
    assert (refusal.code, refusal.param) == ("invalid_json_schema", "response_format")
    assert "too long" in refusal.message
    assert 0 < _ended_children_s() - before_s < 2 * grammar_check.WALL_FACTOR * grammars.COMPILE_S_MAX
    _refusal(engine, request)
    _assert_rest(run_one(engine, REQUESTS[0]), alone[0], 0)


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        ([{"name": "a", "parameters": {"type": "ship"}}], []),
        ([{"name": "a b"}], []),
        ([{"name": "a"}], ["b"]),
        ([{"name": "a", "parameters": []}], []),
        ([{}], []),
    ],
)
def test_tools_that_cannot_be_enforced_are_refused(
    engine: TorchEngine, functions: list[dict[str, Any]], names: list[str]
) -> None:
    refusal = _refusal(engine, _request(tools=ToolUse(functions, names, forced=True)))
    assert (refusal.code, refusal.param) == ("invalid_json_schema", "tools")


def test_ignore_eos_and_accepted_tokens_that_do_not_fit_are_refused(engine: TorchEngine) -> None:
    assert _refusal(engine, _request(grammar=_schema(CREW), ignore_eos=True)).param == "ignore_eos"
    assert _refusal(engine, _request(grammar=_schema(CREW), accepted=[400])).param == "accepted"


def test_without_the_library_the_request_is_refused_and_the_rest_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    engine = load(SHIPPED)
    assert engine.info.features == []
    refusal = _refusal(engine, _request(grammar=_schema(CREW)))
    assert (refusal.code, refusal.param) == ("unsupported_value", "response_format")
    assert "llguidance" in refusal.message
    assert run_one(engine, _request()).tokens
    asyncio.run(engine.close())


# --- tools that the template knows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TorchEngine]]:
    directory = make_model(tmp_path_factory.mktemp("hermes"), max_position_embeddings=1024)
    (directory / "chat_template.jinja").write_text(HERMES_TEMPLATE)
    engine = load(directory)
    yield directory, engine
    asyncio.run(engine.close())


def test_what_an_engine_can_do_is_in_its_info(engine: TorchEngine, hermes: tuple[Path, TorchEngine]) -> None:
    assert engine.info.features == [FEATURE_JSON_SCHEMA, FEATURE_TOOLS_FORCED]
    assert hermes[1].info.features == [FEATURE_JSON_SCHEMA, FEATURE_TOOLS_FORCED, FEATURE_TOOLS]


def test_calls_left_to_a_model_that_knows_none_are_refused(engine: TorchEngine) -> None:
    refusal = _refusal(engine, _request(tools=ToolUse(FUNCTIONS)))
    assert (refusal.code, refusal.param) == ("unsupported_value", "tools")
    call = {"id": "1", "type": "function", "function": {"name": "moor", "arguments": "{}"}}
    for message in ({"role": "tool", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}):
        refusal = _refusal(engine, EngineRequest(messages=[message]))
        assert (refusal.code, refusal.param) == ("unsupported_value", "messages")


def test_the_template_gets_tools_and_arguments_as_objects(hermes: tuple[Path, TorchEngine]) -> None:
    engine = hermes[1]
    call = {"id": "1", "type": "function", "function": {"name": "moor", "arguments": '{"place":"here"}'}}
    spoken = {"role": "assistant", "content": "<tool_call>here</tool_call>"}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    lengths = [asyncio.run(_prompt_tokens(engine, messages=[message])) for message in (spoken, called)]
    assert lengths[0] == lengths[1]
    plain = asyncio.run(_prompt_tokens(engine, messages=[spoken]))
    assert asyncio.run(_prompt_tokens(engine, messages=[spoken], tools=ToolUse(FUNCTIONS))) > plain


async def _prompt_tokens(engine: TorchEngine, **fields: Any) -> int:
    tokens = await engine.admit(99, EngineRequest(**fields))
    engine.drop(99)
    return tokens


def test_a_model_may_speak_or_call_and_what_it_begins_to_call_it_calls(hermes: tuple[Path, TorchEngine]) -> None:
    engine = hermes[1]
    request = _request(tools=ToolUse(FUNCTIONS[1:], parallel=False))
    assert run_one(engine, request).finish is not None
    begun = list(map(int, engine._tokenizer.encode("Well. <tool_call>", add_special_tokens=False)))
    for seed in range(8):
        resumed = msgspec.structs.replace(request, accepted=begun, sampling=Sampling(seed=seed))
        stream = run_one(engine, resumed)
        assert stream.text == '\n{"name": "set_sail", "arguments": {}}\n</tool_call>'
        assert stream.finish == "stop"


# --- bounds -----------------------------------------------------------------------------------------------


def test_only_the_latest_grammars_are_kept(engine: TorchEngine) -> None:
    kept = engine._grammars._kept
    for n in range(grammars.GRAMMARS_MAX + 3):
        run_one(engine, _request(grammar=_schema({"const": n})))
    assert len(kept) == grammars.GRAMMARS_MAX
    again = list(kept)[3]
    run_one(engine, _request(grammar=_schema({"const": 6})))
    assert list(kept)[-1] == again


def test_the_checking_process_ends_with_the_engine() -> None:
    engine = load(SHIPPED)
    run_one(engine, _request(grammar=_schema(PORT)))
    child = engine._grammars._checker._child
    assert child is not None
    asyncio.run(engine.close())
    assert child.returncode is not None


class _Exhausted:
    """A matcher at its limits."""

    def consume_tokens(self, tokens: list[int]) -> bool:
        return True

    def compute_bitmask(self) -> bytes:
        return bytes(8)

    def is_error(self) -> bool:
        return True


def test_a_grammar_that_reaches_the_librarys_limits_lets_the_text_end() -> None:
    guide = Guide(_Exhausted, [1], 64)  # type: ignore[arg-type]
    assert guide.allowed([5, 6, 7], 1).nonzero().tolist() == [[1]]
    assert guide.broken
    assert not guide.may_go_on
