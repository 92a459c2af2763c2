"""The checker of streams that gateways give up: what it finds, and what it lets pass."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.core.frames import Attach, Ping, Start, encode
from holdfast.core.requests import EngineRequest
from holdfast.simulations.cluster.starts import SentStarts
from holdfast.simulations.history import History
from holdfast.simulations.records import Begun
from holdfast.simulations.world.world import World
from tests.unit.simulations.recorded import Run, answered, broken, well


def lost(begun: int, *, most: int | None = 4, attached: int = 0) -> Run:
    """A gateway gives a stream up after so many attempts; at another one it is complete."""
    run = well()
    history = run.history
    history.attempts_max = most
    request = history.request(answered(7))
    pid = run.processes["gateway-1"].pid
    exchange = history.exchange(11.0, pid, 40.0)
    exchange.request, exchange.lost_s = request.id, 14.0
    for number in range(begun):
        if number < attached:
            history.stream_begun(11.5, pid, 5.0, response_id=request.response_id)
        else:
            history.stream_begun(11.5, pid, 5.0, prompt=request.prompt)
    return run


def found(run: Run) -> str:
    return "\n".join(violation.message for violation in broken(run) if violation.checker == "given_up")


@pytest.mark.parametrize(
    ("begun", "most", "is_found"),
    [(1, 4, True), (2, 4, False), (1, 11, True), (0, 4, True), (1, 2, False), (0, 1, False), (0, None, False)],
)
def test_a_stream_that_is_given_up_early_is_found(begun: int, most: int | None, is_found: bool) -> None:
    assert ("request 7 was given up after" in found(lost(begun, most=most))) is is_found


def test_taking_it_over_is_an_attempt_too() -> None:
    assert not found(lost(2, attached=1))


def test_what_began_elsewhere_or_at_another_time_is_no_attempt_of_this_one() -> None:
    run = lost(1)
    request = run.history.requests[-1]
    run.history.begun += [
        Begun(12.0, 999, 5.0, request.prompt),
        Begun(10.0, run.processes["gateway-1"].pid, 5.0, request.prompt),
        Begun(12.0, run.processes["gateway-1"].pid, 5.0, "another question"),
    ]
    assert "after 1 attempts, and 3 are due" in found(run)


def test_a_stream_whose_deployment_is_gone_may_end() -> None:
    run = lost(1)
    run.at_s = 12.0
    run.grant(run.wish(ev.DeleteRequested("app")), ev.ApplicationDeleted("app"))
    assert not found(run)


def test_an_answer_that_is_none_of_the_runs_requests_is_not_judged() -> None:
    run = lost(1)
    run.history.exchanges[-1].request = -1
    assert not found(run)


def test_what_a_gateway_begins_is_read_off_the_wire() -> None:
    world, history = World("seed"), History()

    async def main(_process: object) -> int:
        return 0

    process = world.spawn("g", "h", main)
    sent = SentStarts(process, history).sent
    sent(encode(Ping(1)) + encode(Start(1, EngineRequest(prompt="what?"), "id/0/x", 1, timeout_s=3.0)))
    sent(encode(Attach(2, "id/0/x", 2, 2.0)))
    world.close()
    assert history.begun == [Begun(0.0, process.pid, 3.0, "what?"), Begun(0.0, process.pid, 2.0, "", "id")]


def begins(timeout_s: float, *, asked_s: float = 0.0) -> Run:
    """At 20 s a gateway begins a stream of a request which it got at 11 s, and has until 40 s for."""
    run = well()
    history = run.history
    request = history.request(answered(7, timeout_s=asked_s))
    pid = run.processes["gateway-1"].pid
    history.exchange(11.0, pid, 40.0).request = request.id
    history.stream_begun(20.0, pid, timeout_s, prompt=request.prompt)
    return run


@pytest.mark.parametrize(
    ("timeout_s", "asked_s", "told"),
    [
        (0.0, 0.0, "may take as long as it likes"),
        (22.0, 0.0, "may take 22 s, and it has 21.000 s"),
        (20.0, 0.0, ""),
        (4.0, 12.0, ""),
        (5.0, 12.0, "may take 5 s, and it has 4.000 s"),
    ],
)
def test_an_attempt_that_may_take_longer_than_its_request_is_found(timeout_s: float, asked_s: float, told: str) -> None:
    messages = [one.message for one in broken(begins(timeout_s, asked_s=asked_s)) if one.checker == "deadlines"]
    assert (told in "\n".join(messages)) if told else messages == []
