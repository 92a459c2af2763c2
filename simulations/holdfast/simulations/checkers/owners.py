"""Streams belong to somebody: what a replica holds for a gateway is what that gateway has there, and no more."""

from __future__ import annotations

from typing import Final

from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import Fault
from holdfast.simulations.strays import KEPT, LEFT_BEHIND, MISSING, NOBODYS, Stray

OWNERS: Final = "owners"

ASTRAY_S: Final = 0.9
"""What one side said reaches the other within so long, in seconds; two looks are further apart."""

RECOVERY_S: Final = 2.0
"""So long after most faults the two are connected again, and have read what came meanwhile (seconds)."""

GIVE_UP_S: Final = 12.0
"""A connection that lost its other end is given up within so long after the fault, in seconds."""

BRIEF: Final = frozenset({"freeze", "slow process", "engine hangs", "slow engine", "reset connection"})
"""Faults that leave no half-open connection: both sides know at once when they are over."""

KEPT_S: Final = 5.0
"""A replica looks at what it keeps with each heartbeat: a few of them take so long, in seconds."""

TOLD: Final = {
    NOBODYS: "runs a stream for {}, which has nothing of the kind there",
    MISSING: "has nothing of a stream for which {} waits there",
    LEFT_BEHIND: "goes on with a stream that {} has elsewhere",
    KEPT: "goes on with a stream that it had from {} and that nobody can come back for, or while others wait for room",
}


def owners(history: History) -> list[Violation]:
    """A replica runs a stream for a gateway exactly while that has it there; what was stopped or taken elsewhere ends.

    Streams whose gateway is gone end with their request's time, and make way before that where others wait for room.
    """
    hosts = {process.name: process.host for process in history.processes}
    found = []
    for stray in history.strays:
        lasts_s = KEPT_S if stray.what == KEPT else ASTRAY_S
        since_s = _unexplained_s(history, stray, hosts)
        if stray.until_s - since_s >= lasts_s:
            told = f"{stray.replica} {TOLD[stray.what].format(stray.gateway)}"
            found.append(Violation(OWNERS, stray.until_s, f"{told}, since {since_s:.3f} s at least"))
    return found


def _unexplained_s(history: History, stray: Stray, hosts: dict[str, str]) -> float:
    """Since when no fault kept one side from hearing of the other, or from doing what it should."""
    names = (stray.replica, stray.gateway, hosts.get(stray.replica, ""), hosts.get(stray.gateway, ""), "network")
    over_s = [_over_s(fault) for fault in history.faults if fault.from_s <= stray.until_s and _concerns(fault, names)]
    return max([stray.from_s, *over_s])


def _concerns(fault: Fault, names: tuple[str, ...]) -> bool:
    """Whether it befell one of the two; one of a link must stand between them."""
    one, between, others = fault.target.partition(">")
    return one in names and any(other in names for other in others.split(",")) if between else befalls(fault, *names)


def _over_s(fault: Fault) -> float:
    if fault.until_s is None:
        return float("inf")
    return fault.until_s + (RECOVERY_S if fault.kind in BRIEF else GIVE_UP_S)
