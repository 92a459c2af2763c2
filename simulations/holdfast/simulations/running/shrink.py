"""Makes a failing run small: the fewest faults and pieces of work, and the shortest time, with which it still fails.

Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002) over the plan's
lists, then a search for the shortest time, again and again until nothing more can be left out. A run counts as failing
when the same checker finds a violation as before, with the same exception if it is one: another would be another bug.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.core.errors import Misuse
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.plan import Plan
from holdfast.simulations.running.parts import PARTS, items, keep
from holdfast.simulations.running.pool import Broken

if TYPE_CHECKING:
    from holdfast.simulations.simulation import Result

ROUNDS_MAX = 8
"""So often everything is gone through at most; each time something must have been left out."""

LENGTH_STEP_S = 0.25
"""The time of a run is found to this precision (virtual seconds)."""


class Trial(msgspec.Struct, frozen=True):
    """One of several plans to run."""

    number: int
    plan: Plan


class DoesNotFail(Misuse):
    """There is nothing to shrink: the run breaks no invariant."""


class Shrunk(msgspec.Struct, frozen=True):
    """What is left of a plan, the violation that it leads to, and how many runs it took to find."""

    plan: Plan
    violation: Violation
    runs: int


class Shrinker:
    """Shrinks a plan. `attempts` runs trials, `jobs` at a time, as `Pool.map` does.

    `said` hears of each step forward: the plan so far, and the number of runs.
    """

    def __init__(
        self,
        attempts: Callable[[Iterable[Trial]], Iterable[tuple[Trial, Result | Broken]]],
        jobs: int,
        said: Callable[[Plan, int], object] = lambda _plan, _runs: None,
    ) -> None:
        self._attempts = attempts
        self._jobs = jobs
        self._said = said
        self._runs = 0
        self._bug = ""

    def shrink(self, plan: Plan) -> Shrunk:
        """The smallest plan found. Raises `DoesNotFail`."""
        failing = self._failing([plan])
        if not failing:
            raise DoesNotFail(
                f"seed {plan.seed} of {plan.scenario.name} breaks no invariant: there is nothing to shrink"
            )
        self._bug = bug_of(failing[0])
        for _ in range(ROUNDS_MAX):
            before = plan
            for part in PARTS:
                plan = self._fewer(plan, part)
            plan = self._shorter(plan)
            if plan == before:
                break
        return Shrunk(plan, self._failing([plan])[0], self._runs)

    # --- the lists --------------------------------------------------------------------------------------

    def _fewer(self, plan: Plan, part: str) -> Plan:
        """Leave items of one list out, ever smaller pieces of it, until none can be."""
        left = items(plan, part)
        pieces = 1
        while left:
            found = self._first_failing(keep(plan, part, kept) for kept in _without_each(left, pieces))
            if found is not None:
                plan, left = found, items(found, part)
                pieces = max(1, pieces - 1)
            elif pieces >= len(left):
                break
            else:
                pieces = min(len(left), pieces * 2)
        return plan

    # --- the time ---------------------------------------------------------------------------------------

    def _shorter(self, plan: Plan) -> Plan:
        """End earlier, by halves."""
        least_s = 0.0
        while plan.lasts_s - least_s > LENGTH_STEP_S:
            middle_s = math.ceil((least_s + plan.lasts_s) / 2 / LENGTH_STEP_S) * LENGTH_STEP_S
            if middle_s >= plan.lasts_s:
                break
            found = self._first_failing([msgspec.structs.replace(plan, lasts_s=middle_s)])
            if found is None:
                least_s = middle_s
            else:
                plan = found
        return plan

    # --- running ----------------------------------------------------------------------------------------

    def _first_failing(self, plans: Iterable[Plan]) -> Plan | None:
        """The first of the plans that fails as before: the same one however many are run at a time."""
        remaining = iter(plans)
        while batch := list(itertools.islice(remaining, self._jobs)):
            failing = self._failing(batch)
            if failing:
                plan = batch[min(failing)]
                self._said(plan, self._runs)
                return plan
        return None

    def _failing(self, plans: Sequence[Plan]) -> dict[int, Violation]:
        """Which of the plans fail, by their place."""
        trials = [Trial(number, plan) for number, plan in enumerate(plans)]
        self._runs += len(trials)
        failing = {}
        for trial, answer in self._attempts(trials):
            for violation in violations_of(answer):
                if self._bug in ("", bug_of(violation)):
                    failing[trial.number] = violation
                    break
        return failing


def bug_of(violation: Violation) -> str:
    """What tells bugs apart: the checker, and the type of the exception where the message is a traceback."""
    _, found, traceback = violation.message.partition("Traceback ")
    if not found:
        return violation.checker
    return f"{violation.checker} {traceback.strip().splitlines()[-1].partition(':')[0]}"


def violations_of(answer: Result | Broken) -> list[Violation]:
    """What a run broke. One without a result counts as a violation too, of how it broke."""
    if isinstance(answer, Broken):
        return [Violation(answer.how, 0.0, answer.text)]
    return answer.violations


def attempt(trial: Trial) -> Result:
    """Make a run. For worker processes."""
    from holdfast.simulations.simulation import run

    result, _history = run(trial.plan)
    return result


def _without_each(whole: Sequence[Any], pieces: int) -> Iterator[Sequence[Any]]:
    """The whole without its first piece, without its second, and so on."""
    bounds = [len(whole) * number // pieces for number in range(pieces + 1)]
    for first, end in itertools.pairwise(bounds):
        yield (*whole[:first], *whole[end:])
