"""Streams on a replica that stands still: those that had to move and did not are found, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.simulations.checkers import judge
from holdfast.simulations.checkers.moves import BARREN, LOSES_STREAM
from holdfast.simulations.records import CANCELLED, ERROR, Request
from tests.unit.simulations.recorded import Run, answered, broken, only, well

FROZEN_S = 20.0
BOUND_S = 4.0
UNTIL_S = 28.0


def stuck() -> tuple[Run, Request]:
    """A stream of two tokens whose replica stands still from 20 s to 28 s."""
    run = well()
    run.history.move_bound_s = BOUND_S
    run.history.settle = None
    process = run.processes["app.tiny.1"]
    process.froze(FROZEN_S)
    process.thawed(UNTIL_S)
    request = answered(7, upto=2)
    request.asked_s, request.deadline_s, request.last_s = 19.0, 40.0, 19.8
    request.tries[0].at_s = 19.0
    run.history.request(request)
    run.history.attempt(19.1, "app.tiny.1", request.prompt, 0)
    return run, request


def test_a_stream_that_stays_on_a_replica_that_stands_still_is_found() -> None:
    run, _ = stuck()
    message = only(broken(run), "moves")
    assert message == "request 7 is still on app.tiny.1, which stands still since 20.000 s"


def _moves(run: Run, request: Request) -> None:
    run.history.attempt(23.0, "app.tiny.2", request.prompt, 2)


def _ends(_run: Run, request: Request) -> None:
    request.ended(22.0, ERROR, "stream_lost")


def _goes_on(_run: Run, request: Request) -> None:
    request.last_s = 23.0


def _calls_again(_run: Run, request: Request) -> None:
    request.sent(23.0, "gateway-1", "some:2")


def _is_over_soon(run: Run, _request: Request) -> None:
    run.processes["app.tiny.1"].frozen = [(FROZEN_S, 23.0)]


def _gateway_froze(run: Run, _request: Request) -> None:
    run.history.fault(18.0, "freeze", "gateway-1", until_s=19.0)


def _network_broke(run: Run, _request: Request) -> None:
    run.history.fault(21.0, "clogging", "network", until_s=22.0)


def _other_node_is_cut_off(run: Run, _request: Request) -> None:
    run.history.fault(21.0, "partition", "node-2>node-1", until_s=22.0)


def _other_is_told_to_stop(run: Run, _request: Request) -> None:
    run.processes["app.tiny.2"].told(21.0, 3.0)


def _all_are_busy(run: Run, _request: Request) -> None:
    for number in range(10, 15):
        request = answered(number)
        request.asked_s, request.ended_s = 19.0, 25.0
        run.history.request(request)


def _nothing_is_asked(run: Run, _request: Request) -> None:
    run.history.move_bound_s = 0.0


@pytest.mark.parametrize(
    "happens",
    [
        _moves,
        _ends,
        _goes_on,
        _calls_again,
        _is_over_soon,
        _gateway_froze,
        _network_broke,
        _other_node_is_cut_off,
        _other_is_told_to_stop,
        _all_are_busy,
        _nothing_is_asked,
    ],
)
def test_a_stream_that_moved_or_could_not_is_no_violation(happens: Callable[[Run, Request], None]) -> None:
    run, request = stuck()
    happens(run, request)
    assert "moves" not in {violation.checker for violation in broken(run)}


def lost() -> tuple[Run, Request]:
    """A stream of two tokens that its engine lost at 20 s."""
    run, request = stuck()
    run.history.move_bound_s, run.history.stall_bound_s = 0.0, BOUND_S
    run.processes["app.tiny.1"].frozen.clear()
    run.history.stream_stands_still(FROZEN_S, "app.tiny.1", request.prompt)
    run.history.fault(FROZEN_S, LOSES_STREAM, "app.tiny.1", until_s=FROZEN_S)
    return run, request


def _is_cancelled(_run: Run, request: Request) -> None:
    request.ended(22.0, CANCELLED)


def _is_too_late(_run: Run, request: Request) -> None:
    request.ended(22.0, ERROR, "deadline_exceeded")


def _was_over(_run: Run, request: Request) -> None:
    request.ended(19.9, ERROR, "stream_lost")


@pytest.mark.parametrize("case", ["stuck", "lost", "barren"])
@pytest.mark.parametrize(
    ("happens", "count"),
    [
        *((_moves, 1), (_ends, 1), (None, 1)),
        *((_goes_on, 0), (_calls_again, 0), (_gateway_froze, 0), (_other_is_told_to_stop, 0), (_all_are_busy, 0)),
        *((_is_cancelled, 0), (_is_too_late, 0), (_was_over, 0)),
    ],
)
def test_those_count_that_had_to_move_whether_they_did_or_not(
    case: str, happens: Callable[[Run, Request], None] | None, count: int
) -> None:
    run, request = {"stuck": stuck, "lost": lost, "barren": barren}[case]()
    if happens is not None:
        happens(run, request)
    judged = judge(run.history).judged["moves"]
    assert sorted(judged.values()) == [0, 0, count]


def test_a_stream_that_leaves_a_barren_engine_late_is_found_too() -> None:
    run, request = barren()
    run.history.attempt(FROZEN_S + BOUND_S + 1.0, "app.tiny.2", request.prompt, 0)
    assert only(broken(run), "moves") == "request 7 is still on app.tiny.1, whose engine makes nothing since 20.000 s"


def test_a_stream_that_stays_on_an_engine_which_lost_it_is_found() -> None:
    run, _ = lost()
    assert only(broken(run), "moves") == "request 7 is still on app.tiny.1, whose engine lost it at 20.000 s"


def _is_slow(run: Run, _request: Request) -> None:
    run.history.fault(21.0, "slow engine", "app.tiny.1", until_s=22.0)


def _replica_ended(run: Run, _request: Request) -> None:
    run.processes["app.tiny.1"].ended(21.0, -9, "a fault")


def _no_bound(run: Run, _request: Request) -> None:
    run.history.stall_bound_s = 0.0


@pytest.mark.parametrize("happens", [_moves, _ends, _goes_on, _calls_again, _is_slow, _replica_ended, _no_bound])
def test_a_lost_stream_that_moved_or_could_not_is_no_violation(happens: Callable[[Run, Request], None]) -> None:
    run, request = lost()
    happens(run, request)
    assert "moves" not in {violation.checker for violation in broken(run)}


def barren() -> tuple[Run, Request]:
    """A stream without a token, whose engine makes nothing from 20 s to 28 s."""
    run, request = stuck()
    run.history.move_bound_s, run.history.barren_bound_s = 0.0, BOUND_S
    run.processes["app.tiny.1"].frozen.clear()
    request.events.clear()
    request.last_s = None
    run.history.fault(FROZEN_S, BARREN, "app.tiny.1", until_s=UNTIL_S)
    return run, request


def test_a_stream_that_stays_on_an_engine_which_makes_nothing_is_found() -> None:
    run, _ = barren()
    assert only(broken(run), "moves") == "request 7 is still on app.tiny.1, whose engine makes nothing since 20.000 s"


def test_its_time_begins_when_it_gets_there() -> None:
    run, request = barren()
    request.attempts[0].at_s = FROZEN_S + 1.0
    assert only(broken(run), "moves") == "request 7 is still on app.tiny.1, whose engine makes nothing since 21.000 s"


def _gets_there_late(_run: Run, request: Request) -> None:
    request.attempts[0].at_s = UNTIL_S - BOUND_S


def _recovers(run: Run, _request: Request) -> None:
    run.history.faults[-1].until_s = FROZEN_S + BOUND_S


def _others_are_barren(run: Run, _request: Request) -> None:
    run.history.fault(21.0, BARREN, "app.tiny.2", until_s=UNTIL_S)


def _no_barren_bound(run: Run, _request: Request) -> None:
    run.history.barren_bound_s = 0.0


@pytest.mark.parametrize(
    "happens",
    [
        *(_moves, _ends, _goes_on, _calls_again, _is_slow, _replica_ended),
        *(_gets_there_late, _recovers, _others_are_barren, _no_barren_bound),
    ],
)
def test_a_stream_that_left_a_barren_engine_or_could_not_is_no_violation(
    happens: Callable[[Run, Request], None],
) -> None:
    run, request = barren()
    happens(run, request)
    assert "moves" not in {violation.checker for violation in broken(run)}
