"""`holdfast sim mutants`: takes out guards, runs seeds, and tells which of them nobody missed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape

from holdfast.gateway.cli.running import EXIT_FAILED
from holdfast.gateway.cli.tables import console, print_json, table
from holdfast.simulations.mutants import MUTANTS, mutant
from holdfast.simulations.mutants.checking import (
    Outcome,
    Trial,
    Verdict,
    attempt,
    guarded_trials,
    new_verdicts,
    trials,
)
from holdfast.simulations.running.commit import commit
from holdfast.simulations.running.output import print_violations
from holdfast.simulations.running.pool import Broken, Pool

PROGRESS_S: Final = 10.0
"""How far the runs with all guards are is told so often, in real seconds."""


class Report(msgspec.Struct, frozen=True):
    """All verdicts, for machines. `guarded` are runs with all guards that failed all the same, by mutant's setting.

    `plain` mutants were caught in a scenario as `sim run` has it.
    """

    commit: str
    seeds: int
    jobs: int
    wall_s: float
    guarded: list[str]
    mutants: list[Verdict]
    survivors: list[str]
    plain: int


def check(names: Sequence[str], seeds: int, jobs: int, *, as_json: bool) -> int:
    """Run mutants (all, if none is named). 0 when each was caught within so many seeds, else 1. Raises `NoSuchMutant`.

    Then it is made sure that the code as it is passes those seeds: one that fails anyhow has caught nothing.
    """
    began_s = time.monotonic()
    chosen = [mutant(name) for name in names] or list(MUTANTS.values())
    verdicts = new_verdicts(chosen)
    say = Console(stderr=as_json, highlight=False, soft_wrap=True)
    with Pool(attempt, jobs) as pool:
        _mutated(pool, verdicts, seeds, say)
        guarded = _guarded(pool, verdicts, say)
    survivors = [name for name, verdict in verdicts.items() if not verdict.caught]
    wall_s = round(time.monotonic() - began_s, 1)
    if as_json:
        print_json(Report(commit(), seeds, jobs, wall_s, guarded, list(verdicts.values()), survivors, _plain(verdicts)))
    else:
        _summary(verdicts, survivors, guarded, wall_s)
    return EXIT_FAILED if guarded or survivors else 0


def _plain(verdicts: dict[str, Verdict]) -> int:
    """How many were caught by runs that `sim run` makes too."""
    return sum(verdict.caught and not verdict.own_setting for verdict in verdicts.values())


def _guarded(pool: Pool[Trial, Outcome], verdicts: dict[str, Verdict], say: Console) -> list[str]:
    """The runs with all guards that failed."""
    tasks = guarded_trials(verdicts)
    failed, told_s = [], time.monotonic()
    for done, (trial, answer) in enumerate(pool.map(tasks), 1):
        if isinstance(answer, Broken) or answer.violations:
            what = f"seed {trial.seed} as {trial.mutant} has it"
            failed.append(what)
            say.print(f"[bold red]{what} fails with all guards[/]")
            if isinstance(answer, Broken):
                say.print(f"  {escape(answer.how)}: {escape(answer.text)}")
            else:
                print_violations(say, answer.violations)
        if time.monotonic() - told_s >= PROGRESS_S or done == len(tasks):
            told_s = time.monotonic()
            say.print(f"{done:,} of {len(tasks):,} runs with all guards, {len(failed):,} failed")
    return failed


def _mutated(pool: Pool[Trial, Outcome], verdicts: dict[str, Verdict], seeds: int, say: Console) -> None:
    for trial, answer in pool.map(trials(verdicts, seeds)):
        verdict = verdicts[trial.mutant]
        if isinstance(answer, Broken):
            verdict.broke(trial.seed, f"{answer.how}: {answer.text}")
            continue
        known = verdict.caught
        verdict.add(trial.seed, answer)
        if verdict.violation is not None and not known:
            say.print(f"{trial.mutant} is caught by seed {trial.seed}")
            print_violations(say, [verdict.violation])
            say.print(f"  holdfast sim replay {trial.seed} --mutant {trial.mutant}")


_COLUMNS: Final = ("WITHOUT", "CAUGHT BY SEED", "CHECKER", "SCENARIO", "SETTING", "RUNS", "SECONDS", "GUARD")


def _summary(verdicts: dict[str, Verdict], survivors: list[str], guarded: list[str], wall_s: float) -> None:
    out = console()
    rows = [
        (
            verdict.name,
            verdict.seed if verdict.caught else "none",
            verdict.violation.checker if verdict.violation else "-",
            verdict.scenario,
            "its own" if verdict.own_setting else "as it is",
            verdict.ran,
            f"{verdict.busy_s:.1f}",
            verdict.guard,
        )
        for verdict in verdicts.values()
    ]
    out.print(table("\nMutants", _COLUMNS, rows))
    for name in survivors:
        others = ", ".join(f"{checker} {number}" for checker, number in verdicts[name].others.items())
        out.print(f"[bold red]nobody missed {name}[/]" + (f"; only seen: {others}" if others else ""))
        for text in verdicts[name].broken:
            out.print(f"  {escape(text)}", soft_wrap=True)
    for what in guarded:
        out.print(f"[bold red]{what} fails with all guards too[/]")
    caught = len(verdicts) - len(survivors)
    result = f"[bold red]{len(survivors)} survived[/]" if survivors else "[bold green]none survived[/]"
    out.print(f"{_plain(verdicts)} were caught in a scenario as it is, the others in settings of their own")
    out.print(f"{caught} of {len(verdicts)} mutants were caught in {wall_s:.1f} s: {result}", soft_wrap=True)
