"""Whatever a client sends, the answer is never a 5xx, and it is in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.gateway.app import create_app
from holdfast.gateway.openai import ChatRequest, CompletionRequest
from tests.unit.gateway.client import CHAT, COMPLETIONS, Answer, ask, chat, completion
from tests.unit.gateway.fakes import FakeBackend

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**301)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "tiny", "none", "\ud800", "\x00"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def fields_of(request: type[ChatRequest] | type[CompletionRequest]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a request's own fields, with any values; and seldom one that it has not."""
    return st.dictionaries(st.sampled_from([*request.__struct_fields__, "other"]), values, max_size=4)


app = create_app(FakeBackend())


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def sane(answer: Answer) -> bool:
    """Whether it is an answer to the request, or says what is wrong with it."""
    if answer.status == 200:
        return True
    return 400 <= answer.status < 500 and set(answer.error) == {"message", "type", "param", "code"}


@settings(max_examples=1000, deadline=None)
@given(fields=fields_of(ChatRequest), nested=st.none() | values)
def test_no_chat_with_odd_fields_breaks_the_server(runner: asyncio.Runner, fields: Any, nested: Any) -> None:
    body = chat(**{"max_tokens": 3, **fields})
    if nested is not None:
        body["messages"] = [{"role": "user", "content": nested}]
    assert sane(runner.run(ask(app, CHAT, encoded(body))))


@settings(max_examples=600, deadline=None)
@given(fields=fields_of(CompletionRequest))
def test_no_completion_with_odd_fields_breaks_the_server(runner: asyncio.Runner, fields: Any) -> None:
    body = completion(**{"max_tokens": 3, **fields})
    assert sane(runner.run(ask(app, COMPLETIONS, encoded(body))))


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from([CHAT, COMPLETIONS]), body=st.binary(max_size=64) | values.map(lambda v: encoded(v)))
def test_nothing_else_does_either(runner: asyncio.Runner, path: str, body: bytes) -> None:
    assert sane(runner.run(ask(app, path, body)))


def encoded(body: Any) -> bytes:
    """As JSON, and as what Python takes for JSON: NaN, infinities and halves of surrogate pairs."""
    return json.dumps(body).encode()
