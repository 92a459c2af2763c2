"""The parser of server-sent events: the standard's rules, whatever the pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.gateway.client.errors import BadAnswer
from holdfast.gateway.client.sse import ServerSent, SseParser

text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
events = st.lists(st.builds(ServerSent, text, st.lists(text, min_size=1, max_size=3).map("\n".join)), max_size=6)
line_ends = st.sampled_from(["\n", "\r", "\r\n"])


def parse(*pieces: bytes, last_id: str = "", event_bytes_max: int = 1000) -> list[ServerSent]:
    parser = SseParser(last_id, event_bytes_max)
    return [event for piece in pieces for event in parser.feed(piece)]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@given(events, line_ends, st.lists(st.integers(0, 10_000), max_size=30), st.booleans())
def test_what_was_written_is_read_whatever_the_line_ends_and_pieces(
    wanted: list[ServerSent], end: str, cuts: list[int], bom: bool
) -> None:
    lines = [": hello"]
    for event in wanted:
        lines += [f"id: {event.id}", *(f"data: {line}" for line in event.data.split("\n")), ""]
    data = "".join(line + end for line in lines).encode()
    assert parse(*cut(b"\xef\xbb\xbf" * bom + data, cuts)) == wanted


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_bytes_give_the_same_events_in_any_pieces(data: bytes, cuts: list[int]) -> None:
    assert parse(*cut(data, cuts)) == parse(data)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("data: a\n\n", [("", "a")]),
        ("data:a\n\n", [("", "a")]),
        ("data:  a\n\n", [("", " a")]),
        ("data\n\n", [("", "")]),
        ("data: a\ndata: b\n\n", [("", "a\nb")]),
        ("id: 1\ndata: a\n\ndata: b\n\n", [("1", "a"), ("1", "b")]),
        ("id: 1\n\ndata: b\n\n", [("1", "b")]),
        ("id: 1\ndata: a\n\nid\ndata: b\n\n", [("1", "a"), ("", "b")]),
        ("id: 1\0\ndata: a\n\n", [("", "a")]),
        (": ping\n\n: ping\n\ndata: a\n\n", [("", "a")]),
        ("event: x\nretry: 5\nunknown: y\ndata: a\n\n", [("", "a")]),
        ("data: a\u2028b\u0085c\x0bd\n\n", [("", "a\u2028b\u0085c\x0bd")]),
        ("data: a\n", []),
        ("id: 1\ndata: a", []),
    ],
)
def test_fields_are_read_as_the_standard_says(data: str, wanted: list[tuple[str, str]]) -> None:
    assert parse(data.encode()) == [ServerSent(*pair) for pair in wanted]


def test_the_last_id_outlives_the_connection() -> None:
    assert parse(b"data: a\n\n", last_id="7") == [ServerSent("7", "a")]


@pytest.mark.parametrize("data", [b"data: " + b"x" * 1000, b"data: x\n" * 200, b"x" * 1001, b":" + b"x" * 1000])
def test_an_event_without_end_is_refused_behind_those_before_it(data: bytes) -> None:
    parser = SseParser(event_bytes_max=1000)
    found = parser.feed(b"data: good\n\n" + data)
    assert next(found).data == "good"
    with pytest.raises(BadAnswer, match="longer than 1000 bytes"):
        list(found)


def test_comments_may_go_on_for_ever() -> None:
    assert parse(*[b": ping\n"] * 1000, b"data: a\n\n") == [ServerSent("", "a")]
