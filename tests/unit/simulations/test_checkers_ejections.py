"""Replicas that are passed over too many at a time, for too long, too short, or for nothing are found; others not."""

from __future__ import annotations

import pytest

from holdfast.core import events as ev
from holdfast.simulations.leniency import Limits, Passing
from tests.unit.simulations.recorded import Run, answered, broken, only, well

LIMITS = Limits(interval_s=1.0, window_s=10.0, first_s=3.0, longest_s=8.0, ratio=0.1, per_s=1.0, burst=2)
FAILED = "it failed 50% of its requests, the others 0%"
ROW = "its last 5 attempts failed, of the others' 0%"
SLOW = "its first tokens took 3.000 s, the others' 0.100 s"
BAD, OTHER = "app.tiny.1", "app.tiny.2"
BOTH = frozenset({BAD, OTHER})


class Compared(Run):
    """A run in which a gateway compares two replicas."""

    def look(self, at_s: float, *passed: str, reached: frozenset[str] = BOTH) -> None:
        """What is seen at the gateway from then on."""
        self.history.passings.append(Passing(at_s, "gateway-1", 103, "tiny", reached, frozenset(passed)))

    def tells(self, at_s: float, seconds: float = 3.0, reason: str = FAILED, replica: str = BAD) -> None:
        """The gateway tells the log."""
        self.at_s = at_s
        self.fact(ev.ReplicaEjected("gateway-1", replica, reason, seconds), "gateway.gateway-1")


def compared() -> Compared:
    run = Compared()
    run.__dict__.update(well().__dict__)
    run.history.limits = LIMITS
    run.history.stall_bound_s = 1.0
    run.look(2.0)
    return run


def passed_over(seconds: float = 3.0, until_s: float = 18.0, reason: str = FAILED) -> Compared:
    """The link to one replica flaps from 13 to 14 s, and it is passed over from 15 s on."""
    run = compared()
    run.history.fault(13.0, "flapping link", BAD, until_s=14.0)
    run.look(15.0, BAD)
    run.tells(15.0, seconds, reason)
    run.look(until_s)
    return run


@pytest.mark.parametrize("until_s", [18.0, 19.0])
def test_one_that_is_passed_over_for_its_time_is_no_violation(until_s: float) -> None:
    assert not broken(passed_over(until_s=until_s))


def test_nothing_is_asked_where_nobody_looked() -> None:
    run = passed_over()
    run.history.passings.clear()
    assert not broken(run)


def test_two_of_two_at_a_time_are_found_and_one_of_one() -> None:
    run = passed_over()
    run.history.fault(13.0, "flapping link", OTHER, until_s=16.0)
    run.history.passings.insert(2, Passing(16.0, "gateway-1", 103, "tiny", BOTH, BOTH))
    run.tells(16.0, replica=OTHER)
    assert "2 of 2 of tiny, and may 1" in only(broken(run), "ejections")
    run = passed_over()
    run.history.passings[:1] = []
    run.history.passings[0] = Passing(15.0, "gateway-1", 103, "tiny", frozenset({BAD}), frozenset({BAD}))
    assert "1 of 1 of tiny, and may 0" in only(broken(run), "ejections")


def test_a_tenth_of_many_may_be_and_one_more_may_not() -> None:
    names = [f"r{number}" for number in range(20)]
    for count in (2, 3):
        run = compared()
        for name in names[:count]:
            run.history.fault(13.0, "flapping link", name, until_s=14.0)
            run.tells(15.0, replica=name)
        run.look(15.0, *names[:count], reached=frozenset(names))
        run.look(18.0, reached=frozenset(names))
        assert [violation.checker for violation in broken(run)] == ["ejections"] * (count - 2)


def test_one_that_is_not_told_of_is_found() -> None:
    run = compared()
    run.look(15.0, BAD)
    run.look(18.0)
    assert "the log does not say so" in only(broken(run), "ejections")


def test_one_that_is_never_taken_back_is_found_unless_its_gateway_stood_still() -> None:
    run = passed_over(until_s=25.0)
    assert "until 25.000 s, and would have to 18.000 s" in only(broken(run), "ejections")
    run.processes["gateway-1"].frozen.append((17.5, 24.5))
    run.history.fault(17.5, "freeze", "gateway-1", until_s=24.5)
    assert not broken(run)


@pytest.mark.parametrize(("seconds", "well"), [(3.0, True), (6.0, True), (8.0, True), (4.0, False), (12.0, False)])
def test_a_time_that_is_not_the_set_one_doubled_again_and_again_is_found(seconds: float, well: bool) -> None:
    run = passed_over(seconds, 15.0 + seconds)
    if well:
        assert not broken(run)
    else:
        assert f"for {seconds:g} s, not for 3 s, or twice that" in only(broken(run), "ejections")


def test_one_that_is_taken_back_early_is_found_while_another_can_be_used() -> None:
    run = passed_over(8.0, until_s=16.0)
    assert "does not pass over app.tiny.1, and would to 23.000 s; app.tiny.2 can be used" in only(
        broken(run), "ejections"
    )
    without = passed_over(8.0, until_s=16.0)
    without.history.passings[-1] = Passing(16.0, "gateway-1", 103, "tiny", frozenset({BAD}), frozenset())
    assert not broken(without)
    shaken = passed_over(8.0, until_s=16.0)
    shaken.history.fault(14.0, "flapping link", OTHER, until_s=30.0)
    assert not broken(shaken)


def test_one_that_is_taken_back_as_all_others_are_gone_may_be_used_on_when_they_are_back() -> None:
    run = passed_over(8.0, until_s=16.0)
    run.history.passings.insert(-1, Passing(15.5, "gateway-1", 103, "tiny", frozenset({BAD}), frozenset({BAD})))
    assert "app.tiny.2 can be used" in only(broken(run), "ejections")
    run.at_s = 16.0
    run.fact(ev.ReplicaReinstated("gateway-1", BAD), "gateway.gateway-1")
    assert not broken(run)


@pytest.mark.parametrize(("ago_s", "slandered"), [(12.0, False), (30.0, True)])
def test_one_that_was_well_for_as_long_as_it_is_judged_by_is_found(ago_s: float, slandered: bool) -> None:
    run = passed_over()
    run.history.faults.clear()
    run.history.fault(15.0 - ago_s - 0.1, "slow engine", BAD, until_s=15.0 - ago_s)
    if slandered:
        assert "nothing befell it in the 10 s before" in only(broken(run), "ejections")
    else:
        assert not broken(run)


@pytest.mark.parametrize(
    ("kind", "target", "explains"),
    [
        ("freeze", BAD, True),
        ("freeze", OTHER, False),
        ("freeze", "gateway-1", True),
        ("freeze", "node-1", False),
        ("partition", "host-node-1>host-node-2", True),
        ("partition", "host-node-2>host-client", False),
        ("clogging", "network", True),
        ("node crash", "host-node-1", False),
    ],
)
def test_what_befell_others_is_no_reason(kind: str, target: str, explains: bool) -> None:
    run = passed_over()
    run.history.faults.clear()
    run.history.fault(13.0, kind, target, until_s=14.0)
    if explains:
        assert not broken(run)
    else:
        assert "nothing befell it" in only(broken(run), "ejections")


def test_one_that_is_judged_by_its_last_ones_is_found_if_something_went_well_since_or_nothing_ever_befell_it() -> None:
    run = passed_over(reason=ROW)
    run.history.faults.clear()
    assert "nothing ever befell it" in only(broken(run), "ejections")
    run.history.fault(1.0, "flapping link", BAD, until_s=2.0)
    assert not broken(run)
    request = answered(7)
    request.tries[0].at_s, request.ended_s = 8.0, 9.0
    run.history.request(request)
    request.attempts.append(run.history.attempt(8.0, BAD, "", 0))
    assert "request 7 went well there since" in only(broken(run), "ejections")
    request.attempts[0].replica = OTHER
    assert not broken(run)


def test_one_that_had_more_streams_than_it_has_room_for_may_be_slow() -> None:
    run = passed_over(reason=SLOW)
    run.history.faults.clear()
    assert "nothing befell it" in only(broken(run), "ejections")
    request = answered(7)
    run.history.request(request)
    for _ in range(run.history.room_min + 1):
        attempt = run.history.attempt(12.0, BAD, request.prompt, 0)
        attempt.last_s = 16.0
    assert "ejections" not in {violation.checker for violation in broken(run)}
