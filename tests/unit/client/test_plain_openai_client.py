"""What a plain OpenAI client sees when its gateway dies, as docs/client.md tells it; and ours, in the same place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from holdfast.gateway.client import Holdfast
from tests.unit.client.fleet import Sent, answer
from tests.unit.client.server import Act, Servers, serving

MESSAGES: list[Any] = [{"role": "user", "content": "hold fast"}]
WHOLE = "aa\u2028éaa"
CONNECTION_ERRORS = (openai.APIConnectionError, httpx.HTTPError)
"""The first from its version 3 on; versions 1 and 2 let httpx's own errors through while streaming."""


@pytest.fixture
def servers() -> Iterator[Servers]:
    with serving(Servers(answer())) as running:
        yield running


@pytest.fixture
def client(servers: Servers) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{servers.urls[0]}/v1", api_key="any") as found:
        yield found


def read(client: openai.OpenAI, text: list[str], ends: list[str | None]) -> None:
    for chunk in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        for choice in chunk.choices:
            text.append(choice.delta.content or "")
            ends.append(choice.finish_reason)


def test_a_connection_lost_within_the_stream_raises_and_is_not_retried(servers: Servers, client: openai.OpenAI) -> None:
    servers.plan = [Act("reset", 4)]
    text: list[str] = []
    with pytest.raises(CONNECTION_ERRORS):
        read(client, text, [])
    assert "".join(text) == WHOLE[:4]
    assert len(servers.requests) == 1


def test_a_stream_that_is_ended_politely_looks_complete_but_for_its_finish_reason(
    servers: Servers, client: openai.OpenAI
) -> None:
    servers.plan = [Act("polite_end", 4)]
    text: list[str] = []
    ends: list[str | None] = []
    read(client, text, ends)
    assert "".join(text) == WHOLE[:4]
    assert set(ends) == {None}


def test_before_the_first_token_it_retries_at_the_same_gateway(servers: Servers, client: openai.OpenAI) -> None:
    servers.plan = [Act("status", status=503, headers="retry-after-ms: 1\r\n")]
    text: list[str] = []
    read(client, text, [])
    assert "".join(text) == WHOLE
    assert [request.gateway for request in servers.requests] == [0, 0]


@pytest.mark.parametrize("code", ["gateway_stopping", "no_replica", "stream_lost"])
def test_an_error_event_within_the_stream_raises_with_its_code(
    servers: Servers, client: openai.OpenAI, code: str
) -> None:
    error = {"message": "It ended.", "type": "server_error", "param": None, "code": code}
    servers.sent = [*answer()[:4], Sent("chatcmpl-1:3", {"error": error})]
    text: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        read(client, text, [])
    assert raised.value.code == code
    assert "".join(text) == WHOLE[:4]
    assert len(servers.requests) == 1


def test_our_client_goes_on_where_the_plain_one_broke(servers: Servers) -> None:
    servers.plan = [Act("reset", 4), Act("polite_end", 1)]
    with Holdfast(servers.urls, sleep=lambda _: None) as client:
        assert client.chat_stream(model="m", messages=MESSAGES).text() == WHOLE
    assert len(servers.requests) == 3
