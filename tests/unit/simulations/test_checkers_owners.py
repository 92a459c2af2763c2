"""Streams that only one side knows of are found, unless something kept the sides apart."""

from __future__ import annotations

import pytest

from holdfast.simulations.checkers.owners import KEPT_S
from holdfast.simulations.strays import KEPT, LEFT_BEHIND, MISSING, NOBODYS
from tests.unit.simulations.recorded import Run, broken, only, well

REPLICA, GATEWAY = "app.tiny.1", "gateway-1"


def astray(what: str = NOBODYS, from_s: float = 20.0, lasts_s: float = 1.0) -> Run:
    """A run in which a stream was seen astray for so long."""
    run = well()
    run.history.stray(from_s, what, REPLICA, GATEWAY).until_s = from_s + lasts_s
    return run


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (NOBODYS, "app.tiny.1 runs a stream for gateway-1, which has nothing of the kind there"),
        (MISSING, "app.tiny.1 has nothing of a stream for which gateway-1 waits there"),
        (LEFT_BEHIND, "app.tiny.1 goes on with a stream that gateway-1 has elsewhere"),
    ],
)
def test_a_stream_that_is_astray_for_longer_than_word_of_it_takes_is_found(what: str, told: str) -> None:
    assert only(broken(astray(what)), "owners") == f"{told}, since 20.000 s at least"
    assert broken(astray(what, lasts_s=0.5)) == []


def test_a_stream_whose_client_may_come_back_has_more_time() -> None:
    assert broken(astray(KEPT, lasts_s=KEPT_S - 0.1)) == []
    assert only(broken(astray(KEPT, lasts_s=KEPT_S)), "owners")


@pytest.mark.parametrize(
    ("kind", "target", "from_s", "until_s"),
    [
        ("freeze", REPLICA, 15.0, 20.5),
        ("freeze", GATEWAY, 15.0, None),
        ("slow process", GATEWAY, 20.2, 25.0),
        ("partition", f"host-{GATEWAY}>host-node-1,host-node-2", 5.0, 10.0),
        ("partition", f"host-node-1>host-{GATEWAY}", 5.0, 10.0),
        ("clogging", "network", 5.0, 10.0),
        ("power failure", "host-node-1", 5.0, 10.0),
    ],
)
def test_what_keeps_the_sides_apart_explains_it(kind: str, target: str, from_s: float, until_s: float | None) -> None:
    run = astray()
    run.history.fault(from_s, kind, target, until_s=until_s)
    assert "owners" not in {violation.checker for violation in broken(run)}


@pytest.mark.parametrize(
    ("kind", "target", "until_s"),
    [
        ("freeze", REPLICA, 17.0),
        ("reset connection", f"{REPLICA}>{GATEWAY}", 17.0),
        ("partition", f"host-{GATEWAY}>host-node-1", 7.0),
        ("partition", f"host-{GATEWAY}>host-node-2", 19.0),
        ("one-way partition", "host-node-1>etcd1,host-node-2", 19.0),
        ("freeze", "app.tiny.2", 25.0),
    ],
)
def test_what_is_long_over_or_stands_between_others_does_not(kind: str, target: str, until_s: float) -> None:
    run = astray()
    run.history.fault(5.0, kind, target, until_s=until_s)
    assert "owners" in {violation.checker for violation in broken(run)}
