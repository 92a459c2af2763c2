"""What clients got: right streams pass, and each way in which one may be wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast.simulations.checkers import error_counts
from holdfast.simulations.checkers.streams import END_MARGIN_S, due_of
from holdfast.simulations.records import CANCELLED, COMPLETE, ERROR, FINISH, ROLE, TOKEN, UNREACHED, USAGE, Request
from tests.unit.simulations.recorded import RESPONSE_ID, SEED, Run, answered, asked, broken, only, well

FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"chat": True},
    {"n": 3},
    {"n": 2, "chat": True, "wants_usage": True},
    {"max_tokens": 0},
    {"streamed": False},
    {"streamed": False, "n": 2},
    {"seed": None},
)


def with_request(request: Request) -> Run:
    """A run in which all is well but for this request, perhaps."""
    run = well()
    run.history.request(request)
    return run


def stop_within(position: int) -> str:
    """A string that begins in the middle of the token at this position, and ends in the middle of the next."""
    pieces = due_of(asked(9), SEED)[0].pieces
    return pieces[position][2:] + pieces[position + 1][:2]


@pytest.mark.parametrize("form", FORMS)
def test_a_right_answer_of_any_form_passes(form: dict[str, Any]) -> None:
    assert broken(with_request(answered(9, **form))) == []


def test_a_stop_string_over_two_tokens_cuts_the_text_before_it_and_counts_both() -> None:
    request = answered(9, stops=(stop_within(1),), wants_usage=True)
    texts = [text for kind, _, text, _ in request.events if kind == TOKEN]
    assert len(texts) == 3
    assert len(texts[1]) == 2
    assert texts[2] == ""
    assert request.events[-2][2] == "stop"
    assert broken(with_request(request)) == []


@pytest.mark.parametrize("how", [ERROR, CANCELLED, UNREACHED])
@pytest.mark.parametrize("tokens", [0, 3])
def test_a_prefix_with_an_end_passes(how: str, tokens: int) -> None:
    request = answered(9, upto=tokens)
    request.asked_s = 1.0
    request.ended(6.0, how, *(("stream_lost", 0) if how == ERROR else ()))
    assert broken(with_request(request)) == []


def test_a_stream_that_was_resumed_counts_on() -> None:
    request = answered(9)
    request.sent(4.0, "gateway-2", f"{RESPONSE_ID}:3")
    assert broken(with_request(request)) == []


# --- what is wrong with a stream ------------------------------------------------------------------------


def _repeat(request: Request) -> None:
    request.events.insert(1, request.events[0])


def _skip(request: Request) -> None:
    del request.events[2]


def _swap(request: Request) -> None:
    request.events[1], request.events[2] = request.events[2], request.events[1]


def _miscount(request: Request) -> None:
    kind, choice, text, _ = request.events[2]
    request.events[2] = (kind, choice, text, f"{RESPONSE_ID}:2")


def _other_word(request: Request) -> None:
    kind, choice, _, event_id = request.events[2]
    request.events[2] = (kind, choice, " zebra", event_id)


def _cut(request: Request) -> None:
    del request.events[-2:]


def _no_finish(request: Request) -> None:
    request.events.pop()


def _finish_early(request: Request) -> None:
    request.events[3:] = [(FINISH, 0, "length", request.events[2][3])]


def _other_reason(request: Request) -> None:
    request.events[-1] = (FINISH, 0, "stop", request.events[-1][3])


def _go_on(request: Request) -> None:
    request.events.append((TOKEN, 0, " more", request.events[-1][3]))


def _another_end(request: Request) -> None:
    request.ended(5.5, ERROR, "stream_lost")


def _other_logprobs(request: Request) -> None:
    request.events.insert(1, ("logprobs", 0, "none with ' tide'", request.events[0][3]))


def _unasked_choice(request: Request) -> None:
    request.events.append((TOKEN, 1, " more", request.events[-1][3]))


def _unasked_usage(request: Request) -> None:
    request.events.append((USAGE, 0, "", request.events[-1][3]))


def _two_roles(request: Request) -> None:
    request.events[:0] = [(ROLE, 0, "", f"{RESPONSE_ID}:0")] * 2


def _nothing(request: Request) -> None:
    request.events.clear()


def _other_seed(request: Request) -> None:
    request.seed = SEED + 1


def _no_id(request: Request) -> None:
    request.response_id = "cmpl-1"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_repeat, "token 1 is"),
        (_skip, "token 2 is"),
        (_swap, "token 1 is"),
        (_miscount, "has the id"),
        (_other_word, "' zebra'"),
        (_cut, "choices [0] have no finish reason"),
        (_no_finish, "choices [0] have no finish reason"),
        (_finish_early, "finished after 3 of 5 tokens"),
        (_other_reason, "finished because of 'stop'"),
        (_go_on, "went on behind its end"),
        (_another_end, "another end came after the first"),
        (_other_logprobs, "logprobs of choice 0 is wrong: none with ' tide'"),
        (_unasked_choice, "was never asked for"),
        (_unasked_usage, "the usage came 1 times, and 0 is due"),
        (_two_roles, "began twice"),
        (_nothing, "nothing came"),
        (_other_seed, "has seed 77"),
        (_no_id, "is none"),
    ],
)
def test_a_stream_that_is_not_the_right_one_is_found(spoil: Callable[[Request], None], told: str) -> None:
    request = answered(9)
    spoil(request)
    assert told in only(broken(with_request(request)), "streams")


def test_a_wrong_prefix_is_found_without_an_end_too() -> None:
    request = answered(9, upto=4)
    _swap(request)
    request.ended(5.0, CANCELLED)
    assert "token 1 is" in only(broken(with_request(request)), "streams")


def test_tokens_of_another_choice_are_found() -> None:
    request = answered(9, n=2)
    request.events[0], request.events[6] = (
        (TOKEN, 0, request.events[6][2], request.events[0][3]),
        (TOKEN, 1, request.events[0][2], request.events[6][3]),
    )
    assert "choice 0: token 0" in only(broken(with_request(request)), "streams")


@pytest.mark.parametrize("usage", [None, (6, 4), (6, 5), (5, 10)])
def test_a_wrong_usage_is_found(usage: tuple[int, int] | None) -> None:
    request = answered(9, wants_usage=True)
    request.usage = usage
    assert "the usage is" in only(broken(with_request(request)), "streams")


def test_a_whole_answer_with_another_text_is_found() -> None:
    request = answered(9, streamed=False)
    kind, choice, text, event_id = request.events[0]
    request.events[0] = (kind, choice, text[:-1], event_id)
    assert "must be" in only(broken(with_request(request)), "streams")


# --- ends -----------------------------------------------------------------------------------------------


def test_a_request_without_an_end_is_found_once_its_deadline_and_the_margin_are_over() -> None:
    request = answered(9, upto=2)
    run = with_request(request)
    run.history.ended_s = request.deadline_s + END_MARGIN_S
    run.history.settle = None
    assert broken(run) == []
    run.history.ended_s += 0.001
    assert "had no end when the run was over" in only(broken(run), "ends")


def test_an_end_that_came_too_late_is_found() -> None:
    request = answered(9)
    request.ended_s = request.deadline_s + END_MARGIN_S + 0.001
    assert "ended at 12.001 s" in only(broken(with_request(request)), "ends")


def test_a_client_may_take_its_time_to_go_away() -> None:
    request = answered(9, upto=2)
    request.ended(20.0, CANCELLED)
    assert broken(with_request(request)) == []


@pytest.mark.parametrize(
    ("code", "status"), [("no_replica", 503), ("deadline_exceeded", 504), ("stream_lost", 503), ("overloaded", 503)]
)
def test_errors_that_the_api_documents_are_ends(code: str, status: int) -> None:
    request = asked(9, response_id="")
    request.asked_s = 1.0
    request.ended(4.0, ERROR, code, status)
    run = with_request(request)
    assert broken(run) == []
    assert error_counts(run.history) == {code: 1}


@pytest.mark.parametrize(
    ("code", "status"),
    [("internal_error", 500), ("no_replica", 500), ("invalid_value", 400), ("cannot_resume", 0), ("", 502)],
)
def test_other_errors_are_found(code: str, status: int) -> None:
    request = asked(9)
    request.asked_s = 1.0
    request.ended(4.0, ERROR, code, status)
    assert "ended in error" in only(broken(with_request(request)), "ends")


@pytest.mark.parametrize(
    ("early_s", "cut", "status", "fine"),
    [
        (0, False, 404, True),
        (0.001, False, 404, False),
        (0, False, 500, False),
        (3, True, 499, True),
        (3, True, 500, False),
    ],
)
def test_a_reason_may_be_missing_only_when_the_clients_own_time_or_the_connection_was_over(
    early_s: float, cut: bool, status: int, fine: bool
) -> None:
    request = asked(9, response_id="")
    request.asked_s = 1.0
    request.sent(1.0, "gateway-1")
    request.tries[-1].cut = cut
    request.ended(request.deadline_s - early_s, ERROR, "", status)
    violations = broken(with_request(request))
    assert violations == [] if fine else "ended in error" in only(violations, "ends")


def test_an_error_status_behind_the_first_token_is_found_unless_the_stream_was_sent_again() -> None:
    request = answered(9, upto=2)
    request.asked_s = 1.0
    request.ended(6.0, ERROR, "no_replica", 503)
    run = with_request(request)
    assert "behind its first token" in only(broken(run), "ends")
    request.sent(5.0, "gateway-2", f"{RESPONSE_ID}:2")
    assert broken(run) == []


def test_a_gateway_that_is_not_done_with_a_request_in_time_is_found() -> None:
    run = well()
    exchange = run.history.exchange(3.0, 103, 13.0)
    assert "gateway-1 is busy until 30.000 s" in only(broken(run), "ends")
    exchange.ended_s = 13.0 + END_MARGIN_S
    assert broken(run) == []
    exchange.ended_s += 0.001
    assert "had to end by 13.000 s" in only(broken(run), "ends")


def test_a_gateway_that_stood_still_has_to_be_done_once_it_goes_on() -> None:
    run = well()
    exchange = run.history.exchange(3.0, 103, 13.0)
    gateway = run.processes["gateway-1"]
    gateway.froze(12.9)
    assert broken(run) == []
    gateway.thawed(20.0)
    assert "gateway-1 is busy" in only(broken(run), "ends")
    exchange.ended_s = 20.5
    assert broken(run) == []


def test_a_gateway_that_ended_has_nothing_to_be_done_with() -> None:
    run = well()
    run.history.exchange(3.0, 103, 13.0)
    run.processes["gateway-1"].ended(9.0, -9, "fault")
    assert "ends" not in {violation.checker for violation in broken(run)}


def test_what_is_no_kind_of_end_is_found() -> None:
    request = answered(9)
    request.how = "done"
    run = with_request(request)
    assert "in a way that is none" in broken(run)[0].message


def test_ends_are_counted_by_their_error() -> None:
    run = with_request(answered(9))
    for number, (how, code) in enumerate([(ERROR, "b"), (ERROR, "a"), (ERROR, "b"), (UNREACHED, ""), (CANCELLED, "")]):
        request = asked(20 + number)
        request.ended(4.0, how, code, 503)
        run.history.request(request)
    assert error_counts(run.history) == {"a": 1, "b": 2, UNREACHED: 1}
    assert COMPLETE not in error_counts(run.history)


@pytest.mark.parametrize(("counts", "found"), [((2, 3), True), ((3, 3), False)])
def test_a_client_loses_its_stream_to_no_gateway_that_it_left(counts: tuple[int, int], found: bool) -> None:
    request = answered(9, upto=3)
    for number, count in enumerate(counts):
        request.sent(4.0 + number, f"gateway-{number}", f"{RESPONSE_ID}:{count}")
    request.ended(6.0, ERROR, "taken_over")
    assert bool(broken(with_request(request))) is found
