"""A client gets each token once, in order, whatever replicas do; and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import PeerViolation, RequestRefused, StreamLost
from holdfast.core.requests import EngineRequest, TokenLogprob
from holdfast.core.stream import FINISH_LENGTH, FINISH_STOP, Piece, Stream, StreamStatus
from tests.unit.support.strategies import MANY

LOST = StreamLost("the replica is gone")
LETTERS = st.text("ab", max_size=3)
TEXTS = st.lists(LETTERS, max_size=10)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def running(*texts: str, stops: list[str] | None = None, migrations_max: int = 3) -> Stream:
    """A stream whose first attempt brought these texts."""
    stream = Stream(EngineRequest(prompt="x"), stops or [], migrations_max)
    stream.start()
    for position, text in enumerate(texts):
        stream.token(position, position, text)
    return stream


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# --- any schedule ---------------------------------------------------------------------------------------


def expected(texts: list[str], stops: list[str]) -> tuple[str, int, str]:
    """What a client must get: the text, the tokens used, and why it ended. The plainest possible reading."""
    for count in range(1, len(texts) + 1):
        text = "".join(texts[:count])
        starts = [at for stop in stops if (at := text.find(stop)) >= 0]
        if starts:
            return text[: min(starts)], count, FINISH_STOP
    return "".join(texts), len(texts), FINISH_LENGTH


class Replicas:
    """Drives a stream through attempts that break off, repeat themselves and run ahead."""

    def __init__(self, data: st.DataObject, stream: Stream, texts: list[str]) -> None:
        self.data = data
        self.stream = stream
        self.texts = texts
        self.pieces: list[Piece] = []

    def run(self) -> None:
        for _ in range(self.data.draw(st.integers(0, 3), "losses")):
            self.attempt(self.data.draw(st.integers(0, len(self.texts)), "tokens until the loss"))
            self.stream.lost(LOST)
            self.maybe_take()
        self.attempt(len(self.texts))
        self.stream.finished(FINISH_LENGTH)
        self.pieces += self.stream.take()

    def attempt(self, tokens: int) -> None:
        if self.stream.ended:
            return
        request = self.stream.start()
        assert request.accepted == [100 + position for position in range(len(self.stream.accepted))]
        first = len(request.accepted)
        for position in range(first, min(first + tokens, len(self.texts))):
            for told in self.noise(position):
                self.tell(told)
            self.maybe_take()

    def noise(self, position: int) -> Iterator[int]:
        if self.data.draw(st.booleans()):
            yield self.data.draw(st.integers(0, position))
        yield position
        if self.data.draw(st.booleans()):
            yield position

    def tell(self, position: int) -> None:
        self.stream.token(position, 100 + position, self.texts[position])

    def maybe_take(self) -> None:
        if self.data.draw(st.booleans(), "take"):
            self.pieces += self.stream.take()


@MANY
@given(st.data(), TEXTS, STOPS)
def test_any_schedule_gives_exactly_the_right_text(data: st.DataObject, texts: list[str], stops: list[str]) -> None:
    stream = Stream(EngineRequest(prompt="x"), stops)
    replicas = Replicas(data, stream, texts)
    replicas.run()
    text, tokens, reason = expected(texts, stops)
    assert text_of(replicas.pieces) == text
    assert (stream.status, stream.finish_reason) == (StreamStatus.FINISHED, reason)
    assert stream.accepted == [100 + position for position in range(tokens)], "what was generated is what is billed"
    assert [piece.count for piece in replicas.pieces] == list(range(1, tokens + 1)), "one piece for each token"


@MANY
@given(TEXTS, STOPS)
def test_what_is_handed_out_ends_at_a_tokens_end_and_is_never_taken_back(texts: list[str], stops: list[str]) -> None:
    stream = Stream(EngineRequest(prompt="x"), stops)
    stream.start()
    text, _, _ = expected(texts, stops)
    out = ""
    for position, token_text in enumerate(texts):
        stream.token(position, position, token_text)
        for piece in stream.take():
            out += piece.text
            assert text.startswith(out)
            assert stream.ended or out == "".join(texts[: piece.count])


@MANY
@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(texts: list[str], stops: list[str]) -> None:
    stream = Stream(EngineRequest(prompt="x"), stops)
    stream.start()
    out = 0
    for position, token_text in enumerate(texts):
        stream.token(position, position, token_text)
        out += len(stream.take())
        if stream.ended:
            return
        held, rest = ("".join(texts[start : position + 1]) for start in (out, out + 1))
        prefixes = [stop[:length] for stop in stops for length in range(1, len(stop))]
        assert not held or any(held.endswith(prefix) and len(prefix) > len(rest) for prefix in prefixes)


# --- stop strings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "stops", "text"),
    [
        (["one ", "STOP", " two"], ["STOP"], "one "),
        (["one ST", "OP two"], ["STOP"], "one "),
        (["one S", "T", "O", "P"], ["STOP"], "one "),
        (["oneSTOPtwo"], ["STOP"], "one"),
        (["aab"], ["ab"], "a"),
        (["a", "a", "b"], ["ab"], "a"),
        (["x", "\n", "\n", "y"], ["\n\n"], "x"),
        (["a", "b", "c", "d"], ["abcd", "bc"], "a"),
        (["abcd"], ["abcd", "bc"], ""),
        (["ab", "ac"], ["abac", "ba"], ""),
        (["STOP"], ["STOP"], ""),
        (["", "S", "", "TOP"], ["STOP"], ""),
    ],
)
def test_a_stop_string_ends_the_text_just_before_it(texts: list[str], stops: list[str], text: str) -> None:
    stream = running(*texts, stops=stops)
    assert text_of(stream.take()) == text
    assert (stream.status, stream.finish_reason) == (StreamStatus.FINISHED, FINISH_STOP)


def test_a_stop_string_that_straddles_a_migration_is_found() -> None:
    stream = running("one ", "ST", stops=["STOP"])
    assert text_of(stream.take()) == "one "
    stream.lost(LOST)
    assert stream.start().accepted == [0, 1]
    stream.token(2, 2, "OP two")
    assert text_of(stream.take()) == ""
    assert stream.finish_reason == FINISH_STOP


def test_text_that_only_looked_like_a_stop_string_comes_with_the_end() -> None:
    stream = running("one ", "ST", stops=["STOP"])
    assert text_of(stream.take()) == "one "
    stream.finished(FINISH_LENGTH)
    assert text_of(stream.take()) == "ST"


def test_text_that_may_begin_a_stop_string_does_not_come_before_a_failure() -> None:
    stream = running("one ", "ST", stops=["STOP"])
    stream.fail(LOST)
    assert text_of(stream.take()) == "one "


def test_tokens_after_the_end_are_dropped() -> None:
    stream = running("STOP", stops=["STOP"])
    stream.take()
    stream.token(1, 1, "more")
    stream.finished(FINISH_LENGTH)
    stream.lost(LOST)
    assert not stream.take()
    assert stream.finish_reason == FINISH_STOP
    assert len(stream.accepted) == 1


def test_log_probabilities_travel_with_their_tokens_through_holding_and_cutting() -> None:
    stream = Stream(EngineRequest(prompt="x"), ["END"])
    stream.start()
    logprobs = [TokenLogprob(-float(position), b"t", []) for position in range(3)]
    for position, text in enumerate(["a", "bE", "ND"]):
        stream.token(position, position, text, logprobs[position])
    assert [(piece.text, piece.logprob) for piece in stream.take()] == [
        ("a", logprobs[0]),
        ("b", logprobs[1]),
        ("", logprobs[2]),
    ]


# --- attempts -------------------------------------------------------------------------------------------


def test_a_token_from_the_future_is_the_replicas_violation_and_changes_nothing() -> None:
    stream = running("a")
    with pytest.raises(PeerViolation, match="token 3 came while 1 was due"):
        stream.token(3, 3, "d")
    assert stream.accepted == [0]
    stream.token(1, 1, "b")
    assert text_of(stream.take()) == "ab"


@pytest.mark.parametrize("position", [0, 1, 5])
def test_a_token_for_a_stream_that_waits_is_dropped(position: int) -> None:
    stream = running("a")
    stream.lost(LOST)
    stream.token(position, 1, "b")
    assert stream.accepted == [0]


def test_the_first_attempt_sends_the_request_as_it_is_and_later_ones_go_on_after_it() -> None:
    request = EngineRequest(prompt="x", max_tokens=9, accepted=[])
    stream = Stream(request)
    assert stream.start() is request
    stream.token(0, 7, "a")
    stream.lost(LOST)
    again = stream.start()
    assert (again.accepted, again.max_tokens, again.prompt) == ([7], 9, "x")
    stream.token(1, 8, "b")
    assert again.accepted == [7], "a request that was sent does not change"


def test_a_stream_may_begin_with_tokens_that_the_client_has_already() -> None:
    stream = Stream(EngineRequest(prompt="x", accepted=[5, 6]))
    stream.start()
    stream.token(2, 7, "c")
    assert [piece.count for piece in stream.take()] == [3]
    assert stream.accepted == [5, 6, 7]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_stream_may_change_its_replica_so_often_and_then_fails_with_what_it_lost(limit: int) -> None:
    stream = Stream(EngineRequest(prompt="x"), migrations_max=limit)
    for _ in range(limit):
        stream.start()
        stream.lost(LOST)
        assert stream.status is StreamStatus.WAITING
    stream.start()
    stream.lost(LOST)
    assert stream.status is StreamStatus.FAILED
    assert stream.failure is LOST


def test_a_refusal_ends_the_stream_with_the_refusal() -> None:
    stream = running()
    refusal = RequestRefused("too long", code="context_length_exceeded")
    stream.refused(refusal)
    assert (stream.status, stream.failure) == (StreamStatus.FAILED, refusal)


def test_only_the_first_failure_counts() -> None:
    stream = running("a")
    stream.fail(LOST)
    stream.fail(ValueError("later"))
    stream.refused(RequestRefused("later", code="x"))
    assert stream.failure is LOST


def test_a_stream_that_finished_can_not_fail() -> None:
    stream = running("a")
    stream.finished(FINISH_LENGTH)
    stream.fail(LOST)
    assert stream.status is StreamStatus.FINISHED
    assert stream.failure is None


def test_the_prompts_length_is_what_the_first_attempt_said() -> None:
    stream = running()
    stream.admitted(12)
    stream.lost(LOST)
    stream.start()
    stream.admitted(15)
    assert stream.prompt_tokens == 12


def test_an_attempt_can_not_begin_while_another_runs_or_after_the_end() -> None:
    stream = running()
    with pytest.raises(AssertionError, match="RUNNING to RUNNING"):
        stream.start()
    stream.finished(FINISH_LENGTH)
    with pytest.raises(AssertionError, match="FINISHED to RUNNING"):
        stream.start()


def test_a_replica_without_room_costs_no_attempt() -> None:
    stream = Stream(EngineRequest(prompt="x"), migrations_max=0)
    for _ in range(10):
        stream.start()
        stream.postponed()
        assert stream.status is StreamStatus.WAITING
    stream.postponed()
    stream.start()
    stream.lost(LOST)
    assert stream.status is StreamStatus.FAILED


def test_an_attempt_that_no_engine_took_in_tells_nothing_of_the_request() -> None:
    stream = Stream(EngineRequest(prompt="x"), migrations_max=10)
    for admitted in (True, False, True, False):
        stream.start()
        if admitted:
            stream.admitted(1)
        stream.lost(LOST)
        assert stream.suspect
    stream.start()
    stream.admitted(1)
    stream.lost(LOST)
    assert stream.status is StreamStatus.FAILED, "engines took it in three times, and none brought a token"
