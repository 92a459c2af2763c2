"""The machine's parts: pauses, the budget, the gateways' order, errors' bodies, texts, and what is kept secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import InvalidConfig, Misuse
from holdfast.gateway.client import AsyncHoldfast, Event, Holdfast, Options, Refused, RetryPolicy, ServerFault, text_of
from holdfast.gateway.client.bodies import PROBLEM_BYTES_MAX, Done, ProblemBody, WholeBody, error_from, retry_after_s
from holdfast.gateway.client.budget import RetryBudget
from holdfast.gateway.client.gateways import Gateways
from holdfast.gateway.client.ledger import Ledger

KEY = "sk-very-secret"
DATES = {"date": "Wed, 21 Oct 2015 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2015 07:28:07 GMT"}


@given(st.integers(1, 100), st.floats(0, 1))
def test_a_pause_is_between_half_of_it_and_the_whole(failures: int, draw: float) -> None:
    whole = min(25.6, 0.1 * 4.0 ** (failures - 1))
    assert whole / 2 <= RetryPolicy().pause_s(failures, draw) <= whole


@pytest.mark.parametrize(
    "wrong",
    [{"deadline_s": 0}, {"jitter": 2}, {"backoff_factor": 0.5}, {"try_timeout_s": -1}, {"budget_burst": float("nan")}],
)
def test_a_policy_that_can_not_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(wrong))):
        RetryPolicy(**wrong)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=100), st.floats(0, 20), st.floats(0, 2))
def test_a_budget_gives_no_more_than_was_put_in(steps: list[tuple[bool, float]], burst: float, per_s: float) -> None:
    budget = RetryBudget(ratio=0.1, per_s=per_s, burst=burst, now=0.0)
    now, calls, taken = 0.0, 0, 0
    for call, wait_s in steps:
        now += wait_s
        if call:
            calls += 1
            budget.deposit()
        else:
            taken += budget.withdraw(now)
    assert taken <= burst + 0.1 * calls + per_s * now + 1e-6


def test_a_failed_gateway_is_tried_last_until_its_penalty_is_over() -> None:
    gateways = Gateways(["http://a", "http://b", "http://c"], penalty_s=5.0, sticky=False)
    assert gateways.first(0.0, now=0.0) == 0
    gateways.failed(0, now=0.0)
    assert gateways.first(0.0, now=1.0) == 1
    gateways.failed(1, now=1.0)
    gateways.failed(2, now=2.0)
    assert gateways.first(0.9, now=3.0) == 0
    assert gateways.first(0.9, now=7.0) == 2
    gateways.works(1)
    assert gateways.next(2, now=3.0) == 1


def test_a_sticky_client_stays_where_it_works() -> None:
    gateways = Gateways(["http://a", "http://b"], penalty_s=5.0, sticky=True)
    assert [gateways.first(draw, now=0.0) for draw in (0.6, 0.0, 0.9)] == [1, 1, 1]
    gateways.failed(1, now=0.0)
    assert gateways.first(0.6, now=1.0) == 0
    gateways.works(0)
    assert gateways.first(0.6, now=100.0) == 0


@pytest.mark.parametrize(
    "url", ["", "a:8000", "ftp://a", "http://", "http://a?x=1", "http://u:geheim@a", "http://a:99999", "http://[a"]
)
def test_a_url_that_is_not_usable_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        Holdfast(url)
    assert "geheim" not in str(raised.value)


def test_a_base_url_of_openai_clients_does_as_well() -> None:
    assert Gateways(["http://a:1/v1/", "https://b/x/"], penalty_s=0, sticky=False).urls == ("http://a:1", "https://b/x")


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        (DATES, 7.0),
        ({"retry-after": DATES["retry-after"]}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "9" * 400}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], wanted: float | None) -> None:
    assert retry_after_s(headers) == wanted


def test_an_errors_body_is_read_within_bounds_and_whatever_it_is() -> None:
    body = ProblemBody(400, {})
    assert body.feed(b'{"error": {"message": "no", "code": "c", "param": "p"}}').end is None
    error = body.ended().end
    assert isinstance(error, Refused)
    assert (error.message, error.code, error.param, error.status) == ("no", "c", "p", 400)
    endless = ProblemBody(500, {}).feed(b"<" * (PROBLEM_BYTES_MAX + 1)).end
    assert isinstance(endless, ServerFault)
    assert endless.message == "HTTP status 500"
    assert isinstance(error_from({"error": {"type": "invalid_request_error"}}, None), Refused)
    assert error_from({"error": "odd"}, None).message == "the server broke off the stream"


def test_a_whole_answer_comes_in_pieces() -> None:
    body = WholeBody()
    body.feed(b'{"choices": [{"index": 0, "message": {"content": "a')
    body.feed("é".encode()[:1])
    body.feed("é".encode()[1:] + b'"}}]}')
    found = body.ended()
    assert found.end == Done()
    assert found.events[0].text == "aé"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"choices": [{"index": 0, "delta": {"content": "a"}}]}, "a"),
        ({"choices": [{"index": 0, "text": "a"}]}, "a"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, ""),
        ({"choices": [{"index": 1, "delta": {"content": "b"}}]}, ""),
        ({"choices": [{"index": 0, "message": {"content": None}}]}, ""),
        ({"choices": [3]}, ""),
        ({"choices": None}, ""),
        ({}, ""),
    ],
)
def test_the_first_choices_text_is_found_in_any_shape(data: dict[str, Any], wanted: str) -> None:
    assert text_of(data) == wanted


def text_event(event_id: str, text: str) -> Event:
    return Event(event_id, {"id": "cmpl-1", "choices": [{"index": 0, "text": text, "finish_reason": None}]})


def test_an_echoed_prompt_that_a_resumed_stream_repeats_is_dropped_and_a_token_like_it_is_not() -> None:
    ledger = Ledger("")
    assert ledger.take(text_event("cmpl-1:0", "a"))
    ledger.resuming()
    assert [ledger.take(text_event(f"cmpl-1:{count}", "a")) for count in (0, 1, 2)] == [False, True, True]
    assert ledger.last_id == "cmpl-1:2"


def test_within_one_try_nothing_is_dropped() -> None:
    ledger = Ledger("")
    assert all(ledger.take(text_event("always-the-same", "a")) for _ in range(3))


@pytest.mark.parametrize("kind", [Holdfast, AsyncHoldfast])
def test_the_key_is_in_nothing_that_is_shown(kind: Callable[..., Any]) -> None:
    client = kind("http://a:1", api_key=KEY)
    stream = client.chat_stream(model="m", messages=[])
    shown = repr(client) + repr(vars(client)) + repr(stream) + repr(stream._machine.call)
    assert KEY not in shown
    with pytest.raises(InvalidConfig) as raised:
        kind("http://a:1", api_key=KEY + "\n")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "body", "options"),
    [
        ("v1/x", {}, Options()),
        ("/v1/x", {"stream": False}, Options()),
        ("/v1/x", {"x": object()}, Options()),
        ("/v1/x", {}, Options(request_id="a b")),
        ("/v1/x", {}, Options(deadline_s=0)),
        ("/v1/x", {}, Options(last_event_id="a\nb")),
        ("/v1/x", {}, Options(headers={"Authorization": "Bearer mine"})),
        ("/v1/x", {}, Options(headers={"x-holdfast-parent": "a\r\nb: c"})),
    ],
)
def test_misuse_is_told_before_anything_is_sent(path: str, body: dict[str, Any], options: Options) -> None:
    with pytest.raises(Misuse):
        Holdfast("http://a:1").stream(path, body, options)
