"""Starts without a pause, streams that are begun too often, and requests that are blamed for others, are found."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.simulations.records import ERROR, POISONED, REPLICA, Request
from tests.unit.simulations.recorded import EPOCH_1, Run, answered, broken, only, well

FIRST_PAUSE_S = 0.5

# --- starts ---------------------------------------------------------------------------------------------


def fails(run: Run, at_s: float) -> str:
    """The first replica's start fails (it had not been ready for long); the event's id."""
    run.at_s = at_s
    run.processes["app.tiny.1"].ended(at_s, 1, "a fault")
    run.fact(ev.ReplicaExited("app.tiny.1", "node-1", 111, 1, None, False, "boom"), "node.node-1")
    return run.history.appended[-1].message_id


def replaced(run: Run, cause: str, at_s: float, *, clock_s: float = 0.0) -> None:
    """Another takes its place, by a leader whose clock is wrong by so much."""
    run.at_s = at_s
    placed = ev.ReplicaReplaced("app.tiny.3", "app", "tiny", "node-1", "i1", replaces="app.tiny.1", reason="boom")
    event = run.event(placed, *run.leader, EPOCH_1)
    event = msgspec.structs.replace(event, cause=cause, time=event.time + timedelta(seconds=clock_s))
    run.append("decisions", event)
    run.starts("app.tiny.3", "node-1", 120)
    run.history.gateway_reaches(at_s, "gateway-1", ("app.tiny.2", "app.tiny.3"))


def test_a_start_without_the_pause_after_a_failed_one_is_found() -> None:
    run = well()
    replaced(run, fails(run, 6.0), 6.0 + FIRST_PAUSE_S - 0.1)
    message = only(broken(run), "starts")
    assert "app.tiny.3 is placed for app.tiny.1 before the pause after 1 failed starts is over" in message


def test_a_start_after_the_pause_passes() -> None:
    run = well()
    replaced(run, fails(run, 6.0), 6.0 + FIRST_PAUSE_S)
    assert broken(run) == []


def test_a_leaders_clock_that_jumps_between_plan_and_decision_is_a_reason() -> None:
    run = well()
    replaced(run, fails(run, 6.0), 7.0, clock_s=-0.9)
    assert only(broken(run), "starts")
    run.history.fault(6.9, "clock jump", "host-node-1", until_s=6.9)
    assert broken(run) == []


def test_a_replica_that_had_been_stable_is_replaced_at_once() -> None:
    run = well()
    replaced(run, fails(run, 13.0), 13.1)
    assert "starts" not in {violation.checker for violation in broken(run)}


# --- attempts -------------------------------------------------------------------------------------------


def begun(run: Run, request: Request, *replicas: str) -> Request:
    """The request is begun on these, one after the other."""
    run.history.request(request)
    for number, replica in enumerate(replicas):
        run.history.attempt(3.0 + 0.1 * number, replica, request.prompt, 0)
    return request


@pytest.mark.parametrize(("most", "found"), [(2, True), (3, False), (None, False)])
def test_a_stream_that_is_begun_more_often_than_it_may_be_is_found(most: int | None, found: bool) -> None:
    run = well()
    run.history.attempts_max = most
    begun(run, answered(7), "app.tiny.1", "app.tiny.2", "app.tiny.1")
    assert bool(broken(run)) is found
    if found:
        assert "request 7 was begun 3 times, and 2 times are allowed" in only(broken(run), "attempts")


def test_each_try_and_each_choice_counts() -> None:
    run = well()
    run.history.attempts_max = 1
    begun(run, answered(7, n=2), "app.tiny.1", "app.tiny.1")
    request = begun(run, answered(8), "app.tiny.1", "app.tiny.2")
    request.sent(4.0, "gateway-1", f"{request.response_id}:3")
    assert broken(run) == []


def poisoned(run: Run) -> Request:
    """A request that breaks engines, asked for at 3 s."""
    request = answered(9, poisoned=True, upto=0)
    request.ended(3.9, ERROR, "stream_lost", 503)
    return request


def test_one_that_breaks_engines_is_begun_three_times_at_most() -> None:
    run = well()
    run.history.attempts_max = 11
    request = begun(run, poisoned(run), *["app.tiny.1"] * 3)
    assert broken(run) == []
    run.history.attempt(3.5, "app.tiny.1", request.prompt, 0)
    assert "request 9 was begun 4 times, and 3 times are allowed" in only(broken(run), "attempts")
    ended = run.history.process_began(0.0, "app.tiny.9", REPLICA, "host-node-1", 119, replica="app.tiny.9")
    ended.ended(3.51, 1, "a fault")
    request.attempts[-1] = msgspec.structs.replace(request.attempts[-1], replica="app.tiny.9")
    assert "attempts" not in {violation.checker for violation in broken(run)}, "its gateway never heard of that one"


def blamed() -> tuple[Run, Request]:
    """A request that ended as one that breaks engines, while another broke them."""
    run = well()
    run.history.attempts_max = 11
    begun(run, poisoned(run), *["app.tiny.1"] * 3)
    run.history.fault(3.1, POISONED, "app.tiny.1", until_s=3.1)
    request = answered(8, upto=0)
    request.ended(3.8, ERROR, "stream_lost", 503)
    return run, begun(run, request, *["app.tiny.1"] * 3)


def test_a_request_that_ends_because_of_another_is_found() -> None:
    run, _ = blamed()
    assert only(broken(run), "attempts") == "request 8 was ended for breaking engines, and another one broke them"


@pytest.mark.parametrize("why", ["another gateway", "two of them", "another fault", "all its attempts"])
def test_where_its_gateway_could_not_know_better_it_may_end(why: str) -> None:
    run, request = blamed()
    if why == "another gateway":
        request.tries[0].gateway = "gateway-2"
    elif why == "two of them":
        again = answered(10, poisoned=True, upto=0)
        again.ended(3.9, ERROR, "stream_lost", 503)
        begun(run, again, "app.tiny.1")
    elif why == "another fault":
        run.history.fault(3.0, "replica crash", "app.tiny.1", until_s=3.0)
    else:
        run.history.attempts_max = 3
    assert "attempts" not in {violation.checker for violation in broken(run)}
