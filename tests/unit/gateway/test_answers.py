from __future__ import annotations

import json
import re
from typing import Any

import pytest

from holdfast.core.errors import (
    DeadlineExceeded,
    NoReplica,
    Overloaded,
    RequestRefused,
    StreamLost,
)
from holdfast.core.sampling import derive
from holdfast.gateway.app import App, HttpSettings, create_app
from tests.unit.gateway.client import CHAT, COMPLETIONS, Event, ask, chat, completion, converse
from tests.unit.gateway.fakes import NATURAL_END, FakeBackend, text_of


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def app(backend: FakeBackend) -> App:
    return create_app(backend, HttpSettings(body_bytes_max=10_000))


async def test_a_chat_is_answered_whole(app: App) -> None:
    answer = await ask(app, CHAT, chat())
    assert answer.status == 200
    assert answer.json["object"] == "chat.completion"
    assert answer.json["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text_of(7, NATURAL_END), "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer.json["usage"] == {"prompt_tokens": 2, "completion_tokens": 24, "total_tokens": 26}


async def test_a_streamed_chat_brings_the_same_text_one_event_per_token(app: App) -> None:
    answer = await ask(app, CHAT, chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    role, *tokens, finish = answer.chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(tokens) == NATURAL_END
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in tokens) == text_of(7, NATURAL_END)
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert answer.events[-1].data == "[DONE]"


async def test_events_that_wait_together_are_sent_together(app: App, backend: FakeBackend) -> None:
    backend.chunk = 8
    answer = await ask(app, CHAT, chat(stream=True))
    assert len(answer.sends) == NATURAL_END / 8


async def test_every_choice_of_n_has_its_own_seed_and_text(app: App, backend: FakeBackend) -> None:
    answer = await ask(app, CHAT, chat(n=3, max_tokens=4))
    seeds = [derive(7, n) for n in range(3)]
    assert [choice["message"]["content"] for choice in answer.json["choices"]] == [text_of(s, 4) for s in seeds]
    assert answer.json["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


async def test_streamed_choices_are_told_apart_by_their_index(app: App) -> None:
    answer = await ask(app, CHAT, chat(n=2, max_tokens=3, stream=True))
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in answer.chunks if chunk["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in mine)
        assert text == text_of(derive(7, index), 3)
        assert mine[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_text_before_it(app: App, stream: bool) -> None:
    whole = text_of(7, NATURAL_END)
    stop = whole[9:13]
    answer = await ask(app, CHAT, chat(stop=stop, stream=stream))
    if stream:
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answer.chunks)
    else:
        text = answer.json["choices"][0]["message"]["content"]
    assert text == whole[: whole.index(stop)]


async def test_prompts_times_n_are_billed_each_prompt_once(app: App) -> None:
    answer = await ask(app, COMPLETIONS, completion(prompt=["a b c", "d"], n=2, max_tokens=2))
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2, 3]
    assert answer.json["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echoed_prompt_stands_before_the_text(app: App, stream: bool) -> None:
    answer = await ask(app, COMPLETIONS, completion(prompt="Once", echo=True, max_tokens=2, stream=stream))
    chunks = answer.chunks if stream else [answer.json]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Once" + text_of(7, 2)


async def test_a_completions_logprobs_have_its_older_shape(app: App) -> None:
    answer = await ask(app, COMPLETIONS, completion(logprobs=2, max_tokens=2))
    logprobs = answer.json["choices"][0]["logprobs"]
    assert [len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [2] * 4
    assert logprobs["tokens"] == [text_of(7, 1), text_of(7, 2)[len(text_of(7, 1)) :]]


async def test_a_response_id_carries_the_seed_and_is_never_the_same(app: App) -> None:
    ids = [(await ask(app, CHAT, chat(seed=-2, max_tokens=1))).json["id"] for _ in range(20)]
    assert len(set(ids)) == 20
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]{16}fffffffffffffffe", found) for found in ids)


@pytest.mark.parametrize("given", ["abc-123", "~" * 128])
async def test_a_sane_request_id_comes_back(app: App, given: str) -> None:
    for path, body in ((CHAT, chat(max_tokens=1)), (CHAT, {}), ("/nowhere", {})):
        answer = await ask(app, path, body, {"x-request-id": given})
        assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\x7f"])
async def test_another_request_id_is_made_for_one_that_is_not_sane(app: App, given: str) -> None:
    answer = await ask(app, CHAT, chat(max_tokens=1), {"x-request-id": given})
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (RequestRefused("too long", code="context_length_exceeded", param="messages"), 400, None, None),
        (RequestRefused("Another gateway went on with this stream.", code="taken_over"), 409, "taken_over", None),
        (Overloaded("full", 0.2), 503, "overloaded", "1"),
        (NoReplica("none", 1.5), 503, "no_replica", "2"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded", None),
        (StreamLost("lost"), 503, "stream_lost", "1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_is_an_answer_with_its_status(
    app: App, backend: FakeBackend, error: Exception, status: int, code: str | None, retry_after: str, stream: bool
) -> None:
    backend.refuse_first = error
    answer = await ask(app, CHAT, chat(stream=stream))
    assert (answer.status, answer.headers.get("retry-after")) == (status, retry_after)
    assert answer.error["code"] == (code or "context_length_exceeded")
    assert answer.error["message"] == str(error)
    assert backend.open_sessions == 0


async def test_an_overload_at_the_door_is_told_likewise(app: App, backend: FakeBackend) -> None:
    backend.refuse_open = Overloaded("full", 3)
    answer = await ask(app, CHAT, chat())
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")


async def test_an_error_after_the_first_token_is_an_event_and_no_done_follows(app: App, backend: FakeBackend) -> None:
    backend.broken = StreamLost("lost thrice")
    answer = await ask(app, CHAT, chat(stream=True))
    assert answer.status == 200
    assert answer.chunks[-1]["error"]["message"] == "lost thrice"
    assert answer.events[-1].id.endswith(":4")
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("stream", [False, True])
async def test_what_nobody_foresaw_is_a_plain_500_with_the_traceback_in_the_log_only(
    app: App, backend: FakeBackend, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backend.refuse_first = ZeroDivisionError("secret")
    answer = await ask(app, CHAT, chat(stream=stream), {"x-request-id": "find-me"})
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "find-me" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


async def test_an_unknown_model_is_404(app: App) -> None:
    answer = await ask(app, CHAT, chat(model="gpt-5"))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/v1/nothing", "POST", 404, "unknown_url"),
        ("/v1/chat/completions/", "POST", 404, "unknown_url"),
        (CHAT, "GET", 405, "method_not_allowed"),
        (COMPLETIONS, "DELETE", 405, "method_not_allowed"),
        ("/v1/models", "POST", 405, "method_not_allowed"),
        ("/health", "POST", 405, "method_not_allowed"),
        ("/docs/static/../../x", "GET", 404, "unknown_url"),
    ],
)
async def test_wrong_routes_and_methods_are_told_in_the_same_shape(
    app: App, path: str, method: str, status: int, code: str
) -> None:
    answer = await ask(app, path, method=method)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_body_over_the_limit_is_413_by_its_length_alone(app: App) -> None:
    answer = await ask(app, CHAT, b"{}", {"content-length": "10001"})
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_body_over_the_limit_is_413_though_its_length_is_not_told(app: App) -> None:
    answer = await converse(app, CHAT, [b" " * 6_000] * 2)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_body_may_come_in_parts(app: App) -> None:
    answer = await converse(app, CHAT, [b'{"model":"tiny",', b'"messages":[{"role":"user","content":"x"}]}'])
    assert answer.status == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_body_that_is_said_to_be_no_json_is_415(app: App, content_type: str, status: int) -> None:
    answer = await ask(app, CHAT, chat(max_tokens=1), {"content-type": content_type})
    assert answer.status == status


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_is_taken_up_after_any_of_its_events(app: App, path: str, n: int) -> None:
    form = chat if path == CHAT else completion
    body = form(max_tokens=9, stream=True, n=n, stop=["zzz"])
    whole = (await ask(app, path, body)).events
    assert len(whole) > 9
    for at, last in enumerate(whole[:-1]):
        rest = (await ask(app, path, body, {"last-event-id": last.id})).events
        assert rest[-1] == whole[-1]
        before, after = texts(whole[: at + 1], n), texts(rest, n)
        assert [one + other for one, other in zip(before, after, strict=True)] == texts(whole, n)
        assert reasons(rest) == reasons(whole)
        assert {json.loads(event.data)["id"] for event in rest[:-1]} == {json.loads(whole[0].data)["id"]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(logprobs=True, top_logprobs=2)),
        (COMPLETIONS, completion(logprobs=2)),
        (COMPLETIONS, completion(logprobs=1, echo=True)),
        (COMPLETIONS, completion(echo=True)),
    ],
)
async def test_what_comes_after_an_event_is_the_same_when_resumed(app: App, path: str, body: dict[str, Any]) -> None:
    body = {**body, "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}}
    whole = (await ask(app, path, body)).events
    first = 1 if path == CHAT or body.get("echo") else 0
    for at in range(first, len(whole) - 3):
        rest = (await ask(app, path, body, {"last-event-id": whole[at].id})).events
        assert [timeless(event) for event in rest] == [timeless(event) for event in whole[at + 1 :]]


def timeless(event: Event) -> tuple[str | None, str]:
    """An event without the time at which the answer began."""
    return event.id, re.sub(r'"created":\d+,', "", event.data)


def choices_in(events: list[Event]) -> list[dict[str, Any]]:
    """All choices that events bring, in order."""
    return [choice for event in events if event.data != "[DONE]" for choice in json.loads(event.data)["choices"]]


def texts(events: list[Event], n: int) -> list[str]:
    """Each choice's text."""
    found = choices_in(events)
    return [
        "".join(one.get("text", one.get("delta", {}).get("content", "")) for one in found if one["index"] == index)
        for index in range(n)
    ]


def reasons(events: list[Event]) -> dict[int, str]:
    """Each choice's finish reason."""
    return {one["index"]: one["finish_reason"] for one in choices_in(events) if one["finish_reason"]}


@pytest.mark.parametrize(
    ("header", "more", "code"),
    [
        ("chatcmpl-x:3", {"stream": True}, "invalid_value"),
        ("cmpl-00000000000000010000000000000002:3", {"stream": True}, "invalid_value"),
        ("chatcmpl-00000000000000010000000000000002:3,4", {"stream": True}, "invalid_value"),
        ("chatcmpl-00000000000000010000000000000002:3", {}, "cannot_resume"),
    ],
)
async def test_what_cannot_be_taken_up_is_refused_rather_than_repeating_tokens(
    app: App, header: str, more: dict[str, Any], code: str
) -> None:
    answer = await ask(app, CHAT, chat(**more), {"last-event-id": header})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "Last-Event-ID", code)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic key-1", 401), ("Bearer key-1", 200), ("bearer key-2", 200)],
)
@pytest.mark.parametrize(("path", "method"), [(CHAT, "POST"), ("/v1/models", "GET")])
async def test_with_api_keys_set_one_is_needed(
    backend: FakeBackend, authorization: str | None, status: int, path: str, method: str
) -> None:
    settings = HttpSettings.model_validate({"api_keys": ["key-1", "key-2"]})
    app = create_app(backend, settings)
    headers = {} if authorization is None else {"authorization": authorization}
    answer = await ask(app, path, chat() if method == "POST" else None, headers, method)
    assert answer.status == status
    if status == 401:
        assert (answer.error["code"], answer.headers["www-authenticate"]) == ("invalid_api_key", "Bearer")


async def test_health_and_metrics_need_no_key(backend: FakeBackend) -> None:
    app = create_app(backend, HttpSettings.model_validate({"api_keys": ["key-1"]}))
    for path in ("/health", "/live", "/metrics", "/-/healthz", "/docs", "/openapi.json"):
        assert (await ask(app, path, method="GET")).status == 200


def field(answer: Any, name: str) -> list[Any]:
    return [entry[name] for entry in answer.json["data"]]


async def test_models_are_listed_and_found(app: App) -> None:
    assert field(await ask(app, "/v1/models", method="GET"), "id") == ["tiny"]
    assert (await ask(app, "/v1/models/tiny", method="GET")).json["max_model_len"] == 2048
    assert (await ask(app, "/v1/models/other", method="GET")).error["code"] == "model_not_found"


async def test_health_follows_the_backend(app: App, backend: FakeBackend) -> None:
    assert (await ask(app, "/health", method="GET")).status == 200
    assert (await ask(app, "/-/healthz", method="GET")).body == b"success"
    backend.unhealthy = ["tiny has no replica"]
    unhealthy = await ask(app, "/health", method="GET")
    assert (unhealthy.status, unhealthy.json["reasons"]) == (503, ["tiny has no replica"])
    assert (await ask(app, "/-/healthz", method="GET")).status == 503
    assert (await ask(app, "/live", method="GET")).status == 200


async def test_documentation_is_served_from_here_alone(app: App) -> None:
    page = await ask(app, "/docs", method="GET")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert links
    for link in links:
        assert link.startswith("/")
        assert (await ask(app, link, method="GET")).status == 200


async def test_metrics_count_requests_by_outcome_and_tokens(app: App, backend: FakeBackend) -> None:
    await ask(app, CHAT, chat(max_tokens=5, stream=True))
    await ask(app, CHAT, chat(n=0))
    await ask(app, CHAT, chat(model="no-such-model"))
    backend.refuse_open = Overloaded("full", 1)
    await ask(app, CHAT, chat())
    text = (await ask(app, "/metrics", method="GET")).body.decode()
    for line in (
        'holdfast_requests_total{model="tiny",outcome="ok",resumed="false",route="/v1/chat/completions"} 1.0',
        'holdfast_requests_total{model="",outcome="refused",resumed="false",route="/v1/chat/completions"} 2.0',
        'holdfast_requests_total{model="",outcome="overloaded",resumed="false",route="/v1/chat/completions"} 1.0',
        'holdfast_prompt_tokens_total{model="tiny"} 2.0',
        'holdfast_generation_tokens_total{model="tiny"} 5.0',
        'holdfast_time_to_first_token_seconds_count{model="tiny"} 1.0',
        'holdfast_inter_token_latency_seconds_count{model="tiny"} 1.0',
        'holdfast_request_duration_seconds_count{model="tiny"} 1.0',
        "holdfast_inflight_requests 0.0",
        'holdfast_gateway_info{gateway_id="gateway"} 1.0',
    ):
        assert line in text.splitlines()
    assert "no-such-model" not in text


async def test_metrics_tell_what_was_resumed_apart_and_count_its_tokens_once(app: App) -> None:
    body = chat(max_tokens=9, stream=True)
    whole = (await ask(app, CHAT, body)).events
    once = counted((await ask(app, "/metrics", method="GET")).body.decode())
    assert (once["prompt"], once["generation"], once["first"]) == (2.0, 9.0, 1.0)
    at = next(at for at, event in enumerate(whole) if (event.id or "").endswith(":4"))
    await ask(app, CHAT, body, {"last-event-id": whole[at].id or ""})
    text = (await ask(app, "/metrics", method="GET")).body.decode()
    for resumed in ("true", "false"):
        labels = f'model="tiny",outcome="ok",resumed="{resumed}",route="/v1/chat/completions"'
        assert f"holdfast_requests_total{{{labels}}} 1.0" in text.splitlines()
    assert counted(text) == {**once, "generation": 9.0 + 5.0}, "five tokens are new to the client"


def counted(text: str) -> dict[str, float]:
    """What the metrics say of tokens."""
    names = {
        "prompt": "holdfast_prompt_tokens_total",
        "generation": "holdfast_generation_tokens_total",
        "first": "holdfast_time_to_first_token_seconds_count",
    }
    return {key: float(re.findall(rf'^{name}\{{model="tiny"\}} (\S+)', text, re.M)[0]) for key, name in names.items()}
