"""What must hold in every run, whatever breaks: one pure function over the history for each invariant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from holdfast.simulations.checkers.cancels import cancels
from holdfast.simulations.checkers.draining import routable, taken_out
from holdfast.simulations.checkers.ejections import ejections
from holdfast.simulations.checkers.facts import facts
from holdfast.simulations.checkers.given_up import deadlines, given_up
from holdfast.simulations.checkers.health import bounds, goal_reached_s, liveness, quiet
from holdfast.simulations.checkers.judged import Checker, Verdict
from holdfast.simulations.checkers.log import durability, fences, fold, leaders
from holdfast.simulations.checkers.members import leases, members
from holdfast.simulations.checkers.moves import moves
from holdfast.simulations.checkers.owners import LOOKED_AT, owners
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

__all__ = ["CHECKERS", "Violation", "check_all", "error_counts", "goal_reached_s", "judge"]

CHECKERS: Final[Mapping[Checker, tuple[str, ...]]] = {
    streams: ("answers",),
    ends: ("requests of clients", "requests at gateways"),
    cancels: ("streams that nobody wants",),
    shedding: ("rejections in favour of others",),
    wishes: ("decisions", "last wishes"),
    thresholds: ("decisions", "changes told"),
    retries: ("what was asked of budgets",),
    ejections: ("times that a replica was passed over", "reasons that are told"),
    moves: ("streams on frozen replicas", "streams that engines lost", "streams on barren engines"),
    given_up: ("streams that lost their replicas",),
    deadlines: ("attempts",),
    owners: tuple(LOOKED_AT.values()),
    attempts: ("requests that engines took in",),
    durability: ("acknowledged events", "entries"),
    fold: ("states of processes", "states on the way"),
    leaders: ("entries", "decisions", "elections"),
    fences: ("decisions",),
    placements: ("placements", "processes of replicas"),
    starts: ("replacements after failed starts",),
    capacity: ("placements", "processes of replicas"),
    losses: ("nodes without a lease soon after others",),
    leases: ("leases that ended", "members given up"),
    drains: ("replicas told to stop with streams", "clients sent away"),
    updates: ("old replicas that are stopped",),
    routable: ("planned stops", "replicas that nodes stop"),
    taken_out: (
        "drained gateways",
        "gateways that call themselves drained",
        "drains that were lifted",
        "replicas placed beside drained nodes",
    ),
    sickness: ("replicas called unhealthy", "replicas taken out for it", "replicas that stand still for good"),
    facts: ("starts and ends that are told", "replicas told to stop", "gateways at the end"),
    orphans: ("processes of replicas", "replicas of the log"),
    members: ("members that run", "members that ended"),
    bounds: ("queues and buffers",),
    liveness: ("runs with a goal", "requests once all is well"),
    quiet: ("processes that ended by themselves",),
}
"""In the order in which they are reported, what users see first, then why; and what each of them judges."""

BROKE_OFF: Final = "broke off"
"""What is reported, and nothing else, of a run that raised: it has no end that could be judged."""

VIOLATIONS_MAX: Final = 20
"""So many are told of one invariant; a run that broke one may have broken it hundreds of times."""


def judge(history: History) -> Verdict:
    """Everything that the run broke, and how much was judged. The history must be complete: it is not read again after
    changes. Of a run that raised nothing is judged.
    """
    judged = {checker.__name__: dict.fromkeys(things, 0) for checker, things in CHECKERS.items()}
    if history.broken:
        broken = Violation(BROKE_OFF, history.ended_s, f"the run raised: {history.broken}")
        return Verdict([broken], judged)
    violations = []
    for checker in CHECKERS:
        violations += checker(history, judged[checker.__name__])[:VIOLATIONS_MAX]
    return Verdict(violations, judged)


def check_all(history: History) -> list[Violation]:
    """Everything that the run broke, as `judge` says."""
    return judge(history).violations
