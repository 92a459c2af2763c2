"""The official client, unmodified, against the app on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from holdfast.core.errors import DeadlineExceeded, NoReplica, Overloaded, RequestRefused, StreamLost
from holdfast.core.sampling import derive
from holdfast.gateway.app import HttpSettings, create_app
from tests.unit.gateway.fakes import NATURAL_END, FakeBackend, text_of
from tests.unit.gateway.server import serving

KEY = "key-1"
MESSAGES: list[Any] = [{"role": "user", "content": "hold fast"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 7}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hold fast", "seed": 7}


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def url(backend: FakeBackend) -> AsyncIterator[str]:
    settings = HttpSettings.model_validate({"api_keys": [KEY], "body_bytes_max": 100_000})
    async with serving(create_app(backend, settings)) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


async def test_a_chat_is_answered(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, max_tokens=5)
    assert answer.choices[0].message.content == text_of(7, 5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)
    assert answer._request_id is not None


async def test_a_chat_is_streamed_with_its_usage(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(**CHAT, max_tokens=5, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text_of(7, 5)
    assert [chunk.usage is None for chunk in chunks] == [True] * 7 + [False]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7


async def test_the_clients_own_streaming_helper_puts_the_answer_together(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(**CHAT, logprobs=True) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == text_of(7, NATURAL_END)
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or ()) == NATURAL_END


async def test_n_gives_as_many_choices(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, n=2, max_tokens=3)
    assert [choice.message.content for choice in answer.choices] == [text_of(7, 3), text_of(derive(7, 1), 3)]
    stream = await client.chat.completions.create(**CHAT, n=2, max_tokens=3, stream=True)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


async def test_logprobs_come_with_their_alternatives(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**CHAT, max_tokens=2, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == text_of(7, 2)
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2, 2]
    completion = await client.completions.create(**COMPLETION, max_tokens=2, logprobs=1)
    older = completion.choices[0].logprobs
    assert older is not None
    assert older.token_logprobs == [-0.5, -0.5]


async def test_stop_ends_the_text(client: openai.AsyncOpenAI) -> None:
    whole = text_of(7, 24)
    answer = await client.chat.completions.create(**CHAT, stop=[whole[9:13], "never"])
    assert answer.choices[0].message.content == whole[: whole.index(whole[9:13])]
    assert answer.choices[0].finish_reason == "stop"


async def test_completions_are_answered_and_streamed(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(**{**COMPLETION, "prompt": ["a", "b"]}, n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    stream = await client.completions.create(**COMPLETION, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == text_of(7, 16)


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "default"


async def test_the_blocking_client_gets_the_same(url: str) -> None:
    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            answer = client.chat.completions.create(**CHAT, max_tokens=5)
            stream = client.chat.completions.create(**CHAT, max_tokens=5, stream=True)
            return answer.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    assert await asyncio.to_thread(talk) == (text_of(7, 5), text_of(7, 5))


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, openai.BadRequestError, "unsupported_value"),
        ({"extra_body": {"zz": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, openai.APIStatusError, "request_too_large"),
    ],
)
async def test_the_clients_mistakes_raise_its_error_classes(
    client: openai.AsyncOpenAI, change: dict[str, Any], kind: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(**{**CHAT, **change})
    assert raised.value.code == code
    assert raised.value.request_id is not None


async def test_a_wrong_key_raises_an_authentication_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").chat.completions.create(**CHAT)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full", 1), 503, "overloaded"),
        (NoReplica("none", 1), 503, "no_replica"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
        (RequestRefused("too long", code="context_length_exceeded", param="messages"), 400, "context_length_exceeded"),
    ],
)
async def test_the_servers_errors_keep_status_and_code(
    client: openai.AsyncOpenAI, backend: FakeBackend, error: Exception, status: int, code: str
) -> None:
    backend.refuse_first = error
    with pytest.raises(openai.APIStatusError) as raised:
        await client.chat.completions.create(**CHAT, stream=True)
    assert (raised.value.status_code, raised.value.code) == (status, code)


async def test_a_stream_that_breaks_raises_after_what_was_delivered(
    client: openai.AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.broken = StreamLost("lost thrice")
    text = ""

    async def read() -> None:
        nonlocal text
        async for chunk in await client.chat.completions.create(**CHAT, stream=True):
            text += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError, match="lost thrice"):
        await read()
    assert text == text_of(7, 4)
