"""Streams belong to somebody: what a replica holds for a gateway is what that gateway has there, and no more."""

from __future__ import annotations

from typing import Final

from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import Fault
from holdfast.simulations.strays import KEPT, LEFT_BEHIND, MISSING, NOBODYS, Look, Stray

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

LOOKED_AT: Final = {
    NOBODYS: "streams that replicas have for gateways",
    MISSING: "streams that gateways wait for",
    KEPT: "streams without a gateway",
}
"""What was looked at for each kind of stray."""


def owners(history: History, judged: Judged) -> list[Violation]:
    """A replica runs a stream for a gateway exactly while that has it there; what was stopped or taken elsewhere ends.

    Streams whose gateway is gone end with their request's time, and make way before that where others wait for room.
    """
    hosts = {process.name: process.host for process in history.processes}
    for look in history.looks:
        judged[LOOKED_AT[look.what]] += look.at_s - _over_s(history, look, look.at_s, hosts) >= ASTRAY_S
    found = []
    for stray in history.strays:
        lasts_s = KEPT_S if stray.what == KEPT else ASTRAY_S
        since_s = max(stray.from_s, _over_s(history, stray, stray.until_s, hosts))
        if stray.until_s - since_s >= lasts_s:
            told = f"{stray.replica} {TOLD[stray.what].format(stray.gateway)}"
            found.append(Violation(OWNERS, stray.until_s, f"{told}, since {since_s:.3f} s at least"))
    return found


def _over_s(history: History, seen: Stray | Look, at_s: float, hosts: dict[str, str]) -> float:
    """Since when, until then, no fault kept one side from hearing of the other, or from doing what it should.

    What a replica has without a gateway is its own affair.
    """
    names: tuple[str, ...] = (seen.replica, hosts.get(seen.replica, ""))
    if seen.what != KEPT:
        names += (seen.gateway, hosts.get(seen.gateway, ""), "network")
    explained = (fault for fault in history.faults if fault.from_s <= at_s and _concerns(fault, names))
    return max((_explains_until_s(fault) for fault in explained), default=0.0)


def _concerns(fault: Fault, names: tuple[str, ...]) -> bool:
    """Whether it befell one of the two; one of a link must stand between them."""
    one, between, others = fault.target.partition(">")
    return one in names and any(other in names for other in others.split(",")) if between else befalls(fault, *names)


def _explains_until_s(fault: Fault) -> float:
    if fault.until_s is None:
        return float("inf")
    return fault.until_s + (RECOVERY_S if fault.kind in BRIEF else GIVE_UP_S)
