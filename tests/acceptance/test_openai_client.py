"""The official OpenAI client, unmodified, against the shipped model on torch."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.acceptance.conftest import Cluster

MODEL = "holdfast-tiny"


@pytest.fixture(scope="module")
def client(torch_cluster: Cluster) -> Iterator[OpenAI]:
    """A client of the torch cluster's gateway."""
    with OpenAI(base_url=f"{torch_cluster.url}/v1", api_key="unused", max_retries=0, timeout=60) as one:
        yield one


def ask(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def test_a_chat_answers_in_english_with_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Tell me a story about a dog."), max_tokens=60, temperature=0.7, seed=1
    )
    text = answer.choices[0].message.content or ""
    words = [word.strip('.,!?"').lower() for word in text.split()]
    common = {"the", "a", "and", "was", "to", "it", "of", "in", "he", "she", "had", "they", "is", "said"}
    assert len(common.intersection(words)) >= 3, text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 60 or answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == MODEL


def test_a_streamed_chat_is_the_same_text_as_one_that_is_not(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=ask("What is a lease?"), max_tokens=40, temperature=0.9, seed=11
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ask("What is a lease?"),
        max_tokens=40,
        temperature=0.9,
        seed=11,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage


def test_two_choices_differ_and_are_counted_together(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Tell me a story."), n=2, max_tokens=40, temperature=1.5, seed=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 80


def test_logprobs_come_with_their_alternatives_in_order(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Hello!"), max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    assert answer.usage is not None
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        ranked = [one.logprob for one in entry.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
        # At temperature 0 the most likely token is the one that was chosen.
        assert entry.top_logprobs[0].token == entry.token
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert joined.decode() == answer.choices[0].message.content


def test_a_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    free = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=40, temperature=0)
    text = free.choices[0].text
    stop = text[10:13]
    stopped = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=40, temperature=0, stop=[stop]
    )
    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage is not None
    assert free.usage is not None
    assert stopped.usage.completion_tokens < free.usage.completion_tokens


def test_a_seed_makes_an_answer_repeatable_and_its_absence_does_not(client: OpenAI) -> None:
    def once(seed: int | None) -> str:
        answer = client.completions.create(
            model=MODEL,
            prompt="The ship",
            max_tokens=24,
            temperature=1.0,
            seed=seed if seed is not None else openai.omit,
        )
        return answer.choices[0].text

    assert once(3) == once(3)
    assert len({once(None) for _ in range(4)}) > 1


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_each_mistake_is_its_own_error_class(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-nothing", messages=ask("hi"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as field:
        client.chat.completions.create(model=MODEL, messages=ask("hi"), temperature=9)
    assert field.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="word " * 5000, max_tokens=4)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as large:
        client.completions.create(model=MODEL, prompt="x" * (5 * 1024 * 1024), max_tokens=4)
    assert large.value.status_code == 413


def test_the_longest_body_that_is_taken_is_refused_at_once_and_costs_no_replica(
    client: OpenAI, torch_cluster: Cluster
) -> None:
    before = {one["id"] for one in torch_cluster.status()["replicas"]}
    for prompt in ("a " * 2_000_000, "\u20ac" * 1_300_000):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=MODEL, messages=ask(prompt), max_tokens=4)
    assert {one["id"] for one in torch_cluster.status()["replicas"]} == before
    suspected = [event for event in torch_cluster.log() if event["payload"]["type"] == "ReplicaSuspected"]
    assert suspected == []


def test_a_long_prompt_is_refused_before_a_stream_begins(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt="word " * 5000, max_tokens=4, stream=True)
