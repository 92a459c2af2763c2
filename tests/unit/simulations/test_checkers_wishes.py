"""The checker of what operators ask for: what it finds, and what it lets pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.core import applications, drains, membership, replica_life
from holdfast.core import events as ev
from holdfast.core.config import ApplicationConfig, DrainMode
from holdfast.simulations.mutants.edits import Edit, edit
from tests.unit.simulations.recorded import Run, broken, well
from tests.unit.support.history import application

OTHER = application(replicas=2, version=1)
MORE = application(replicas=3)


def found(run: Run) -> str:
    return "\n".join(violation.message for violation in broken(run) if violation.checker == "wishes")


def deploy(run: Run, wished: ApplicationConfig = OTHER) -> None:
    run.grant(run.wish(ev.DeployRequested(wished)), ev.ApplicationDeployed(wished))


def drain(run: Run, kind: ev.DrainTarget, name: str, deadline_s: float | None = None) -> str:
    wish = run.wish(ev.DrainRequested(kind, name, "migrate", deadline_s))
    return run.grant(wish, ev.DrainOrdered(kind, name, "migrate", deadline_s))


def test_wishes_that_are_granted_are_well() -> None:
    run = well()
    deploy(run)
    deploy(run, MORE)
    for kind, name in (("node", "node-2"), ("gateway", "gateway-1"), ("replica", "app.tiny.1")):
        drain(run, kind, name)  # type: ignore[arg-type]
    run.grant(run.wish(ev.UndrainRequested("node", "node-2")), ev.DrainLifted("node", "node-2"))
    run.grant(run.wish(ev.DeleteRequested("app")), ev.ApplicationDeleted("app"))
    assert found(run) == ""


def test_what_nobody_asked_for_is_found() -> None:
    run = well()
    run.decide(ev.ApplicationDeployed(MORE))
    assert "ApplicationDeployed of app, for which nobody had asked" in found(run)


def test_a_decision_on_a_wish_about_somebody_else_is_found() -> None:
    run = well()
    run.grant(run.wish(ev.DrainRequested("node", "node-1")), ev.DrainOrdered("node", "node-2"))
    assert "DrainOrdered of node-2, for which nobody had asked" in found(run)


@pytest.mark.parametrize(
    ("wish", "decision"),
    [
        (ev.DeployRequested(OTHER), ev.ApplicationDeployed(MORE)),
        (ev.DeployRequested(OTHER), ev.ApplicationDeleted("app")),
        (ev.DrainRequested("node", "node-2", "finish"), ev.DrainOrdered("node", "node-2", "migrate")),
        (ev.DrainRequested("node", "node-2", None, 2.0), ev.DrainOrdered("node", "node-2", None, 20.0)),
        (ev.UndrainRequested("node", "node-2"), ev.DrainOrdered("node", "node-2")),
    ],
)
def test_a_decision_that_is_not_what_was_asked_for_is_found(wish: ev.Fact, decision: ev.Decision) -> None:
    run = well()
    run.grant(run.wish(wish), decision)
    assert "is not what" in found(run)


def test_a_second_decision_on_one_wish_is_found() -> None:
    run = well()
    wish = run.wish(ev.DeployRequested(OTHER))
    for _ in range(2):
        run.grant(wish, ev.ApplicationDeployed(OTHER))
    assert f"is the second decision on {wish}" in found(run)


@pytest.mark.parametrize(("at_s", "is_found"), [(9.0, True), (11.0, False)])
def test_a_last_wish_that_nobody_decides_is_found_where_there_was_time(at_s: float, is_found: bool) -> None:
    run = well()
    run.at_s = at_s
    run.wish(ev.DrainRequested("gateway", "gateway-9"))
    assert ("the last wish, and was never decided" in found(run)) is is_found


def test_a_wish_that_a_later_one_takes_back_needs_no_decision() -> None:
    run = well()
    run.wish(ev.DrainRequested("node", "node-2"))
    run.grant(run.wish(ev.UndrainRequested("node", "node-2")), ev.DrainLifted("node", "node-2"))
    assert found(run) == ""


def test_an_undecided_wish_is_nothing_without_a_time_to_settle() -> None:
    run = well()
    run.wish(ev.DrainRequested("node", "node-2"))
    run.history.settle = None
    assert found(run) == ""


@pytest.mark.parametrize(
    ("mode", "deadline_s", "is_found"),
    [
        ("migrate", 1.5, False),
        ("migrate", 2.5, True),
        ("migrate", -1.0, True),
        ("finish", 1.5, True),
        (None, 1.5, True),
    ],
)
def test_who_stops_by_a_drain_in_another_way_is_found(mode: DrainMode, deadline_s: float, is_found: bool) -> None:
    run = well()
    ordered = drain(run, "replica", "app.tiny.1", 2.0)
    run.grant(ordered, ev.ReplicaStopOrdered("app.tiny.1", "it is drained", mode, deadline_s))
    assert ("stops by a drain" in found(run)) is is_found


def test_a_drain_without_a_deadline_sets_none() -> None:
    run = well()
    ordered = drain(run, "replica", "app.tiny.1")
    run.grant(ordered, ev.ReplicaStopOrdered("app.tiny.1", "it is drained", "migrate"))
    assert found(run) == ""
    run.grant(drain(run, "replica", "app.tiny.2"), ev.ReplicaStopOrdered("app.tiny.2", "it is drained", "migrate", 1.0))
    assert "stops by a drain" in found(run)


def joins_again(run: Run) -> None:
    drain(run, "node", "node-2")
    run.node("node-2", 902, "i2")


def gateway_joins_again(run: Run) -> None:
    drain(run, "gateway", "gateway-1")
    event = run.event(ev.GatewayJoined("gateway-1", "host", 903, "http://gateway-1", "0"), "gateway-1", "i2")
    run.append("facts.gateway.gateway-1", event)


def is_lifted(run: Run) -> None:
    drain(run, "node", "node-2")
    run.grant(run.wish(ev.UndrainRequested("node", "node-2")), ev.DrainLifted("node", "node-2"))


def engine_changes(run: Run) -> None:
    deploy(run)


def is_scaled(run: Run) -> None:
    deploy(run, MORE)


def is_placed(run: Run) -> None:
    deploy(run)
    run.place(3, "node-1")


KEEPS_DRAIN = ("before.drain if before is not None else None", "None")

KEEPS_DRAINED = ("decision, None)", "decision, Drain(event.id, event.time, None, None))")
CHANGED = "(config.engine != before.config.engine)"
FORGETS_ALL = ("in decision.application.deployments", "in ()")


@pytest.mark.parametrize(
    ("happens", "mistake", "told"),
    [
        (joins_again, edit(membership._node_joined, KEEPS_DRAIN), "node node-2 is drained by nothing"),
        (gateway_joins_again, edit(membership._gateway_joined, KEEPS_DRAIN), "gateway gateway-1 is drained by nothing"),
        (joins_again, edit(drains._drain_ordered, ("decision, drain)", "decision, None)")), "is drained by nothing"),
        (is_lifted, edit(drains._drain_lifted, KEEPS_DRAINED), "and should be by nothing"),
        (
            engine_changes,
            edit(applications._deployment, (CHANGED, "0")),
            "has revision 1",
        ),
        (is_scaled, edit(applications._deployment, (CHANGED, "1")), "has revision 2"),
        (is_placed, edit(replica_life._replica_placed, ("deployment.revision,", "1,")), "app.tiny.3 has revision 1"),
        (is_scaled, edit(applications._application_deployed, FORGETS_ALL), "is not as it was decided"),
    ],
)
def test_a_fold_that_forgets_is_found_though_all_processes_have_it(
    happens: Callable[[Run], None], mistake: Edit, told: str
) -> None:
    run = well()
    happens(run)
    assert found(run) == ""
    with mistake.applied():
        assert told in found(run)
