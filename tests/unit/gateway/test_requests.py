from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.errors import RequestRefused
from holdfast.core.sampling import derive
from holdfast.gateway.app import HttpSettings
from holdfast.gateway.asking import Asked, ask_chat, ask_completion
from tests.unit.gateway.client import chat, completion

SETTINGS = HttpSettings(n_max=4, choices_max=6, stop_chars_max=8)
USER = {"role": "user", "content": "x"}


def asked_chat(**fields: Any) -> Asked:
    return ask_chat(json.dumps(chat(**fields)).encode(), SETTINGS)


def asked_completion(**fields: Any) -> Asked:
    return ask_completion(json.dumps(completion(**fields)).encode(), SETTINGS)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{**USER, "x": 1}]}, "messages[0].x", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"model": None}, "model", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 5}, "n", "integer_above_max_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": ""}, "stop", "invalid_length"),
        ({"stop": "123456789"}, "stop", "invalid_length"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"prompt": "x"}, "prompt", "unknown_parameter"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        asked_chat(**fields)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        {"response_format": {"type": "grammar"}},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "x"}},
        {"logit_bias": {"50256": -100}},
        {"functions": [{"name": "f"}]},
        {"function_call": "auto"},
        {"store": True},
        {"prediction": {"type": "content", "content": "x"}},
        {"web_search_options": {}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"service_tier": "flex"},
    ],
)
def test_what_openai_can_and_holdfast_cannot_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        asked_chat(**fields)
    assert refused.value.code == "unsupported_value"
    assert str(refused.value.param).startswith(next(iter(fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None},
        {"response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "store": False},
        {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x"},
        {"n": None, "stop": None, "temperature": None, "seed": None, "stream": None, "max_tokens": None},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}]},
        {"stop": []},
    ],
)
def test_a_field_that_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert len(asked_chat(**fields).choices) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1], ["a"]]}, "prompt[1][0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [{}]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": {}}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": True, "prompt": [1]}, "echo"),
        ({"prompt": ["a"] * 7}, "prompt"),
        ({"prompt": ["a"] * 2, "n": 4}, "n"),
        ({"messages": []}, "messages"),
    ],
)
def test_an_invalid_field_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        asked_completion(**fields)
    assert refused.value.param == param


def test_prompts_times_n_become_choices_in_openais_order() -> None:
    asked = asked_completion(prompt=["a", "b"], n=2)
    assert [choice.prompt for choice in asked.choices] == ["a", "a", "b", "b"]
    assert [choice.sampling.seed for choice in asked.choices] == [7, derive(7, 1), 7, derive(7, 1)]
    assert asked.prompts == 2


@pytest.mark.parametrize(("prompt", "expected"), [([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])])
def test_prompts_may_be_token_ids(prompt: list[Any], expected: list[list[int]]) -> None:
    assert [choice.prompt_tokens for choice in asked_completion(prompt=prompt).choices] == expected


def test_every_field_reaches_the_engine() -> None:
    fields = {"max_tokens": 9, "min_tokens": 2, "ignore_eos": True, "logprobs": True, "top_logprobs": 3}
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "presence_penalty": 1.0, "frequency_penalty": -1.0}
    asked = asked_chat(**fields, **sampling, stop="x", stream=True, stream_options={"include_usage": True})
    request = asked.choices[0]
    assert (request.max_tokens, request.min_tokens, request.ignore_eos, request.logprobs) == (9, 2, True, 3)
    assert {name: getattr(request.sampling, name) for name in sampling} == sampling
    assert (asked.stops, asked.stream, asked.include_usage, asked.logprobs) == (["x"], True, True, 3)


def test_defaults_are_openais() -> None:
    assert asked_chat().choices[0].max_tokens == 0
    assert asked_completion().choices[0].max_tokens == 16
    request = asked_chat(top_k=-1).choices[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 1.0, 0)
    assert request.logprobs == -1


def test_messages_reach_the_engine_as_they_were_sent() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "me"},
    ]
    assert asked_chat(messages=messages).choices[0].messages == messages


def test_a_seed_is_drawn_anew_for_each_request_that_gives_none() -> None:
    seeds = {asked_chat(seed=None).seed for _ in range(50)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"model": "a"} x',
        b"[" * 100_000,
        b'{"metadata": ' + b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_refused_as_such(body: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        ask_chat(body, SETTINGS)
    assert refused.value.code in {"invalid_json", "invalid_type", "missing_required_parameter"}


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"x"', b"true"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        ask_chat(body, SETTINGS)
    assert (refused.value.param, refused.value.code) == (None, "invalid_type")
