"""Runs that are told what comes of them, for tests of what is done with runs. Imported by worker processes."""

from __future__ import annotations

import os
import signal

from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.running.campaign import Case
from holdfast.simulations.running.shrink import Trial
from holdfast.simulations.simulation import Result

VIOLATION = Violation("exactly-once", 12.5, "request 3 got token 7 twice")


def result(seed: int, *violations: Violation, faults: dict[str, int] | None = None) -> Result:
    """What a run returns."""
    counts, judged = {"requests": 40}, {"streams": {"answers": seed - 1}}
    return Result(seed, "standard", f"{seed:x}", list(violations), faults or {"freeze": 2}, counts, 0.25, judged)


def simulate(case: Case) -> Result:
    """As `campaign.simulate`: seed 3 breaks an invariant, seed 4 raises, seed 5 takes its process with it."""
    match case.seed:
        case 3:
            return result(3, VIOLATION)
        case 4:
            raise KeyError("in the simulation")
        case 5:
            os._exit(7)
    return result(case.seed)


def interrupted(case: Case) -> Result:
    """Somebody presses Ctrl-C while seed 2 runs."""
    if case.seed == 2:
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    return result(case.seed)


def terminated(case: Case) -> Result:
    """Somebody ends the campaign by SIGTERM while seed 2 runs."""
    if case.seed == 2:
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    return result(case.seed)


def always_fails(case: Case) -> Result:
    """Every seed breaks an invariant."""
    return result(case.seed, VIOLATION)


def attempt(trial: Trial) -> Result:
    """As `shrink.attempt`: it fails as long as fault 2 is in it."""
    fails = any(fault.number == 2 for fault in trial.plan.faults)
    return result(trial.plan.seed, *([VIOLATION] if fails else []))
