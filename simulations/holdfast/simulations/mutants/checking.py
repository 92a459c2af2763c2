"""Whether the checkers notice that a guard is gone: each mutant's seeds, one after the other, until one does.

The checkers judge a mutant's run with the mutant's code: they fold the log with production functions, and one that
found a missing guard only because it still has it would find nothing where the guard was never written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from time import perf_counter
from typing import Final

import msgspec

from holdfast.simulations.checkers import check_all
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.faults.kinds import draw_faults
from holdfast.simulations.mutants import mutant
from holdfast.simulations.mutants.mutant import Mutant, Setting
from holdfast.simulations.plan import SCENARIOS, Plan
from holdfast.simulations.simulation import draw_plan, run

BROKEN_KEPT: Final = 3
"""Of so many runs without a result it is kept how they broke."""


class Trial(msgspec.Struct, frozen=True):
    """A run to make: a seed as the mutant wants it, with its guard or without."""

    mutant: str
    seed: int
    guarded: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What a run broke, and how long it took (real seconds)."""

    violations: list[Violation]
    wall_s: float


class Verdict(msgspec.Struct):
    """What is known of a mutant. `seed` is the first that caught it, by `violation`.

    Its runs are of the `scenario`, or with `own_setting` like these but for other faults, sizes or settings.
    `ran` seeds took `busy_s` real seconds. `others` counts seeds in which only other checkers reported
    something, which is no proof; `broken` tells of the first seeds that have no result.
    """

    name: str
    guard: str
    places: str
    caught_by: tuple[str, ...]
    scenario: str
    own_setting: bool
    seed: int | None = None
    violation: Violation | None = None
    ran: int = 0
    busy_s: float = 0.0
    others: dict[str, int] = {}
    broken: list[str] = []

    @property
    def caught(self) -> bool:
        """Whether a seed caught it."""
        return self.seed is not None

    def add(self, seed: int, outcome: Outcome) -> None:
        """Take in what a run without the guard broke."""
        self.ran += 1
        self.busy_s += outcome.wall_s
        violation = next((one for one in outcome.violations if one.checker in self.caught_by), None)
        if violation is None:
            for checker in sorted({one.checker for one in outcome.violations}):
                self.others[checker] = self.others.get(checker, 0) + 1
        elif self.seed is None or seed < self.seed:
            self.seed, self.violation = seed, violation

    def broke(self, seed: int, text: str) -> None:
        """A run without the guard has no result."""
        self.ran += 1
        if len(self.broken) < BROKEN_KEPT:
            self.broken.append(f"seed {seed} {text}")


def plan_of(one: Mutant, seed: int) -> Plan:
    """The run of a seed as the mutant wants it."""
    setting = one.setting
    scenario = msgspec.structs.replace(SCENARIOS[setting.scenario], **setting.shape)
    plan = draw_plan(seed, scenario)
    knobs = msgspec.structs.replace(plan.knobs, **setting.knobs)
    faults = draw_faults(Random(f"{seed}/faults"), scenario, knobs, setting.kinds)
    return msgspec.structs.replace(plan, faults=faults, knobs=knobs)


def attempt(trial: Trial) -> Outcome:
    """Make a run, and judge it. For worker processes."""
    began_s = perf_counter()
    one = mutant(trial.mutant)
    plan = plan_of(one, trial.seed)
    if trial.guarded:
        violations = run(plan)[0].violations
    else:
        _, history = run(plan, mutant=one.removed())
        history.derived.clear()
        with one.removed():
            violations = check_all(history)
    return Outcome(violations, perf_counter() - began_s)


def new_verdicts(chosen: Sequence[Mutant]) -> dict[str, Verdict]:
    """Nothing ran yet."""
    return {
        one.name: Verdict(
            one.name, one.guard, one.places, one.caught_by, one.setting.scenario, own_setting=one.setting.is_own
        )
        for one in chosen
    }


def guarded_trials(verdicts: Mapping[str, Verdict]) -> list[Trial]:
    """The seeds that caught a mutant, in the same settings with all guards, once each: none of them may fail."""
    wanted: list[tuple[Setting, Trial]] = []
    for name, verdict in verdicts.items():
        if verdict.seed is None:
            continue
        setting, trial = mutant(name).setting, Trial(name, verdict.seed, guarded=True)
        if all((setting, trial.seed) != (known, other.seed) for known, other in wanted):
            wanted.append((setting, trial))
    return [trial for _, trial in wanted]


def trials(verdicts: Mapping[str, Verdict], seeds: int) -> Iterator[Trial]:
    """Each mutant's seeds from 1 on, for as long as it is not caught; take one when it can be run, no earlier."""
    for name, verdict in verdicts.items():
        for seed in range(1, seeds + 1):
            if verdict.caught:
                break
            yield Trial(name, seed)
