"""Frames come out of a byte stream as they went in, however it is cut; what is no frame is refused."""

from __future__ import annotations

import itertools
import struct
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import frames
from holdfast.core.errors import FrameError, PeerViolation
from holdfast.core.requests import EngineRequest
from tests.unit.support.strategies import MANY, SOME, of_type

FROM_GATEWAY = get_args(frames.FromGateway)
FROM_REPLICA = get_args(frames.FromReplica)
BODIES = st.lists(st.binary(max_size=300), max_size=8)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def body_of(frame: frames.Frame) -> bytes:
    (body,) = frames.FrameBuffer().feed(frames.encode(frame))
    return body


@SOME
@given(st.one_of(*map(of_type, FROM_GATEWAY)))
def test_a_gateways_frame_comes_back_as_it_was(frame: frames.FromGateway) -> None:
    assert frames.decode_from_gateway(body_of(frame)) == frame


@SOME
@given(st.one_of(*map(of_type, FROM_REPLICA)))
def test_a_replicas_frame_comes_back_as_it_was(frame: frames.FromReplica) -> None:
    assert frames.decode_from_replica(body_of(frame)) == frame


def test_a_start_of_before_there_were_trace_states_is_read_and_one_with_more_than_is_known_too() -> None:
    start = frames.Start(1, EngineRequest(prompt="x"), "s", 2, "t", 3.0, "a=1")
    fields = msgspec.msgpack.decode(body_of(start))
    assert fields[-1] == "a=1"
    before = frames.decode_from_gateway(msgspec.msgpack.encode(fields[:-1]))
    assert before == msgspec.structs.replace(start, trace_state="")
    assert frames.decode_from_gateway(msgspec.msgpack.encode([*fields, "more"])) == start


@MANY
@given(BODIES, st.lists(st.integers(0, 2500)))
def test_bodies_come_out_whole_and_in_order_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(framed, bodies))
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    buffer = frames.FrameBuffer()
    out = [body for start, end in itertools.pairwise(edges) for body in buffer.feed(data[start:end])]
    assert out == bodies


@SOME
@given(BODIES)
def test_bodies_come_out_of_single_bytes(bodies: list[bytes]) -> None:
    buffer = frames.FrameBuffer()
    data = b"".join(map(framed, bodies))
    assert [body for byte in data for body in buffer.feed(bytes([byte]))] == bodies


def test_nothing_is_lost_or_repeated_when_a_reader_stops_halfway_through_a_chunk() -> None:
    buffer = frames.FrameBuffer()
    for body in buffer.feed(framed(b"one") + framed(b"two") + framed(b"three")[:4]):
        if body == b"two":
            break
    assert list(buffer.feed(framed(b"three")[4:])) == [b"three"]


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    buffer = frames.FrameBuffer()
    reader = buffer.feed(framed(b"fine") + struct.pack(">I", frames.FRAME_BYTES_MAX + 1))
    assert next(reader) == b"fine"
    with pytest.raises(FrameError, match=str(frames.FRAME_BYTES_MAX + 1)):
        next(reader)


def test_the_longest_frame_that_is_allowed_is_allowed() -> None:
    body = bytes(frames.FRAME_BYTES_MAX)
    buffer = frames.FrameBuffer()
    assert not list(buffer.feed(struct.pack(">I", len(body))))
    assert [len(whole) for whole in buffer.feed(body)] == [len(body)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Nonsense", 1]),
        msgspec.msgpack.encode(["Stop"]),
        msgspec.msgpack.encode(["Stop", "one"]),
        msgspec.msgpack.encode({"Stop": 1}),
        msgspec.msgpack.encode("Stop"),
        msgspec.msgpack.encode(["Stop", 1]) + b"\x00",
        b"\x95\xa5Hello\x01\xa1\xff\xa1a\xa1b",
        b"\x91" * 100_000,
        msgspec.msgpack.encode(["Start", 1, {"messages": [{"role": "user"}], "accepted": "x"}]),
    ],
    ids=lambda body: body[:24].hex(),
)
def test_what_is_no_frame_is_a_violation_by_the_peer(body: bytes) -> None:
    for decode in (frames.decode_from_gateway, frames.decode_from_replica):
        with pytest.raises(FrameError) as refusal:
            decode(body)
        assert isinstance(refusal.value, PeerViolation)


@MANY
@given(st.binary(max_size=60))
def test_random_bytes_decode_or_are_a_violation_and_nothing_else(body: bytes) -> None:
    for decode in (frames.decode_from_gateway, frames.decode_from_replica):
        try:
            decode(body)
        except FrameError:
            continue


@pytest.mark.parametrize("kind", FROM_REPLICA, ids=lambda kind: kind.__name__)
def test_a_gateway_does_not_say_what_only_replicas_say(kind: type[frames.Frame]) -> None:
    @SOME
    @given(of_type(kind))
    def refused(frame: frames.Frame) -> None:
        with pytest.raises(FrameError):
            frames.decode_from_gateway(body_of(frame))

    refused()
