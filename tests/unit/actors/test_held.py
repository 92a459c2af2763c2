"""What a replica holds of its streams, for whom, for how long, and in how much memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.held import (
    CROWDED_KEEP_S,
    KEPT_OVERHEAD_BYTES,
    REPLAY_TOKENS_MAX,
    HeldStreams,
    Peer,
    Shelf,
    Tokens,
)
from holdfast.core.frames import TAKEN_OVER, Admitted, Frame, Refused, Start, Step
from holdfast.core.requests import EngineRequest, TokenLogprob
from tests.unit.support.strategies import SOME


class Wire:
    """A connection that remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)


def peer(gateway: str = "g") -> tuple[Peer, Wire]:
    wire = Wire()
    return Peer(wire, gateway), wire  # type: ignore[arg-type]


def begin(held: HeldStreams, owner: Peer, key: int = 1, name: str = "s", ordinal: int = 1, **request: Any) -> None:
    held.begin(key, owner, Start(key + 100, EngineRequest(prompt="x", **request), name, ordinal), 7)


def token(held: HeldStreams, key: int = 1, position: int = 0) -> None:
    held.deliver(StepOutput([key], [position], [position + 50], [f"t{position} "]), 1)


def replayed(wire: Wire) -> list[tuple[int, int, str]]:
    """The tokens that were sent: position, token, text."""
    steps = [frame for frame in wire.sent if isinstance(frame, Step)]
    return [item for step in steps for item in zip(step.positions, step.tokens, step.texts, strict=True)]


def test_a_stream_is_handed_over_with_all_its_tokens_and_the_ids_of_those_before() -> None:
    held = HeldStreams()
    first, first_wire = peer("a")
    second, second_wire = peer("b")
    begin(held, first, accepted=[1, 2], ordinal=2)
    for position in (2, 3):
        token(held, position=position)
    assert held.attach(second, 9, "s", 2)
    assert first_wire.sent == [Refused(101, TAKEN_OVER, "Another gateway went on with this stream.", None, False)]
    assert second_wire.sent[0] == Admitted(9, 7)
    assert replayed(second_wire) == [(0, 1, ""), (1, 2, ""), (2, 52, "t2 "), (3, 53, "t3 ")]
    output = StepOutput([1], [4], [54], ["t4 "])
    assert list(held.deliver(output, 2)) == [second.connection]
    held.lost(first, 0.0)
    assert held.by_key, "it is not the first one's any more"


def test_an_earlier_attempt_does_not_attach_while_a_later_one_is_waited_for() -> None:
    held = HeldStreams()
    first, first_wire = peer("a")
    second, second_wire = peer("b")
    begin(held, first, ordinal=5)
    assert held.attach(second, 9, "s", 4)
    assert second_wire.sent == [Refused(9, TAKEN_OVER, "Another gateway went on with this stream.", None, False)]
    token(held)
    held.lost(first, 0.0)
    begun = len(first_wire.sent)
    assert held.attach(second, 10, "s", 6)
    assert len(first_wire.sent) == begun
    assert held.find("s").ordinal == 6  # type: ignore[union-attr]


def test_a_finished_stream_is_replayed_with_its_end() -> None:
    held = HeldStreams()
    owner, _ = peer()
    begin(held, owner)
    token(held)
    held.finish([(1, "length")], 0.0)
    assert not held.by_key
    other, wire = peer()
    assert held.attach(other, 5, "s", 2)
    assert replayed(wire) == [(0, 50, "t0 ")]
    assert wire.sent[-1] == Step([], [], [], [], None, [(5, "length")])
    assert not held.attach(other, 6, "unheard of", 2)


def test_long_streams_are_replayed_in_frames_of_bounded_size() -> None:
    count = 2 * REPLAY_TOKENS_MAX + 1
    tokens = Tokens(
        1, 3, [], [(number, "x") for number in range(count)], [TokenLogprob(-1.0, b"x", [])] * count, "stop"
    )
    frames = list(tokens.replay(4))
    assert [len(frame.attempts) for frame in frames] == [REPLAY_TOKENS_MAX, REPLAY_TOKENS_MAX, 1, 0]
    assert [position for frame in frames for position in frame.positions] == list(range(count))


@pytest.mark.parametrize(("name", "tokens", "kept"), [("s", 1, True), ("s", 0, False), ("", 1, False)])
def test_what_outlives_its_gateway_has_a_name_and_a_token(name: str, tokens: int, kept: bool) -> None:
    held = HeldStreams()
    owner, _ = peer()
    begin(held, owner, name=name)
    for position in range(tokens):
        token(held, position=position)
    held.lost(owner, 0.0)
    assert bool(held.by_key) is kept
    assert held.deliver(StepOutput([1], [1], [1], ["x"]), 1) == {}, "nobody listens"


def test_a_detached_stream_that_nobody_asks_for_ends() -> None:
    held = HeldStreams(keep_s=10)
    owner, _ = peer()
    begin(held, owner)
    token(held)
    held.lost(owner, 5.0)
    assert not held.expire(14.9, crowded=False)
    assert held.expire(15.0, crowded=False)
    assert not held.by_key
    assert held.find("s") is None


def test_only_what_went_on_elsewhere_is_fenced() -> None:
    held = HeldStreams()
    owner, _ = peer("a")
    begin(held, owner, key=1, name="old", ordinal=1)
    begin(held, owner, key=2, name="back again", ordinal=3)
    begin(held, owner, key=3, name="taken over", ordinal=1)
    other, _ = peer("b")
    assert held.attach(other, 1, "taken over", 2)
    owner_again, _ = peer("a")
    assert held.fence(owner_again, [], [("old", 1), ("back again", 2), ("taken over", 1), ("never here", 1)]) == 1
    assert set(held.by_key) == {2, 3}
    assert held.fence(owner, [102], []) == 1
    assert set(held.by_key) == {3}


def test_a_fenced_stream_that_has_finished_is_not_kept() -> None:
    held = HeldStreams()
    owner, _ = peer()
    begin(held, owner)
    held.finish([(1, "stop")], 0.0)
    assert held.fence(owner, [101], [("s", 1)]) == 0
    assert held.find("s") is None


def test_a_newer_attempt_replaces_an_older_copy() -> None:
    held = HeldStreams()
    owner, _ = peer()
    begin(held, owner, key=1)
    begin(held, owner, key=2, ordinal=2)
    assert set(held.by_key) == {2}
    tokens = held.find("s")
    assert tokens is not None
    assert tokens.ordinal == 2


def test_logprobs_are_kept_token_by_token_and_only_where_asked_for() -> None:
    held = HeldStreams()
    owner, _wire = peer()
    begin(held, owner, key=1, name="with", logprobs=0)
    begin(held, owner, key=2, name="without")
    one = TokenLogprob(-0.5, b"a", [])
    held.deliver(StepOutput([1, 2], [0, 0], [5, 6], ["a", "b"], [one, None]), 1)
    held.deliver(StepOutput([1, 2], [1, 1], [5, 6], ["a", "b"]), 1)
    found = held.find("with"), held.find("without")
    assert [tokens.logprobs if tokens else "" for tokens in found] == [[one, None], None]


@SOME
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 40)), max_size=60))
def test_the_shelf_stays_within_its_bytes_and_loses_the_oldest_first(puts: list[tuple[str, int]]) -> None:
    shelf = Shelf(bytes_max=3 * KEPT_OVERHEAD_BYTES, keep_s=100)
    order: list[str] = []
    for now_s, (name, tokens) in enumerate(puts):
        shelf.put(name, "g", Tokens(1, 1, [], [(7, "xy")] * tokens, None), now_s)
        order = [other for other in order if other != name] + [name]
        assert shelf.bytes <= 3 * KEPT_OVERHEAD_BYTES
        assert [other for other in order if shelf.get(other)] == order[len(order) - len(shelf) :]
    shelf.expire(1000)
    assert (len(shelf), shelf.bytes) == (0, 0)


def refusals(wire: Wire) -> list[tuple[int, str]]:
    return [(frame.attempt, frame.code) for frame in wire.sent if isinstance(frame, Refused)]


def test_whoever_waits_for_a_copy_that_is_replaced_is_told() -> None:
    held = HeldStreams()
    first, first_wire = peer("a")
    second, second_wire = peer("b")
    begin(held, first, key=1)
    begin(held, second, key=2)
    assert refusals(first_wire) == [(101, TAKEN_OVER)]
    assert not first.attempts
    begin(held, second, key=3)
    assert refusals(second_wire) == [(102, TAKEN_OVER)]
    assert set(held.by_key) == {3}


def test_an_attempt_that_comes_too_late_does_not_replace_a_later_one_that_somebody_waits_for() -> None:
    held = HeldStreams()
    first, first_wire = peer("a")
    second, second_wire = peer("a")
    begin(held, second, key=1, ordinal=3)
    token(held)
    begin(held, first, key=2, ordinal=2)
    assert refusals(first_wire) == [(102, TAKEN_OVER)]
    assert set(held.by_key) == {1}
    assert not second_wire.sent
    held.lost(second, 0.0)
    begin(held, first, key=3, ordinal=2)
    assert set(held.by_key) == {3}, "nobody waited for the later one any more"


def test_a_migrated_stream_outlives_its_gateway_before_it_has_brought_anything_itself() -> None:
    held = HeldStreams()
    owner, _ = peer()
    begin(held, owner, accepted=[4, 5], ordinal=2)
    held.lost(owner, 0.0)
    other, wire = peer()
    assert held.attach(other, 5, "s", 2)
    assert replayed(wire) == [(0, 4, ""), (1, 5, "")]


def test_a_fence_does_not_drop_what_finished_for_another_gateway_or_as_a_later_attempt() -> None:
    held = HeldStreams()
    owner, _ = peer("a")
    begin(held, owner, key=1, name="back again", ordinal=3)
    begin(held, owner, key=2, name="taken over")
    other, _ = peer("b")
    assert held.attach(other, 1, "taken over", 2)
    held.finish([(1, "stop"), (2, "stop")], 0.0)
    assert held.fence(owner, [], [("back again", 2), ("taken over", 1)]) == 0
    assert held.find("back again") is not None
    assert held.find("taken over") is not None
    assert held.fence(owner, [], [("back again", 3)]) == 0
    assert held.find("back again") is None


def test_detached_streams_make_room_for_those_that_wait_once_their_clients_had_time_to_come() -> None:
    held = HeldStreams(keep_s=100)
    owner, _ = peer()
    begin(held, owner)
    token(held)
    held.lost(owner, 5.0)
    assert not held.expire(5.0 + CROWDED_KEEP_S, crowded=False)
    assert not held.expire(4.9 + CROWDED_KEEP_S, crowded=True)
    assert held.expire(5.0 + CROWDED_KEEP_S, crowded=True)
    assert not held.by_key
