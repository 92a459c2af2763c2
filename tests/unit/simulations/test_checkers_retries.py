"""What is tried again without being allowed, or given up though it was, is found; all else is not."""

from __future__ import annotations

import pytest

from holdfast.core.admission import Reason
from holdfast.simulations.leniency import Limits, Retry
from tests.unit.simulations.recorded import Run, answered, broken, only, well


def tried(ratio: float = 0.0, per_s: float = 0.0, burst: int = 2) -> Run:
    run = well()
    run.history.limits = Limits(1.0, 10.0, 3.0, 8.0, ratio, per_s, burst)
    for number in range(20):
        run.history.exchange(2.0 + number / 10, 103, 30.0).ended_s = 5.0
    return run


def asks(run: Run, at_s: float, *answers: bool, open_streams: int = 1, requests: int = 0) -> Run:
    """The gateway's budget is asked, so often, and answers so."""
    for granted in answers:
        run.history.retries.append(Retry(at_s, "gateway-1", 103, at_s, open_streams, requests, granted))
    return run


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ((True, True, False, False), ""),
        ((True, True, True), "tries again with 0.000"),
        ((False,), "gives up with 2.000"),
    ],
)
def test_a_budget_that_is_overdrawn_or_withheld_is_found(answers: tuple[bool, ...], why: str) -> None:
    run = asks(tried(), 3.0, *answers)
    if why:
        assert why in only(broken(run), "retries")
    else:
        assert not broken(run)


def test_as_many_as_are_open_may_begin_again() -> None:
    assert not broken(asks(tried(), 3.0, True, True, True, True, False, open_streams=4))


def test_requests_and_time_earn_more() -> None:
    run = asks(tried(ratio=0.5), 3.0, True, True, False)
    assert not broken(asks(run, 4.0, True, False, requests=2))
    run = asks(tried(per_s=0.5), 3.0, True, True, False)
    assert not broken(asks(run, 5.0, True, False))
    assert "gives up with 2.000" in only(broken(asks(run, 9.0, False)), "retries")


def test_requests_that_never_came_earn_nothing() -> None:
    run = asks(tried(ratio=0.5), 3.0, True, True, False)
    assert "by 21 requests, and 20 came to it" in only(broken(asks(run, 4.0, True, requests=21)), "retries")


def begun_twice(run: Run, **changes: object) -> Run:
    request = answered(7)
    for name, value in changes.items():
        setattr(request, name, value)
    run.history.request(request)
    for replica in ("app.tiny.1", "app.tiny.2"):
        run.history.attempt(3.0, replica, request.prompt, 0)
    return run


def test_a_stream_that_begins_again_without_the_budget_being_asked_is_found() -> None:
    told = only([one for one in broken(begun_twice(tried())) if one.checker == "retries"], "retries")
    assert "gateway-1 began 1 streams again that had no token, and its budget allowed 0" in told
    assert not [one for one in broken(asks(begun_twice(tried()), 3.0, True)) if one.checker == "retries"]


def test_one_that_leaves_a_replica_that_was_told_to_stop_needs_no_budget() -> None:
    run = begun_twice(tried())
    run.processes["app.tiny.1"].told(2.5, 3.0)
    assert not [one for one in broken(run) if one.checker == "retries"]


def test_a_request_that_is_rejected_for_a_budget_that_was_not_asked_is_found() -> None:
    run = tried()
    request = answered(7)
    request.tries[0].rejected = Reason.RETRY_BUDGET
    run.history.request(request)
    assert "gateway-1 rejected 1 requests for its budget, which refused 0" in only(broken(run), "retries")
    assert not broken(asks(run, 3.0, True, True, False))
