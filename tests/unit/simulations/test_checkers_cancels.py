"""Requests that somebody ended: engines that go on for them are found, and wrong ends of those that were stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.simulations.records import CANCELLED, COMPLETE, ERROR, FINISH, KILL, STOP, Request
from tests.unit.simulations.recorded import Run, answered, broken, only, well

OVER_S = 20.0


def ended(**changes: object) -> tuple[Run, Request]:
    """A request of which two tokens came, asked at 19 s; its engine drew one at 20.5 s. It was killed at 20 s."""
    run = well()
    request = answered(7, upto=2, **changes)
    request.asked_s, request.deadline_s, request.last_s = 19.0, 29.0, 19.8
    request.tries[0].at_s = 19.0
    run.history.request(request)
    run.history.attempt(19.1, "app.tiny.1", request.prompt, 0).last_s = OVER_S + 0.5
    run.history.cancellation(OVER_S - 0.1, 7, KILL).told_s = OVER_S
    request.ended(OVER_S, ERROR, "request_cancelled")
    return run, request


def goes_on(request: Request) -> None:
    """Its engine draws tokens until much later."""
    request.attempts[0].last_s = 25.0


def child_of(run: Run, number: int, parent: int) -> Request:
    """A request that belongs to another, and whose engine goes on."""
    child = answered(number, upto=2, parent=parent)
    child.asked_s, child.deadline_s, child.last_s = 19.0, 29.0, 19.8
    child.tries[0].at_s = 19.0 + (number - 7) / 4
    run.history.request(child)
    run.history.attempt(child.tries[0].at_s, "app.tiny.2", child.prompt, 0).last_s = 24.0
    child.ended(OVER_S, ERROR, "parent_cancelled")
    return child


def test_an_engine_that_goes_on_for_a_cancelled_request_is_found() -> None:
    run, request = ended()
    assert broken(run) == []
    goes_on(request)
    message = only(broken(run), "cancels")
    assert message == "request 7 was cancelled (kill) at 20.000 s, and it got a token on app.tiny.1 at 25.000 s"


def test_one_that_goes_on_for_what_belongs_to_it_is_found_at_any_depth() -> None:
    run, _ = ended()
    child_of(run, 8, 7)
    child_of(run, 9, 8)
    found = only(broken(run), "cancels").splitlines()
    assert [line.split("and request ")[1].split(",")[0] for line in found] == ["8", "9"]


def test_a_child_that_came_before_its_parent_may_go_on() -> None:
    run, _ = ended()
    child_of(run, 8, 7).tries[0].at_s = 19.0
    assert broken(run) == []


def test_children_of_one_that_was_done_before_its_client_left_or_its_time_was_over_go_on() -> None:
    run, request = ended()
    run.history.cancellations.clear()
    child = child_of(run, 8, 7)
    child.how, child.code = COMPLETE, ""
    child.events.clear()
    request.how, request.code = CANCELLED, ""
    request.attempts[0].finished = True
    assert [one.checker for one in broken(run)] == ["streams"]
    request.attempts[0].finished = False
    assert "request 8" in "".join(one.message for one in broken(run) if one.checker == "cancels")


def test_one_that_goes_on_after_its_client_left_or_its_time_was_over_is_found() -> None:
    for changes, how, why in (({}, CANCELLED, "client"), ({"timeout_s": 1.0}, ERROR, "time")):
        run, request = ended(**changes)
        run.history.cancellations.clear()
        request.how, request.code = how, "deadline_exceeded" if how == ERROR else ""
        run.history.token_s = 1.0  # it asked for too little time
        assert broken(run) == []
        goes_on(request)
        assert why in only(broken(run), "cancels")


def _unheard(run: Run, _request: Request) -> None:
    run.history.cancellations[0].told_s = None


def _new_attempt(_run: Run, request: Request) -> None:
    request.attempts[0].at_s = OVER_S + 0.1


def _fault(run: Run, _request: Request) -> None:
    run.history.fault(18.0, "partition", "a>b", until_s=19.0)


def _restart(run: Run, _request: Request) -> None:
    run.processes["gateway-1"].told(21.0, 1.0)


def _run_is_over(run: Run, _request: Request) -> None:
    run.history.ended_s = 21.0
    run.history.settle = None


@pytest.mark.parametrize("excuse", [_unheard, _new_attempt, _fault, _restart, _run_is_over])
def test_what_may_go_on_is_not_blamed(excuse: Callable[[Run, Request], None]) -> None:
    run, request = ended()
    goes_on(request)
    excuse(run, request)
    assert [one for one in broken(run) if one.checker == "cancels"] == []


def test_a_fault_of_the_servers_excuses_nothing() -> None:
    run, request = ended()
    goes_on(request)
    run.history.fault(18.0, "log: acks lost", "log", until_s=25.0)
    only(broken(run), "cancels")


def test_only_who_was_cancelled_may_end_as_such() -> None:
    run, request = ended()
    run.history.cancellations.clear()
    assert "request_cancelled" in only(broken(run), "ends")
    request.code = "parent_cancelled"
    assert "parent_cancelled" in only(broken(run), "ends")
    request.parent = 3
    assert broken(run) == []


def stopped(**changes: object) -> tuple[Run, Request]:
    """It was stopped, and ended well after two tokens."""
    run = well()
    request = answered(7, upto=2, **changes)
    request.got(4.5, FINISH, 0, "stop", request.events[-1][3] if request.streamed else "")
    request.ended(5.0, COMPLETE)
    run.history.request(request)
    run.history.cancellation(4.0, 7, STOP)
    return run, request


def test_who_was_stopped_may_have_less_and_nobody_else() -> None:
    run, request = stopped()
    assert broken(run) == []
    run.history.cancellations[0].mode = KILL
    assert "finished after 2 of 5 tokens" in only(broken(run), "streams")
    run.history.cancellations[0].mode = STOP
    run.history.cancellations[0].request = 5
    assert "finished after 2 of 5 tokens" in only(broken(run), "streams")
    request.parent = 5
    assert broken(run) == []


def test_what_was_stopped_must_still_be_right_and_its_usage_too() -> None:
    run, request = stopped(wants_usage=True)
    request.usage = None
    assert "the usage came 0 times" in only(broken(run), "streams")
    for usage, is_right in (((5, 2), True), ((0, 2), True), ((5, 3), False), ((6, 2), False)):
        run, request = stopped(wants_usage=True)
        request.events.append(("usage", 0, "", request.events[-1][3]))
        request.usage = usage
        assert (broken(run) == []) == is_right, usage
    run, request = stopped()
    kind, choice, _text, event_id = request.events[1]
    request.events[1] = (kind, choice, " wrong", event_id)
    assert "must be" in only(broken(run), "streams")


def test_a_whole_answer_that_was_stopped_ends_between_two_tokens() -> None:
    run, request = stopped(streamed=False)
    whole = request.events[0][2]
    for text, used, is_right in (("", 0, True), (" ".join(whole.split(" ")[:3]), 2, True), (whole[:-1], 5, False)):
        request.events[0] = ("whole", 0, text, "")
        request.events[1:] = [("finish", 0, "stop", ""), ("usage", 0, "", "")]
        request.usage = (5, used)
        assert (broken(run) == []) == is_right, text


def test_a_whole_answer_that_was_stopped_may_have_used_less_than_the_stop_string_that_ends_the_same_text() -> None:
    fourth = answered(7).events[4][2]
    # With the fourth token the string is complete: the text of three is all, and four were drawn.
    for used, is_right in ((2, False), (3, True), (4, True), (5, False)):
        run, request = stopped(streamed=False, stops=(fourth,))
        request.events[:] = [("whole", 0, request.events[0][2], ""), ("finish", 0, "stop", ""), ("usage", 0, "", "")]
        request.usage = (5, used)
        assert (broken(run) == []) == is_right, used
    run.history.cancellations.clear()
    request.usage = (5, 3)
    assert "the usage is (5, 3), and must be (5, 4)" in only(broken(run), "streams")


def test_what_may_have_become_a_stop_string_is_there_where_it_was_stopped_before() -> None:
    plain = answered(7, upto=2)
    texts = [text for kind, _choice, text, _id in plain.events if kind == "token"]
    run, request = stopped(stops=(texts[1][-2:] + "never",))
    assert broken(run) == []
    for cut, is_right in ((texts[1], True), (texts[1][:-3], False)):
        # The string would have been complete with the third token.
        third = " ".join(["", *answered(7).events[2][2].split()])
        run, request = stopped(stops=(texts[1][-2:] + third[:3],))
        kind, choice, _text, event_id = request.events[1]
        request.events[1] = (kind, choice, cut, event_id)
        assert (broken(run) == []) == is_right, cut
