"""Runs of mutants that are told what comes of them. Imported by worker processes."""

from __future__ import annotations

from holdfast.simulations.checkers.streams import STREAMS
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.mutants.checking import Outcome, Trial

TWICE = Violation(STREAMS, 1.0, "token 7 came twice")


def attempt(trial: Trial) -> Outcome:
    """As `checking.attempt`: from seed 3 on something is found, by the checker of streams; `redial` has no result.

    In seed 4 of `deadline` the guard makes no difference.
    """
    if trial.mutant == "redial":
        raise KeyError("in the simulation")
    if trial.mutant == "deadline":
        return Outcome([Violation("ends", 1.0, "never")] if trial.seed == 4 else [], 0.25)
    return Outcome([TWICE] if trial.seed >= 3 and not trial.guarded else [], 0.25)
