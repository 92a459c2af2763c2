"""A call's machine: whatever breaks wherever, each event once and in order, and then an end, within its limits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.gateway.client import (
    ApiError,
    BadAnswer,
    CannotResume,
    ClientError,
    ConnectionFailed,
    DeadlinePassed,
    Refused,
    RetryPolicy,
    ServerFault,
    StreamBroken,
    Unavailable,
)
from holdfast.gateway.client.machine import Call, CallMachine
from holdfast.gateway.client.setup import CHAT
from holdfast.gateway.client.steps import (
    Answered,
    Begin,
    Deliver,
    Delivered,
    Ended,
    Fail,
    Failed,
    Open,
    Pause,
    Read,
    Received,
    Woke,
)
from tests.unit.client.fleet import EVENTS, Fault, Fleet, answer, continued, datas, shared_of

POLICY = RetryPolicy(jitter=0.0)
STEADY = replace(POLICY, retries_max=50, tries_max=500, deadline_s=1e6, budget_burst=1e6)
"""Limits that no test's schedule reaches."""

faults = st.builds(
    Fault,
    st.sampled_from(["connect", "silent", "status", "cut", "polite_end", "stall", "error_event"]),
    st.integers(0, 5000),
    st.sampled_from([400, 404, 408, 429, 500, 502, 503, 504, 529]),
    st.sampled_from(["stream_lost", "gateway_stopping"]),
    st.sampled_from([None, "0", "2", "86400"]),
)
passing = st.builds(
    Fault,
    st.sampled_from(["connect", "silent", "status", "cut", "polite_end", "stall", "error_event"]),
    st.integers(0, 5000),
    st.sampled_from([408, 429, 502, 503, 504, 529]),
    st.just("gateway_stopping"),
    st.sampled_from([None, "1"]),
)
sizes = st.lists(st.integers(1, 400), max_size=5)
policies = st.builds(
    RetryPolicy,
    deadline_s=st.floats(0.01, 200),
    try_timeout_s=st.floats(0.01, 60),
    retries_max=st.integers(0, 6),
    tries_max=st.integers(1, 10),
    budget_burst=st.floats(0, 5),
    budget_per_s=st.floats(0, 0.2),
    jitter=st.floats(0, 1),
)


@given(st.lists(faults, max_size=12), sizes, policies, st.integers(1, 3), st.floats(0, 1), st.floats(0, 0.99))
def test_any_schedule_of_faults_gives_a_prefix_then_one_typed_end_within_all_limits(
    schedule: list[Fault], pieces: list[int], policy: RetryPolicy, choices: int, tick_s: float, draw: float
) -> None:
    sent = answer(choices=choices)
    run = Fleet(sent, schedule, pieces, tick_s).run(shared_of(policy, rand=lambda: draw))
    got = [event.data for event in run.events]
    assert got == datas(sent)[: len(got)]
    assert run.finished == (run.error is None)
    assert not run.finished or got == datas(sent)
    assert run.error is None or (type(run.error) is not ClientError and run.error.tries == len(run.opens))
    # A tick that is under way when the deadline passes is the fleet's, not the client's.
    assert run.elapsed_s <= policy.deadline_s + tick_s + 1e-6
    assert 1 <= len(run.opens) <= policy.tries_max
    assert sum(run.pauses) < policy.deadline_s


@given(st.lists(passing, max_size=20), sizes, st.integers(1, 3))
def test_faults_that_pass_leave_nothing_missing_repeated_or_out_of_order(
    schedule: list[Fault], pieces: list[int], choices: int
) -> None:
    sent = answer(choices=choices)
    run = Fleet(sent, schedule, pieces).run(shared_of(STEADY))
    assert run.error is None
    assert [event.data for event in run.events] == datas(sent)


def test_a_cut_at_each_byte_is_resumed_behind_the_last_whole_event() -> None:
    sent = answer(3, choices=2)
    for at in range(sum(len(event.bytes()) for event in sent) - len("data: [DONE]\n\n")):
        run = Fleet(sent, [Fault("cut", at)], [7]).run(shared_of(POLICY))
        assert run.finished
        assert [event.data for event in run.events] == datas(sent)
        assert run.pauses == [0.1]


@given(st.lists(st.lists(passing, max_size=8), min_size=1, max_size=12), st.floats(0, 4), st.floats(0, 1))
@settings(max_examples=50)
def test_all_calls_of_a_client_together_stay_within_its_budget(
    schedules: list[list[Fault]], burst: float, per_s: float
) -> None:
    policy = replace(STEADY, budget_burst=burst, budget_per_s=per_s, budget_ratio=0.1)
    shared = shared_of(policy)
    now, paid = 0.0, 0
    for schedule in schedules:
        fleet = Fleet(answer(), schedule, [])
        fleet.now = now
        run = fleet.run(shared)
        paid += run.fruitful[:-1].count(False)
        now = fleet.now
    assert paid <= burst + 0.1 * len(schedules) + per_s * now + 1e-6


def test_retries_wait_as_documented_and_go_to_the_other_gateway_first() -> None:
    run = Fleet(answer(), [Fault("connect")] * 9, []).run(shared_of(POLICY))
    assert run.pauses == pytest.approx([0.1, 0.4, 1.6, 6.4, 25.6])
    assert [open_.url for open_ in run.opens] == [f"http://g{n % 2}{CHAT}" for n in range(6)]
    assert isinstance(run.error, ConnectionFailed)
    assert "5 retries in a row" in str(run.error)
    assert "6 tries" in str(run.error)


def test_an_event_delivered_makes_the_next_pause_short_again() -> None:
    sent = answer(40)
    schedule = [Fault("cut", 600), Fault("connect"), Fault("cut", 600), Fault("connect")]
    run = Fleet(sent, schedule, []).run(shared_of(POLICY))
    assert run.pauses == pytest.approx([0.1, 0.4, 0.1, 0.4])
    assert run.finished


def test_the_first_resume_after_progress_costs_nothing_the_second_does() -> None:
    policy = replace(POLICY, budget_burst=0.0, budget_per_s=0.0)
    assert Fleet(answer(), [Fault("cut", 600)], []).run(shared_of(policy)).finished
    run = Fleet(answer(), [Fault("cut", 600), Fault("connect")], []).run(shared_of(policy))
    assert isinstance(run.error, StreamBroken)
    assert "budget" in str(run.error)
    assert run.error.last_event_id == run.events[-1].id


@pytest.mark.parametrize(("before", "taken_back"), [([], False), ([Fault("cut", 600)], True)])
def test_a_stream_that_an_earlier_try_took_is_taken_back_and_nobody_elses(
    before: list[Fault], taken_back: bool
) -> None:
    run = Fleet(answer(40), [*before, Fault("error_event", 900, code="taken_over")], []).run(shared_of(POLICY))
    assert run.finished is taken_back
    if not taken_back:
        assert isinstance(run.error, ApiError)
        assert run.error.code == "taken_over"
        assert len(run.opens) == 1


def test_streams_that_are_taken_again_and_again_are_given_up() -> None:
    policy = replace(POLICY, tries_max=4)
    faults = [Fault("cut", 600), *[Fault("error_event", 10, code="taken_over")] * 50]
    run = Fleet(answer(40), faults, []).run(shared_of(policy))
    assert isinstance(run.error, StreamBroken)
    assert len(run.opens) <= policy.tries_max


def test_a_server_that_brings_one_event_per_try_is_left_after_tries_max() -> None:
    policy = replace(POLICY, tries_max=4)
    run = Fleet(answer(100), [Fault("cut", 200)] * 50, []).run(shared_of(policy))
    assert isinstance(run.error, StreamBroken)
    assert len(run.opens) == 4


@pytest.mark.parametrize(("given_s", "waited"), [("3", 3.0), ("0", 0.1), ("9999", 60.0), ("soon", 0.1)])
def test_retry_after_is_honoured_up_to_the_cap(given_s: str, waited: float) -> None:
    run = Fleet(answer(), [Fault("status", status=429, retry_after=given_s)], []).run(shared_of(POLICY))
    assert run.pauses == pytest.approx([waited])
    assert run.finished


def test_a_pause_that_would_pass_the_deadline_is_not_begun() -> None:
    fault = Fault("status", status=503, retry_after="30")
    run = Fleet(answer(), [fault], []).run(shared_of(POLICY), deadline_s=10.0)
    assert isinstance(run.error, DeadlinePassed)
    assert isinstance(run.error.__cause__, Unavailable)
    assert run.error.__cause__.retry_after_s == 30.0
    assert run.elapsed_s == 0.0


def test_silence_is_cut_short_by_the_deadline() -> None:
    run = Fleet(answer(), [Fault("stall", 600)], []).run(shared_of(POLICY), deadline_s=15.0)
    assert isinstance(run.error, DeadlinePassed)
    assert run.elapsed_s == pytest.approx(15.0)
    assert run.events


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (401, Refused), (404, Refused), (500, ServerFault), (307, ServerFault)]
)
def test_other_statuses_end_the_call_at_once(status: int, kind: type[ClientError]) -> None:
    run = Fleet(answer(), [Fault("status", status=status)], []).run(shared_of(POLICY))
    assert type(run.error) is kind
    assert len(run.opens) == 1


def test_a_refused_resume_says_so_and_keeps_the_refusal_as_its_cause() -> None:
    run = Fleet(answer(), [Fault("cut", 600), Fault("status", status=400)], []).run(shared_of(POLICY))
    assert isinstance(run.error, CannotResume)
    assert isinstance(run.error.__cause__, Refused)
    assert run.events


def test_an_error_event_ends_the_stream_with_its_code() -> None:
    run = Fleet(answer(), [Fault("error_event", 700)], []).run(shared_of(POLICY))
    assert isinstance(run.error, ServerFault)
    assert (run.error.code, run.error.message, run.error.status) == ("stream_lost", "lost thrice", None)
    assert run.error.last_event_id == run.events[-1].id
    assert len(run.opens) == 1


@pytest.mark.parametrize("code", ["gateway_stopping", "no_replica"])
def test_a_stream_that_its_gateway_gives_away_is_resumed_at_another(code: str) -> None:
    sent = answer()
    run = Fleet(sent, [Fault("error_event", 700, code=code)], []).run(shared_of(POLICY))
    assert [event.data for event in run.events] == datas(sent)
    assert [open_.url for open_ in run.opens] == [f"http://g0{CHAT}", f"http://g1{CHAT}"]
    assert run.pauses == [0.0 if code == "gateway_stopping" else 0.1]


def test_a_stream_of_an_earlier_call_is_resumed_from_its_last_event_id() -> None:
    sent = answer(6)
    run = Fleet(sent, [], []).run(shared_of(POLICY), last_event_id=sent[3].id)
    assert run.opens[0].headers["last-event-id"] == sent[3].id
    assert [event.data for event in run.events] == datas(continued(sent, sent[3].id))


def begun(policy: RetryPolicy = POLICY, *, streamed: bool = True) -> CallMachine:
    machine = CallMachine(Call(CHAT, b"{}", "req_1", streamed, policy.deadline_s), shared_of(policy))
    assert isinstance(machine.on(Begin(), 0.0), Open)
    return machine


def test_a_gateway_that_ignores_the_id_and_starts_anew_is_found_out() -> None:
    machine = begun()
    machine.on(Answered(200, EVENTS), 0.0)
    machine.on(Received(b'id: a:1\ndata: {"id": "a", "choices": []}\n\n'), 0.0)
    machine.on(Delivered(), 0.0)
    machine.on(Failed("broken"), 0.0)
    machine.on(Woke(), 1.0)
    machine.on(Answered(200, EVENTS), 1.0)
    step = machine.on(Received(b'id: b:1\ndata: {"id": "b", "choices": []}\n\n'), 1.0)
    assert isinstance(step, Fail)
    assert isinstance(step.error, CannotResume)


def test_a_server_without_ids_is_served_but_not_resumed() -> None:
    machine = begun()
    machine.on(Answered(200, EVENTS), 0.0)
    machine.on(Received(b'data: {"id": "a", "choices": []}\n\n'), 0.0)
    assert isinstance(machine.on(Delivered(), 0.0), Read)
    step = machine.on(Failed("broken"), 0.0)
    assert isinstance(step, Fail)
    assert isinstance(step.error, StreamBroken)
    assert "no ids" in str(step.error)


odd = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "index", "delta", "role", "finish_reason", "error", "id"]), inner)
    ),
    max_leaves=12,
)


@given(st.lists(odd, min_size=1, max_size=4))
def test_whatever_json_a_server_sends_it_is_an_event_or_a_typed_error(objects: list[object]) -> None:
    machine = begun()
    machine.on(Answered(200, EVENTS), 0.0)
    sent = "".join(f"id: {number}\ndata: {json.dumps(data)}\n\n" for number, data in enumerate(objects))
    step = machine.on(Received(sent.encode()), 0.0)
    for event in step.events if isinstance(step, Deliver) else ():
        assert isinstance(event.text, str)
    assert isinstance(step, Deliver | Fail)


def test_another_content_type_is_no_answer() -> None:
    step = begun().on(Answered(200, {"content-type": "text/html"}), 0.0)
    assert isinstance(step, Fail)
    assert isinstance(step.error, BadAnswer)


@pytest.mark.parametrize("end", [Ended(), Failed("broken")])
def test_a_whole_answer_that_is_cut_is_asked_for_again(end: Ended | Failed) -> None:
    machine = begun(streamed=False)
    machine.on(Answered(200, {"content-type": "application/json"}), 0.0)
    machine.on(Received(b'{"choices": ['), 0.0)
    assert isinstance(machine.on(end, 0.0), Pause)


def test_a_whole_answer_may_take_until_the_deadline() -> None:
    machine = CallMachine(Call(CHAT, b"{}", "req_1", False, 123.0), shared_of(POLICY))
    step = machine.on(Begin(), 0.0)
    assert isinstance(step, Open)
    assert (step.timeout_s, step.connect_timeout_s) == (123.0, 5.0)


def test_what_can_not_follow_is_a_bug_and_is_said() -> None:
    with pytest.raises(AssertionError, match="can't follow"):
        begun().on(Delivered(), 0.0)
