"""What must hold in every run, whatever breaks: one pure function over the history for each invariant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.simulations.checkers.cancels import cancels
from holdfast.simulations.checkers.draining import routable, taken_out
from holdfast.simulations.checkers.ejections import ejections
from holdfast.simulations.checkers.facts import facts
from holdfast.simulations.checkers.given_up import deadlines, given_up
from holdfast.simulations.checkers.health import bounds, goal_reached_s, liveness, quiet
from holdfast.simulations.checkers.log import durability, fences, fold, leaders
from holdfast.simulations.checkers.members import leases, members
from holdfast.simulations.checkers.moves import moves
from holdfast.simulations.checkers.owners import owners
from holdfast.simulations.checkers.placement import capacity, drains, losses, orphans, placements, updates
from holdfast.simulations.checkers.retries import retries
from holdfast.simulations.checkers.shedding import shedding
from holdfast.simulations.checkers.sickness import sickness
from holdfast.simulations.checkers.starts import attempts, starts
from holdfast.simulations.checkers.streams import ends, error_counts, streams
from holdfast.simulations.checkers.thresholds import thresholds
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.checkers.wishes import wishes
from holdfast.simulations.history import History

__all__ = ["CHECKERS", "Violation", "check_all", "error_counts", "goal_reached_s"]

CHECKERS: Final[tuple[Callable[[History], list[Violation]], ...]] = (
    streams,
    ends,
    cancels,
    shedding,
    wishes,
    thresholds,
    retries,
    ejections,
    moves,
    given_up,
    deadlines,
    owners,
    attempts,
    durability,
    fold,
    leaders,
    fences,
    placements,
    starts,
    capacity,
    losses,
    leases,
    drains,
    updates,
    routable,
    taken_out,
    sickness,
    facts,
    orphans,
    members,
    bounds,
    liveness,
    quiet,
)
"""In the order in which they are reported: what users see first, then why."""

BROKE_OFF: Final = "broke off"
"""What is reported, and nothing else, of a run that raised: it has no end that could be judged."""

VIOLATIONS_MAX: Final = 20
"""So many are told of one invariant; a run that broke one may have broken it hundreds of times."""


def check_all(history: History) -> list[Violation]:
    """Everything that the run broke. The history must be complete: it is not read again after changes."""
    if history.broken:
        return [Violation(BROKE_OFF, history.ended_s, f"the run raised: {history.broken}")]
    return [violation for checker in CHECKERS for violation in checker(history)[:VIOLATIONS_MAX]]
