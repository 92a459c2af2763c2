"""A cluster that is well serves each request; and each reason for which it need not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.core.thresholds import ThresholdChanges, Thresholds
from holdfast.simulations.records import CANCELLED, ERROR, UNREACHED, Request, Settle
from tests.unit.simulations.recorded import EPOCH_1, Run, answered, asked, broken, only, well

NO_ROOM = ("overloaded", "no_replica", "deadline_exceeded")
STATUS = {"deadline_exceeded": 504, "model_not_found": 404}
CORE = ("node-1", "node-2", "gateway-1")
ASKED_S = 18.0
FOUND = "while all had been well since 12.000 s"
ROOM = 6
"""So many streams the two replicas take at once."""


def failed(
    run: Run,
    number: int = 9,
    how: str = ERROR,
    code: str = "",
    *,
    after_s: float = 3.0,
    time_s: float = 9.0,
    **more: Any,
) -> Request:
    """A request that fails so long after it was asked, in the run."""
    request = asked(number, response_id="", **more)
    request.asked_s, request.deadline_s = ASKED_S, ASKED_S + time_s
    request.sent(ASKED_S, "gateway-1")
    request.ended(ASKED_S + after_s, how, code, STATUS.get(code, 503) if code else 0)
    return run.history.request(request)


def crowd(run: Run, streams: int, *, at_s: float = ASKED_S - 1.0, model: str = "tiny") -> None:
    """So many others that want a stream from then on, for a while."""
    for number in range(100, 100 + streams):
        other = answered(number)
        other.model, other.asked_s, other.deadline_s, other.ended_s = model, at_s, at_s + 9.0, at_s + 2.0
        run.history.request(other)


def found(run: Run) -> list[str]:
    """What is said of requests that were not served."""
    return [one.message for one in broken(run) if one.checker == "liveness"]


@pytest.mark.parametrize(
    ("how", "code"), [(UNREACHED, ""), *((ERROR, code) for code in (*NO_ROOM, "stream_lost", "gateway_stopping"))]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_that_fails_in_a_cluster_that_is_well_is_found(how: str, code: str, streamed: bool) -> None:
    run = well()
    request = failed(run, how=how, code=code, streamed=streamed)
    assert FOUND in only(broken(run), "liveness")
    request.asked_s = 11.0
    assert broken(run) == []


@pytest.mark.parametrize(("how", "code"), [(CANCELLED, ""), (ERROR, "request_cancelled"), (ERROR, "parent_cancelled")])
def test_a_client_may_leave_and_requests_may_be_cancelled(how: str, code: str) -> None:
    run = well()
    failed(run, how=how, code=code)
    assert found(run) == []


def test_a_model_is_unknown_only_where_it_is_not_deployed() -> None:
    run = well()
    request = failed(run, code="model_not_found")
    assert FOUND in only(broken(run), "liveness")
    request.model = "huge"
    assert broken(run) == []


@pytest.mark.parametrize(("how", "code"), [(UNREACHED, ""), *((ERROR, code) for code in NO_ROOM)])
def test_more_streams_than_replicas_take_may_find_no_room(how: str, code: str) -> None:
    run = well()
    failed(run, how=how, code=code)
    crowd(run, ROOM - 1)
    assert FOUND in only(broken(run), "liveness")
    crowd(run, ROOM)
    assert broken(run) == []


def test_choices_are_streams_of_their_own() -> None:
    run = well()
    failed(run, code="no_replica", n=2)
    crowd(run, ROOM - 1)
    assert broken(run) == []


def test_streams_of_another_model_or_of_long_ago_take_no_room() -> None:
    run = well()
    failed(run, code="no_replica")
    crowd(run, ROOM, model="huge")
    crowd(run, ROOM, at_s=ASKED_S - 8.0)
    assert FOUND in only(broken(run), "liveness")


def test_no_crowd_explains_that_streams_are_lost_or_a_model_is_unknown() -> None:
    run = well()
    failed(run, code="model_not_found")
    failed(run, 10, code="stream_lost")
    crowd(run, ROOM)
    assert len(found(run)) == 2


def test_thresholds_that_operators_set_explain_that_requests_are_rejected() -> None:
    run = well()
    failed(run, code="overloaded")
    failed(run, 10, code="no_replica")
    assert len(found(run)) == 2
    run.at_s = 11.0
    asked_for = ThresholdChanges(requests_in_flight_threshold=2)
    run.fact(ev.BusyThresholdRequested("gateway-1", "tiny", asked_for), "gateway.gateway-1")
    wish = run.history.appended[-1].message_id
    thresholds = Thresholds(requests_in_flight_threshold=2)
    decided = run.event(ev.BusyThresholdSet("tiny", thresholds), *run.leader, EPOCH_1)
    run.append("decisions", msgspec.structs.replace(decided, cause=wish))
    assert [message.split(" ended")[0] for message in found(run)] == ["request 10"]


# --- time -----------------------------------------------------------------------------------------------


def slow(run: Run) -> Run:
    """The same, where five tokens take 5.5 s, and what else a request takes another second at most."""
    run.history.first_token_s, run.history.token_s = 0.5, 1.0
    return run


def drawn(request: Request, *, until_s: float, finished: bool = False) -> None:
    """An engine drew its tokens until then."""
    request.attempts.clear()
    request.attempts.append(Run().history.attempt(request.tries[-1].at_s, "app.tiny.1", "", 0))
    request.attempts[0].last_s, request.attempts[0].finished = until_s, finished


@pytest.mark.parametrize(("how", "code"), [(UNREACHED, ""), (ERROR, "deadline_exceeded")])
@pytest.mark.parametrize(("time_s", "is_found"), [(6.4, False), (6.6, True)])
def test_a_client_may_give_its_tokens_too_little_time(how: str, code: str, time_s: float, is_found: bool) -> None:
    run = slow(well())
    drawn(failed(run, how=how, code=code, after_s=time_s, time_s=time_s), until_s=ASKED_S + time_s)
    assert bool(found(run)) is is_found


@pytest.mark.parametrize(("timeout_s", "is_found"), [(6.4, False), (6.6, True)])
def test_it_may_ask_gateways_for_too_little_time(timeout_s: float, is_found: bool) -> None:
    run = slow(well())
    request = failed(run, code="deadline_exceeded", after_s=timeout_s, timeout_s=timeout_s)
    drawn(request, until_s=ASKED_S + timeout_s)
    assert bool(found(run)) is is_found


def test_what_a_client_takes_nothing_for_is_its_own_time() -> None:
    run = slow(well())
    request = failed(run, how=UNREACHED, after_s=9.0)
    drawn(request, until_s=ASKED_S + 7.0)
    assert FOUND in only(broken(run), "liveness")
    request.paused_s = 2.6
    assert broken(run) == []


def test_short_time_explains_no_stream_that_stands_still() -> None:
    run = slow(well())
    request = failed(run, how=UNREACHED, after_s=6.0, time_s=6.0)
    assert FOUND in only(broken(run), "liveness"), "no engine ever had it"
    drawn(request, until_s=ASKED_S + 3.4)
    assert FOUND in only(broken(run), "liveness")
    drawn(request, until_s=ASKED_S + 3.6)
    assert broken(run) == []
    drawn(request, until_s=ASKED_S + 3.4, finished=True)
    assert broken(run) == [], "there was no more to come"


def test_short_time_explains_no_rejection() -> None:
    run = slow(well())
    request = failed(run, how=UNREACHED, after_s=1.0, time_s=1.0)
    assert broken(run) == []
    request.tries[-1].rejected = "no_replica"
    assert FOUND in only(broken(run), "liveness")


@pytest.mark.parametrize(("parents_s", "is_found"), [(3.0, False), (1.0, True), (4.0, True), (0.0, True)])
def test_a_request_ends_with_the_time_of_the_one_that_it_belongs_to(parents_s: float, is_found: bool) -> None:
    run = well()
    parent = answered(8, timeout_s=parents_s)
    parent.tries[0].at_s = ASKED_S
    run.history.request(parent)
    failed(run, code="deadline_exceeded", after_s=3.0, parent=8)
    assert bool(found(run)) is is_found


# --- a healthy core -------------------------------------------------------------------------------------


def core() -> Run:
    """The same beside a gateway to which anything may have happened."""
    run = well()
    run.at_s = 3.0
    run.gateway("gateway-2", 902)
    run.history.settle = Settle(10.0, 5.0, CORE)
    assert broken(run) == []
    return run


def test_beside_a_healthy_core_the_last_try_is_judged() -> None:
    run = core()
    request = failed(run, code="no_replica")
    assert FOUND in only(broken(run), "liveness")
    request.sent(ASKED_S + 1.0, "gateway-2")
    assert broken(run) == []
    request.sent(ASKED_S + 2.0, "gateway-1")
    assert FOUND in only(broken(run), "liveness")


def test_tries_outside_of_the_core_cost_time() -> None:
    run = slow(core())
    request = failed(run, how=UNREACHED, after_s=9.0)
    request.tries[0].gateway = "gateway-2"
    request.sent(ASKED_S + 2.4, "gateway-1")
    drawn(request, until_s=ASKED_S + 9.0)
    assert FOUND in only(broken(run), "liveness")
    request.tries[-1].at_s = ASKED_S + 2.6
    assert broken(run) == []


def test_in_a_core_only_its_replicas_have_room_and_others_gateways_may_keep_it() -> None:
    run = core()
    failed(run, code="no_replica")
    crowd(run, ROOM - 1)
    assert FOUND in only(broken(run), "liveness")
    run.history.settle = Settle(10.0, 5.0, ("node-1", "gateway-1"))
    assert broken(run) == []


def test_what_a_gateway_outside_of_the_core_began_may_stay_until_its_time_is_over() -> None:
    run = core()
    failed(run, code="no_replica")
    crowd(run, ROOM, at_s=ASKED_S - 7.0)
    assert FOUND in only(broken(run), "liveness")
    for other in run.history.requests:
        if other.id >= 100:
            other.tries[0].gateway = "gateway-2"
    assert broken(run) == []
