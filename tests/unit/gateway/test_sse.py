from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.requests import TokenLogprob
from holdfast.core.stream import Piece
from holdfast.gateway.backend import Delta
from holdfast.gateway.openai import Usage
from holdfast.gateway.sse import ChatEncoder, CompletionEncoder, Encoder, Head
from tests.unit.gateway.client import parse_events

ENCODERS = (ChatEncoder, CompletionEncoder)
texts = st.lists(st.lists(st.text(), max_size=5), max_size=5)


def head(**fields: Any) -> Head:
    return Head(**{"id": "r-1", "created": 3, "model": "m", "include_usage": False, "logprobs": -1, **fields})


def deltas(chunks: list[list[str]], choice: int = 0, logprob: TokenLogprob | None = None) -> list[Delta]:
    found, count = [], 0
    for chunk in chunks:
        pieces = [Piece(count + i + 1, text, logprob) for i, text in enumerate(chunk)]
        count += len(chunk)
        found.append(Delta(choice, pieces, None))
    return [*found, Delta(choice, [], "stop")]


def text_in(chunk: Any) -> str:
    choice = chunk["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))


@pytest.mark.parametrize("kind", ENCODERS)
@given(chunks=texts, logprobs=st.sampled_from([-1, 0, 2]), include_usage=st.booleans())
def test_any_text_comes_out_of_its_events_as_it_went_in(
    kind: type[Encoder], chunks: list[list[str]], logprobs: int, include_usage: bool
) -> None:
    encoder = kind(head(logprobs=logprobs, include_usage=include_usage), 1)
    logprob = TokenLogprob(-1.0, b"\xe2", [(1, b"a", -1.0)]) if logprobs >= 0 else None
    body = b"".join(encoder.encode([delta]) for delta in deltas(chunks, logprob=logprob))
    found = [json.loads(event.data) for event in parse_events(body)]
    assert "".join(map(text_in, found)) == "".join(text for chunk in chunks for text in chunk)
    assert encoder.ended


@given(chunks=texts, split=st.integers(0, 5))
def test_events_are_the_same_however_their_deltas_are_sent_together(chunks: list[list[str]], split: int) -> None:
    all_deltas = deltas(chunks)
    one, two = ChatEncoder(head(), 1), ChatEncoder(head(), 1)
    apart = two.encode(all_deltas[:split]) + two.encode(all_deltas[split:])
    assert one.encode(all_deltas) == apart


def test_an_events_id_says_how_many_tokens_of_every_choice_are_delivered() -> None:
    encoder = ChatEncoder(head(), 2)
    body = encoder.encode([Delta(1, [Piece(1, "a", None)], None), *deltas([["x", "y"]])])
    ids = [event.id for event in parse_events(body + encoder.done(Usage(1, 2, 3)))]
    assert ids == ["r-1:0,0", "r-1:0,1", "r-1:0,1", "r-1:1,1", "r-1:2,1", "r-1:2,1", "r-1:2,1"]


def test_the_role_comes_in_the_same_bytes_as_the_first_token() -> None:
    encoder = ChatEncoder(head(), 1)
    first, second = parse_events(encoder.encode([Delta(0, [Piece(1, "a", None)], None)]))
    assert json.loads(first.data)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert json.loads(second.data)["choices"][0]["delta"] == {"content": "a"}


def test_usage_is_null_in_all_chunks_but_the_last_when_asked_for_and_absent_otherwise() -> None:
    with_usage, without = ChatEncoder(head(include_usage=True), 1), ChatEncoder(head(), 1)
    body = with_usage.encode(deltas([["a"]])) + with_usage.done(Usage(1, 2, 3))
    *before, last, done = [event.data for event in parse_events(body)]
    assert [json.loads(data)["usage"] for data in before] == [None] * 3
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert done == "[DONE]"
    assert b"usage" not in without.encode(deltas([["a"]])) + without.done(Usage(1, 2, 3))


def test_a_stream_longer_than_the_prepared_numbers_goes_on() -> None:
    encoder = ChatEncoder(head(), 1)
    events = parse_events(encoder.encode([Delta(0, [Piece(n, "a", None) for n in range(1, 9_001)], None)]))
    assert events[-1].id == "r-1:9000"


def test_half_a_surrogate_pair_from_a_broken_engine_becomes_a_question_mark() -> None:
    encoder = ChatEncoder(head(), 1)
    events = parse_events(encoder.encode([Delta(0, [Piece(1, "a", None), Piece(2, "b\ud800", None)], None)]))
    assert [text_in(json.loads(event.data)) for event in events] == ["", "a", "b?"]


def test_an_echo_goes_before_each_answer_to_its_own_prompt() -> None:
    encoder = CompletionEncoder(head(echo=("one", "two")), 4)
    body = b"".join(encoder.encode([Delta(choice, [], "stop")]) for choice in range(4))
    chunks = [json.loads(event.data)["choices"][0] for event in parse_events(body)]
    assert [chunk["text"] for chunk in chunks if chunk["text"]] == ["one", "one", "two", "two"]


def test_offsets_of_a_completions_tokens_go_on_over_its_chunks() -> None:
    encoder = CompletionEncoder(head(logprobs=1), 1)
    logprob = TokenLogprob(-1.0, b"ab", [(1, b"ab", -1.0)])
    body = b"".join(encoder.encode([delta]) for delta in deltas([["ab"], ["ab", "ab"]], logprob=logprob))
    found = [json.loads(event.data)["choices"][0]["logprobs"] for event in parse_events(body)]
    assert [entry["text_offset"] for entry in found[:-1]] == [[0], [2], [4]]
    assert found[0]["top_logprobs"] == [{"ab": -1.0}]


@given(text=st.text(alphabet="a\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e\r\né☂", min_size=1))
def test_an_event_is_two_lines_even_to_a_client_that_splits_at_every_line_end_of_unicode(text: str) -> None:
    body = ChatEncoder(head(), 1).encode([Delta(0, [Piece(1, text, None)], None)])
    assert len(body.decode().splitlines()) == 6
