"""The checker of facts: what it finds where the log is told what is not so, and what it lets pass."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core import events as ev
from holdfast.core import replica_life
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.records import Settle
from tests.unit.simulations.recorded import Run, broken, well

ONE = "app.tiny.1"


def found(run: Run) -> str:
    return "\n".join(violation.message for violation in broken(run) if violation.checker == "facts")


def ended(status: int = -9, *, by: str = "fault", told_s: float | None = None, **told: Any) -> Run:
    """The first replica ends at 20 s, and its node says so."""
    run = well()
    process = run.processes[ONE]
    if told_s is not None:
        process.told(told_s, 0.5)
    process.ended(20.0, status, by)
    run.at_s = 20.1
    said = {"exit_code": None, "signal": "SIGKILL", "expected": False, "pid": process.pid, **told}
    run.fact(ev.ReplicaExited(ONE, "node-1", message="", **said), "node.node-1")
    return run


def test_an_end_as_it_was_is_well() -> None:
    assert not found(ended())
    assert not found(ended(1, exit_code=1, signal=None))
    assert not found(ended(-9, told_s=19.0, expected=True))


def test_an_end_that_was_another_one_is_found() -> None:
    assert "ended with status -9, and it is told otherwise" in found(ended(exit_code=0, signal=None))
    assert "ended with status 1, and it is told otherwise" in found(ended(1))


def test_an_end_that_is_called_expected_is_found_where_nobody_had_asked_for_it() -> None:
    assert "is called expected, and nobody had told it to stop" in found(ended(expected=True))
    run = ended(-9, expected=True)
    run.processes["node-1"].told(19.0, 1.0)
    assert not found(run)


def test_an_end_that_the_log_had_ordered_is_expected() -> None:
    run = well()
    run.at_s = 19.0
    run.decide(ev.ReplicaStopOrdered(ONE, "fewer replicas are wanted"))
    run.processes[ONE].ended(20.0, -9, "fault")
    run.at_s = 20.1
    exited = ev.ReplicaExited(ONE, "node-1", run.processes[ONE].pid, None, "SIGKILL", True, "")
    run.fact(exited, "node.node-1")
    assert not found(run)


def test_the_end_of_one_that_runs_is_found() -> None:
    run = ended()
    run.processes[ONE].ended_s = None
    assert "is said to have ended, and its process 111 had not" in found(run)


@pytest.mark.parametrize("fact", [ev.ReplicaStarted(ONE, "node-1", 112), ev.ReplicaStarted(ONE, "node-1", 999)])
def test_a_process_that_is_another_one_is_found(fact: ev.Fact) -> None:
    run = well()
    run.fact(fact, "node.node-1")
    assert f"{ONE} is said to be process" in found(run)


def test_a_slot_that_is_free_before_its_process_has_ended_is_found() -> None:
    run = well()
    run.at_s = 20.0
    run.fact(ev.ReplicaDraining(ONE, "node-1"), "node.node-1")
    assert not found(run)
    with edit(replica_life._replica_draining, ("ReplicaStatus.STOPPING", "ReplicaStatus.EXITED")).applied():
        assert f"the slot of {ONE} is free" in found(run)


def told(ended_s: float | None, status: int = 0) -> Run:
    """The first replica is told to stop at 10 s, with half a second to finish its streams."""
    run = well()
    run.processes[ONE].told(10.0, 0.5)
    if ended_s is not None:
        run.processes[ONE].ended(ended_s, status)
    return run


def test_one_that_is_not_killed_in_time_is_found() -> None:
    assert "node-1 told app.tiny.1 to stop at 10.000 s, and it runs on" in found(told(None))
    assert "runs on" in found(told(15.0))
    assert not found(told(11.0))


def test_what_befell_its_node_excuses_that() -> None:
    run = told(15.0)
    run.history.fault(12.0, "freeze", "node-1", until_s=14.0)
    assert not found(run)
    run = told(15.0)
    run.history.fault(2.0, "freeze", "node-1", until_s=9.0)
    assert "runs on" in found(run)
    run = told(None)
    run.processes["node-1"].ended(11.0, -9, "fault")
    assert not found(run)


def test_one_that_had_to_be_killed_is_found_where_nothing_befell_it() -> None:
    assert "had to be killed, though nothing befell it" in found(told(13.5, -9))
    assert not found(told(13.5, 0))
    assert not found(told(11.0, -9))
    run = told(13.5, -9)
    run.history.fault(5.0, "engine hangs", ONE)
    assert not found(run)


def test_of_one_that_somebody_else_told_first_nothing_is_asked() -> None:
    run = told(15.0)
    run.history.fault(9.0, "replica told to stop", ONE, until_s=9.0)
    assert not found(run)


def suspected(*reached: tuple[str, ...]) -> Run:
    run = well()
    run.history.settle = Settle(10.0, 5.0)
    run.at_s = 11.0
    run.fact(ev.ReplicaSuspected("gateway-1", ONE, 1.0, 0, "silent"), "gateway.gateway-1")
    for number, replicas in enumerate(reached):
        run.history.gateway_reaches(25.0 + number, "gateway-1", replicas)
    return run


def test_one_that_is_reached_and_suspected_all_the_same_is_found() -> None:
    assert f"gateway-1 reaches {ONE}, and the log has that it suspects it" in found(suspected((ONE,), (ONE,)))


def test_one_that_is_not_reached_may_be_suspected() -> None:
    assert not found(suspected((), (ONE,)))
    assert not found(suspected())
    run = suspected((ONE,), (ONE,))
    run.at_s = 24.0
    run.fact(ev.ReplicaTrusted("gateway-1", ONE, 10.0), "gateway.gateway-1")
    assert not found(run)
