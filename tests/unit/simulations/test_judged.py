"""How much checkers judge: nothing counts that could not have been found wrong, and nothing is missed that could."""

from __future__ import annotations

from holdfast.core.admission import Reason
from holdfast.simulations.checkers import BROKE_OFF, CHECKERS, judge
from holdfast.simulations.plan import SCENARIOS, STANDARD
from holdfast.simulations.records import GATEWAY, KILL
from holdfast.simulations.simulation import draw_plan, run
from holdfast.simulations.strays import KEPT, MISSING, NOBODYS
from tests.unit.simulations.recorded import Run, answered, asked, well


def judged(history_of: Run) -> dict[str, dict[str, int]]:
    """What each checker judged, without those that judged nothing."""
    history_of.history.derived.clear()
    found = judge(history_of.history).judged
    some = {name: {what: number for what, number in things.items() if number} for name, things in found.items()}
    return {name: things for name, things in some.items() if things}


def test_a_run_in_which_all_goes_well_is_judged_by_those_whose_business_it_is() -> None:
    assert judged(well()) == {
        "streams": {"answers": 3},
        "ends": {"requests of clients": 3},
        "wishes": {"decisions": 1, "last wishes": 1},
        "durability": {"acknowledged events": 12, "entries": 12},
        "fold": {"states on the way": 2},
        "leaders": {"entries": 12, "decisions": 4, "elections": 1},
        "fences": {"decisions": 4},
        "placements": {"placements": 2, "processes of replicas": 2},
        "capacity": {"placements": 2, "processes of replicas": 2},
        "facts": {"starts and ends that are told": 2},
        "orphans": {"processes of replicas": 2, "replicas of the log": 2},
        "members": {"members that run": 3},
        "liveness": {"runs with a goal": 1},
    }


def test_of_a_run_that_raised_nothing_is_judged() -> None:
    broken = well()
    broken.history.broke_off(5.0, "KeyError")
    assert judged(broken) == {}
    assert [one.checker for one in judge(broken.history).violations] == [BROKE_OFF]


def test_every_checker_says_how_much_of_everything_it_judged_in_each_run() -> None:
    result, history = run(draw_plan(1, SCENARIOS[STANDARD]))
    assert {name: list(things) for name, things in result.judged.items()} == {
        checker.__name__: list(things) for checker, things in CHECKERS.items()
    }
    assert result.judged["streams"] == {"answers": sum(bool(request.events) for request in history.requests)}
    assert result.judged["durability"]["acknowledged events"] == len(history.acknowledged)
    assert result.judged["fold"]["states of processes"] == len(history.folded)
    assert result.judged["bounds"] == {"queues and buffers": len(history.samples)}


def test_every_checker_has_something_to_judge_in_some_scenario() -> None:
    names = {checker.__name__ for checker in CHECKERS}
    for scenario in SCENARIOS.values():
        assert names >= set(scenario.idle)
    assert not set.intersection(*(set(scenario.idle) for scenario in SCENARIOS.values()))


def test_a_request_that_has_no_end_yet_is_not_judged_before_its_time_is_over() -> None:
    late = well()
    late.history.requests.clear()
    request = late.history.request(asked(7))
    request.asked_s, request.deadline_s = 25.0, 35.0
    late.history.process_began(0.5, "gateway-2", GATEWAY, "host", 200)
    late.history.exchange(25.0, 200, 35.0)
    assert "ends" not in judged(late)
    late.history.ended_s = 40.0
    assert judged(late)["ends"] == {"requests of clients": 1, "requests at gateways": 1}


def test_what_nobody_wants_counts_where_its_engine_had_more_to_do_than_it_may() -> None:
    for max_tokens, fault, count in ((100, "", 1), (20, "", 0), (100, "freeze", 0)):
        cancelled = well()
        cancelled.history.token_s = 0.1
        request = answered(7, upto=2, max_tokens=max_tokens)
        cancelled.history.request(request)
        cancelled.history.attempt(19.1, "app.tiny.1", request.prompt, 0).last_s = 20.1
        cancelled.history.cancellation(19.9, 7, KILL).told_s = 20.0
        if fault:
            cancelled.history.fault(19.0, fault, "gateway-1", until_s=20.0)
        assert judged(cancelled).get("cancels", {}) == ({"streams that nobody wants": 1} if count else {})


def test_only_those_count_as_shed_that_gave_way_to_others() -> None:
    for reason, count in ((Reason.DISPLACED, 1), (Reason.PRIORITY, 1), (Reason.QUEUE_AGE, 0)):
        shed = well()
        request = shed.history.request(answered(7))
        request.tries[0].rejected = reason
        assert judged(shed).get("shedding", {}) == ({"rejections in favour of others": 1} if count else {})


def test_streams_that_lost_their_replicas_count_whether_they_were_given_up_or_not() -> None:
    for attempts_max, begun, lost_s, count in ((4, 2, None, 1), (4, 1, None, 0), (4, 3, 14.0, 1), (1, 1, 14.0, 0)):
        moved = well()
        moved.history.attempts_max = attempts_max
        request = moved.history.request(answered(7))
        exchange = moved.history.exchange(11.0, 103, 40.0)
        exchange.request, exchange.ended_s, exchange.lost_s = request.id, 14.0, lost_s
        for _ in range(begun):
            moved.history.stream_begun(12.0, 103, 5.0, prompt=request.prompt)
        assert judged(moved).get("given_up", {}) == ({"streams that lost their replicas": 1} if count else {})


def test_streams_that_faults_explain_are_looked_at_in_vain() -> None:
    looked = well()
    for what in (NOBODYS, MISSING, KEPT):
        looked.history.looked_at(20.0, what, "app.tiny.1", "gateway-1")
    things = ("streams that replicas have for gateways", "streams that gateways wait for", "streams without a gateway")
    assert judged(looked)["owners"] == dict.fromkeys(things, 1)
    fault = looked.history.fault(10.0, "freeze", "gateway-1")
    assert judged(looked)["owners"] == {"streams without a gateway": 1}  # a gateway's troubles are no replica's
    fault.until_s = 17.0
    assert judged(looked)["owners"] == dict.fromkeys(things, 1)
    fault.target = "app.tiny.1"
    fault.until_s = 19.0
    assert "owners" not in judged(looked)
