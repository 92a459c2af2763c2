"""A failing run becomes small, and stays the same failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest

from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.plan import SCENARIOS, STANDARD, Plan
from holdfast.simulations.running.parts import options
from holdfast.simulations.running.pool import Broken
from holdfast.simulations.running.shrink import DoesNotFail, Shrinker, Trial
from holdfast.simulations.simulation import Result, draw_plan
from holdfast.simulations.work.items import Ask
from tests.unit.simulations.fake_runs import result

Judge = Callable[[Plan], str | None]


def attempts(judge: Judge) -> Callable[[Iterable[Trial]], Iterator[tuple[Trial, Result | Broken]]]:
    """Runs that break the invariant that `judge` names, done in the opposite order."""

    def run(trials: Iterable[Trial]) -> Iterator[tuple[Trial, Result | Broken]]:
        for trial in reversed(list(trials)):
            broken = judge(trial.plan)
            yield trial, result(trial.plan.seed, *([Violation(broken, 1.0, "so it is")] if broken else []))

    return run


def numbers(plan: Plan) -> tuple[list[int], list[int]]:
    """The numbers of a plan's faults and requests."""
    return [fault.number for fault in plan.faults], [item.number for item in plan.work if isinstance(item, Ask)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_only_what_it_takes_to_fail_is_left(jobs: int) -> None:
    def judge(plan: Plan) -> str | None:
        faults, work = numbers(plan)
        return "exactly-once" if {3, 11} <= set(faults) and 5 in work and plan.lasts_s > 20.1 else None

    plan = draw_plan(1, SCENARIOS[STANDARD])
    shrunk = Shrinker(attempts(judge), jobs).shrink(plan)
    assert numbers(shrunk.plan) == ([3, 11], [5])
    assert shrunk.plan.lasts_s == 20.25
    assert shrunk.violation.checker == "exactly-once"
    assert (shrunk.plan.seed, shrunk.plan.knobs) == (plan.seed, plan.knobs)
    assert options(plan, shrunk.plan) == ["--only-faults", "3,11", "--only-work", "5", "--lasts-s", "20.25"]


def test_how_many_run_at_a_time_changes_nothing_of_what_is_found() -> None:
    def judge(plan: Plan) -> str | None:
        faults, _ = numbers(plan)
        return "exactly-once" if len(faults) >= 7 or {1, 2} <= set(faults) else None

    plan = draw_plan(2, SCENARIOS[STANDARD])
    found = [Shrinker(attempts(judge), jobs).shrink(plan).plan for jobs in (1, 2, 5)]
    assert found[0] == found[1] == found[2]


def test_another_invariant_is_another_bug() -> None:
    def judge(plan: Plan) -> str | None:
        faults, _ = numbers(plan)
        return "exactly-once" if 3 in faults else "liveness"

    shrunk = Shrinker(attempts(judge), 2).shrink(draw_plan(1, SCENARIOS[STANDARD]))
    assert numbers(shrunk.plan) == ([3], [])
    assert shrunk.violation.checker == "exactly-once"


def test_a_run_that_raises_is_shrunk_too() -> None:
    def run(trials: Iterable[Trial]) -> Iterator[tuple[Trial, Result | Broken]]:
        for trial in trials:
            bad = 4 in numbers(trial.plan)[0]
            yield trial, Broken("raised KeyError", "…") if bad else result(1)

    shrunk = Shrinker(run, 1).shrink(draw_plan(1, SCENARIOS[STANDARD]))
    assert numbers(shrunk.plan) == ([4], [])
    assert shrunk.violation == Violation("raised KeyError", 0.0, "…")


def test_another_exception_is_another_bug() -> None:
    raised = "o1: nobody handled it: Traceback (most recent call last):\n  File …\n{}: 'x'\n".format

    def run(trials: Iterable[Trial]) -> Iterator[tuple[Trial, Result | Broken]]:
        for trial in trials:
            name = "KeyError" if 6 in numbers(trial.plan)[0] else "ValueError"
            yield trial, result(1, Violation("quiet", 1.0, raised(name)))

    shrunk = Shrinker(run, 2).shrink(draw_plan(1, SCENARIOS[STANDARD]))
    assert numbers(shrunk.plan) == ([6], [])


def test_a_run_that_fails_without_anything_becomes_empty_and_short() -> None:
    shrunk = Shrinker(attempts(lambda _plan: "bounds"), 1).shrink(draw_plan(1, SCENARIOS[STANDARD]))
    assert numbers(shrunk.plan) == ([], [])
    assert shrunk.plan.lasts_s == 0.25
    made = options(draw_plan(1, SCENARIOS[STANDARD]), shrunk.plan)
    assert made == ["--only-faults", "none", "--only-work", "none", "--lasts-s", "0.25"]


def test_a_run_that_does_not_fail_is_not_shrunk() -> None:
    with pytest.raises(DoesNotFail, match="seed 1 of standard breaks no invariant"):
        Shrinker(attempts(lambda _plan: None), 1).shrink(draw_plan(1, SCENARIOS[STANDARD]))


def test_a_run_of_few_steps_takes_few_runs() -> None:
    plan = draw_plan(1, SCENARIOS[STANDARD])
    seen: list[tuple[Plan, int]] = []
    shrinker = Shrinker(
        attempts(lambda plan: "x" if 3 in numbers(plan)[0] else None), 1, lambda *step: seen.append(step)
    )
    shrunk = shrinker.shrink(msgspec.structs.replace(plan, work=()))
    assert shrunk.runs < 60
    assert [runs for _, runs in seen] == sorted(runs for _, runs in seen)
    assert seen[-1][0] == shrunk.plan
