"""`holdfast sim mutants`: which guards nobody missed, and whether what caught the others was sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.simulations.checkers.streams import STREAMS
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.cli import app
from holdfast.simulations.mutants import MUTANTS, command, mutant
from holdfast.simulations.mutants.checking import (
    Outcome,
    Trial,
    attempt,
    guarded_trials,
    new_verdicts,
    plan_of,
    trials,
)
from tests.unit.simulations import fake_trials

Invoke = Callable[..., Any]

USUAL = ["reads-its-decisions", "own-entry"]


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command, with runs that are told what comes of them."""
    monkeypatch.setattr(command, "attempt", fake_trials.attempt)
    monkeypatch.setattr(command, "commit", lambda: "0123abcd")

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["mutants", "--jobs", "2", *arguments], env={"COLUMNS": "200"})

    return invoke


def test_mutants_that_are_all_caught_are_told_with_the_seed_and_the_checker(sim: Invoke) -> None:
    ended = sim("--only", "token-once", "--only", "held-back-text")
    assert ended.exit_code == 0
    assert "token-once is caught by seed 3\n  streams at 1.000 s: token 7 came twice" in ended.stdout
    assert "  holdfast sim replay 3 --mutant token-once\n" in ended.stdout
    lines = ended.stdout.splitlines()
    rows = [line.split()[:3] for line in lines]
    assert any(line.split()[:7] == ["token-once", "3", "streams", "standard", "as", "it", "is"] for line in lines)
    assert ["token-once", "3", "streams"] in rows
    assert ["held-back-text", "3", "streams"] in rows
    assert "2 were caught in a scenario as it is, the others in settings of their own" in ended.stdout
    assert "2 of 2 mutants were caught" in ended.stdout
    assert ended.stdout.rstrip().endswith("none survived")


def test_a_mutant_that_only_other_checkers_notice_survives(sim: Invoke) -> None:
    ended = sim("--only", "queue-bound", "--seeds", "5")
    assert ended.exit_code == 1
    assert "nobody missed queue-bound; only seen: streams 3" in ended.stdout
    assert ended.stdout.rstrip().endswith("1 survived")


def test_a_seed_that_fails_with_all_guards_proves_nothing(sim: Invoke) -> None:
    ended = sim("--only", "deadline")
    assert ended.exit_code == 1
    assert "seed 4 as deadline has it fails with all guards too" in ended.stdout


def test_runs_without_a_result_are_told(sim: Invoke) -> None:
    ended = sim("--only", "redial", "--seeds", "2", "--json")
    assert ended.exit_code == 1
    told = json.loads(ended.stdout)
    assert told["survivors"] == ["redial"]
    (verdict,) = told["mutants"]
    assert (verdict["ran"], len(verdict["broken"])) == (2, 2)
    assert "KeyError" in verdict["broken"][0]


def test_it_is_told_which_mutants_need_a_setting_of_their_own(sim: Invoke) -> None:
    told = json.loads(sim("--only", "token-once", "--only", "blast-radius", "--only", "lowest-first", "--json").stdout)
    settings = [(one["name"], one["scenario"], one["own_setting"]) for one in told["mutants"]]
    assert settings == [
        ("token-once", "standard", False),
        ("blast-radius", "standard", True),
        ("lowest-first", "busy", False),
    ]
    assert told["plain"] == sum(one["seed"] is not None and not one["own_setting"] for one in told["mutants"]) == 1


def test_a_mutant_that_does_not_exist_is_named(sim: Invoke) -> None:
    ended = sim("--only", "nonsense")
    assert ended.exit_code == 2
    assert "there is no mutant nonsense" in ended.output


def test_the_first_seed_counts_whichever_comes_first() -> None:
    verdict = new_verdicts([mutant("token-once")])["token-once"]
    for seed in (4, 3, 5):
        verdict.add(seed, Outcome([Violation(STREAMS, float(seed), "twice")], 0.5))
    assert (verdict.seed, verdict.violation, verdict.ran) == (3, Violation(STREAMS, 3.0, "twice"), 3)


def test_a_mutant_that_is_caught_needs_no_more_seeds() -> None:
    verdicts = new_verdicts([mutant(name) for name in USUAL])
    asked = []
    for trial in trials(verdicts, 3):
        asked.append((trial.mutant, trial.seed))
        if asked[-1] == (USUAL[0], 2):
            verdicts[USUAL[0]].add(2, Outcome([Violation("placements", 1.0, "twice")], 0.5))
    assert asked == [(USUAL[0], 1), (USUAL[0], 2), (USUAL[1], 1), (USUAL[1], 2), (USUAL[1], 3)]


def test_seeds_that_caught_something_run_once_with_all_guards_for_each_setting() -> None:
    verdicts = new_verdicts([mutant(name) for name in (*USUAL, "one-at-a-time", "blast-radius", "gone-node")])
    for name, seed in ((USUAL[0], 2), (USUAL[1], 2), ("one-at-a-time", 3), ("blast-radius", 2)):
        verdicts[name].seed = seed
    asked = guarded_trials(verdicts)
    assert [(trial.mutant, trial.seed) for trial in asked] == [(USUAL[0], 2), ("one-at-a-time", 3), ("blast-radius", 2)]
    assert all(trial.guarded for trial in asked)


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_mutants_runs_are_of_its_setting(name: str) -> None:
    one = mutant(name)
    plan = plan_of(one, 5)
    assert plan.scenario.name == one.setting.scenario
    assert {fault.kind for fault in plan.faults} <= (set(one.setting.kinds) or {fault.kind for fault in plan.faults})
    for field, value in one.setting.knobs.items():
        assert getattr(plan.knobs, field) == value
    for field, value in one.setting.shape.items():
        assert getattr(plan.scenario, field) == value


def test_a_real_mutant_is_caught_and_the_code_is_whole_again() -> None:
    caught = attempt(Trial("free-slots", 5))
    assert "capacity" in {violation.checker for violation in caught.violations}
    assert attempt(Trial("free-slots", 5, guarded=True)).violations == []


def test_the_run_of_a_mutant_can_be_told() -> None:
    ended = CliRunner().invoke(app, ["replay", "5", "--mutant", "free-slots", "--lasts-s", "9", "--json"])
    assert ended.exit_code == 1
    result = json.loads(ended.stdout.splitlines()[-1])
    assert "capacity" in {violation["checker"] for violation in result["violations"]}
    ended = CliRunner().invoke(app, ["replay", "5", "--mutant", "free-slots", "--scenario", "core"])
    assert (ended.exit_code, "--mutant goes with a seed" in ended.output) == (2, True)
