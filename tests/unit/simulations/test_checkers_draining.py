"""The checkers of planned stops: what they find, and what they let pass."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.core import events as ev
from holdfast.core.config import DrainMode
from holdfast.simulations.checkers.draining import OBEYED_S, UNREAD_S
from tests.unit.simulations.recorded import Run, broken, well


def found(run: Run, checker: str) -> str:
    return "\n".join(violation.message for violation in broken(run) if violation.checker == checker)


def stop(run: Run, number: int, reason: str = "it is drained, and it is replaced", **how: float) -> None:
    run.decide(ev.ReplicaStopOrdered(f"app.tiny.{number}", reason, **how))  # type: ignore[arg-type]


def test_a_decision_that_stops_the_last_replica_is_found() -> None:
    run = well()
    run.at_s = 20.0
    stop(run, 1)
    assert found(run, "routable") == ""
    stop(run, 2)
    assert "app.tiny.2 was the last replica of tiny that ran" in found(run, "routable")


def test_the_last_replica_may_go_when_the_time_that_somebody_set_is_over() -> None:
    run = well()
    run.at_s = 20.0
    stop(run, 1)
    stop(run, 2, deadline_s=0.0)
    assert found(run, "routable") == ""


@pytest.mark.parametrize(("after_s", "is_found"), [(UNREAD_S - 1.0, False), (UNREAD_S + 1.0, True)])
def test_what_ended_just_before_may_be_news_to_the_leader(after_s: float, is_found: bool) -> None:
    run = well()
    run.at_s = 5.0
    run.fact(ev.ReplicaExited("app.tiny.1", "node-1", 111, 1, None, False, ""), "node.node-1")
    run.at_s += after_s
    stop(run, 2)
    assert bool(found(run, "routable")) is is_found


@pytest.mark.parametrize(("after_s", "is_found"), [(UNREAD_S - 1.0, False), (UNREAD_S + 1.0, True)])
def test_that_it_got_ready_just_before_may_be_news_to_the_leader(after_s: float, is_found: bool) -> None:
    run = well()
    run.at_s = 1.0 + after_s
    stop(run, 1)
    stop(run, 2, "fewer replicas are wanted")
    assert bool(found(run, "routable")) is is_found


def stopping_node(run: Run) -> None:
    """node-2 runs all there is, is told to stop, and stops it at once though node-1 could take over."""
    run.history.node_waits_s = 20.0
    run.at_s = 20.0
    stop(run, 1)
    run.processes["node-2"].told(20.5, 0.0)
    run.at_s = 20.6
    run.fact(ev.NodeStopping("node-2"), "node.node-2")
    run.processes["app.tiny.2"].told(23.0, 3.0)


def test_a_node_that_stops_the_last_replica_without_waiting_for_others_is_found() -> None:
    run = well()
    stopping_node(run)
    assert "node-2 stops app.tiny.2, the last of tiny that ran" in found(run, "routable")


def test_a_node_may_stop_the_last_replica_when_it_has_waited() -> None:
    run = well()
    stopping_node(run)
    run.history.node_waits_s = 2.0
    assert found(run, "routable") == ""


def test_what_befell_anybody_excuses_a_node() -> None:
    run = well()
    stopping_node(run)
    run.history.fault(22.0, "log: appends late", "*", "")
    assert found(run, "routable") == ""


def drain(run: Run, kind: ev.DrainTarget, name: str) -> None:
    run.decide(ev.DrainOrdered(kind, name, "finish", 1.0))


def test_a_gateway_that_does_not_say_that_it_is_drained_is_found() -> None:
    run = well()
    run.at_s = 15.0
    drain(run, "gateway", "gateway-1")
    ordered = run.history.appended[-1].message_id
    assert "gateway-1 was drained" in found(run, "taken_out")
    run.at_s += 1.0 + OBEYED_S / 2
    answer = run.event(ev.GatewayDrained("gateway-1", 0), "gateway-1", "i1")
    run.append("facts.gateway.gateway-1", msgspec.structs.replace(answer, cause=ordered))
    assert found(run, "taken_out") == ""


def test_a_replica_that_is_placed_on_a_drained_node_is_found() -> None:
    run = well()
    run.at_s = 15.0
    drain(run, "node", "node-2")
    for number in range(120):
        run.fact(ev.StreamsFenced("node-1", "app.tiny.1", "gateway-1", number), "node.node-1")
    run.place(3, "node-2")
    assert "app.tiny.3 is placed on node-2, which is drained" in found(run, "taken_out")


@pytest.mark.parametrize(
    ("mode", "said_s", "ends_s", "is_found"),
    [
        ("finish", 16.0, 18.0, True),
        ("finish", 16.0, None, True),
        ("finish", 16.0, 16.5, False),
        ("finish", 20.5, 25.0, False),
        ("migrate", 16.0, 18.0, False),
    ],
)
def test_a_gateway_that_calls_itself_drained_while_it_has_requests_is_found(
    mode: DrainMode, said_s: float, ends_s: float | None, is_found: bool
) -> None:
    run = well()
    run.at_s = 15.0
    run.history.exchange(14.0, run.processes["gateway-1"].pid, 99.0).ended_s = ends_s
    wish = run.wish(ev.DrainRequested("gateway", "gateway-1", mode, 5.0))
    ordered = run.grant(wish, ev.DrainOrdered("gateway", "gateway-1", mode, 5.0))
    run.at_s = said_s
    answer = run.event(ev.GatewayDrained("gateway-1", 0), "gateway-1", "i1")
    run.append("facts.gateway.gateway-1", msgspec.structs.replace(answer, cause=ordered))
    assert ("calls itself drained, and has a request until" in found(run, "taken_out")) is is_found
