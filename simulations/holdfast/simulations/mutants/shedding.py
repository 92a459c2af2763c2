"""Guards of what is shed: the lowest priority first."""

from __future__ import annotations

from typing import Final

from holdfast.core import overloads
from holdfast.gateway.serving import Serving
from holdfast.gateway.waiting import WaitingQueue
from holdfast.simulations.checkers.health import BOUNDS
from holdfast.simulations.checkers.shedding import SHEDDING
from holdfast.simulations.checkers.thresholds import THRESHOLDS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, Mutant

MUTANTS: Final = (
    Mutant(
        "lowest-first",
        "a request takes the place of one of a lower priority, and of no other",
        (edit(WaitingQueue.below, ("if other < priority and one.count", "if one.count")),),
        (SHEDDING,),
        CROWDED,
    ),
    Mutant(
        "made-to-what-holds",
        "a change of thresholds is made to those that hold, and not to those that its gateway knew",
        (
            edit(
                overloads.threshold_decisions, ("pending.changes.made_to(before)", "pending.changes.made_to(NONE_SET)")
            ),
        ),
        (THRESHOLDS,),
    ),
    Mutant(
        "thresholds-hold",
        "gateways hold to the thresholds that were set at run time",
        (edit(Serving._sync_pools, ("deployment.thresholds.over(config.thresholds).over", "config.thresholds.over")),),
        (BOUNDS,),
    ),
)
