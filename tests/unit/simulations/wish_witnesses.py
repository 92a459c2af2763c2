"""What misses the guards of wishes, for `test_mutants.py`."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core import events as ev
from holdfast.core.config import ApplicationConfig
from tests.unit.support.history import History, application


def _led() -> History:
    history = History()
    history.fact(ev.NodeJoined("a", "host", 1, "0", 9), by="node.a")
    history.fact(ev.GatewayJoined("g", "host", 2, "http://g", "0"), by="gateway.g")
    history.decide(ev.LeaderElected("a", "1"), epoch=10)
    return history


def _two_wishes() -> None:
    history = _led()
    first = history.fact(ev.DeployRequested(application()), by="operator.o")
    history.fact(ev.DeleteRequested("app"), by="operator.o")
    history.decide(ev.ApplicationDeployed(application()), first)
    assert list(history.state.requests) == ["app"]


def _lifted_meanwhile() -> None:
    history = _led()
    first = history.fact(ev.DrainRequested("node", "a"), by="operator.o")
    history.fact(ev.UndrainRequested("node", "a"), by="operator.o")
    history.decide(ev.DrainOrdered("node", "a"), first)
    assert list(history.state.drain_requests) == ["node/a"]


def _revision_after(changed: ApplicationConfig) -> int:
    history = _led()
    history.decide(ev.ApplicationDeployed(application()))
    history.decide(ev.ApplicationDeployed(changed))
    return history.state.applications["app"].deployments["tiny"].revision


def _other_engine() -> None:
    assert _revision_after(application(version=1)) == 2


def _same_engine() -> None:
    assert _revision_after(application(replicas=2)) == 1


def _node_again() -> None:
    history = _led()
    history.decide(ev.DrainOrdered("node", "a"))
    history.fact(ev.NodeJoined("a", "host", 3, "0", 9), by="node.a", incarnation="2")
    assert history.state.nodes["a"].drain is not None


def _gateway_again() -> None:
    history = _led()
    history.decide(ev.DrainOrdered("gateway", "g"))
    history.fact(ev.GatewayJoined("g", "host", 3, "http://g", "0"), by="gateway.g", incarnation="2")
    assert history.state.gateways["g"].drain is not None


WISH_WITNESSES: dict[str, Callable[[], object]] = {
    "wish-in-between": _two_wishes,
    "drain-in-between": _lifted_meanwhile,
    "new-revision": _other_engine,
    "same-revision": _same_engine,
    "drained-node": _node_again,
    "drained-gateway": _gateway_again,
}
"""By the mutant that takes the guard out."""
