"""What the commands of `holdfast sim` do. Each returns its exit code."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape

from holdfast.core.errors import Misuse
from holdfast.gateway.cli.running import EXIT_FAILED, EXIT_INTERRUPTED
from holdfast.gateway.cli.tables import console, print_json, table
from holdfast.simulations import bugs
from holdfast.simulations.plan import SCENARIOS, STANDARD, Plan, Scenario
from holdfast.simulations.running import parts
from holdfast.simulations.running.campaign import Case, kinds_of, new_tally, prepare, simulate
from holdfast.simulations.running.commit import commit
from holdfast.simulations.running.narrate import narrate
from holdfast.simulations.running.output import (
    Asked,
    CampaignView,
    print_judged,
    print_narration,
    print_timeline,
    print_violations,
    replay_command,
)
from holdfast.simulations.running.pool import Pool
from holdfast.simulations.running.shrink import Shrinker, attempt

if TYPE_CHECKING:
    from holdfast.simulations.simulation import Result


class Chosen(msgspec.Struct, frozen=True):
    """A run as a person names it: a seed of a scenario, or a bug, and what is kept of it.

    With `mutant` it is the seed as that mutant's runs are, without the guard.
    """

    what: str
    scenario: str | None = None
    only_faults: str | None = None
    only_work: str | None = None
    lasts_s: float | None = None
    mutant: str | None = None

    def plan(self) -> Plan:
        """The run's plan. Raises `Misuse` for what does not exist."""
        plan = self.whole()
        for part, text in zip(parts.PARTS, (self.only_faults, self.only_work), strict=True):
            if text is not None:
                plan = parts.keep_named(plan, part, text)
        if self.lasts_s is not None:
            plan = msgspec.structs.replace(plan, lasts_s=min(self.lasts_s, plan.lasts_s))
        return plan

    def code(self) -> AbstractContextManager[None]:
        """While entered, the code is that of the run. Raises `NoSuchMutant`."""
        if self.mutant is None:
            return nullcontext()
        from holdfast.simulations.mutants import removed

        return removed(self.mutant)

    def command(self) -> str:
        """The command that makes the run again."""
        named = {
            "--scenario": (self.scenario or STANDARD) if self.what.isdecimal() and self.mutant is None else None,
            "--only-faults": self.only_faults,
            "--only-work": self.only_work,
            "--lasts-s": None if self.lasts_s is None else f"{self.lasts_s:g}",
            "--mutant": self.mutant,
        }
        options = [part for name, value in named.items() if value is not None for part in (name, value)]
        return shlex.join(["holdfast", "sim", "replay", self.what, *options])

    def whole(self) -> Plan:
        """The plan before anything is left out of it. Raises `Misuse`."""
        if self.mutant is not None:
            from holdfast.simulations.mutants import mutant
            from holdfast.simulations.mutants.checking import plan_of

            if self.scenario is not None or not self.what.isdecimal():
                raise Misuse("--mutant goes with a seed, and has its own scenario")
            return plan_of(mutant(self.mutant), int(self.what))
        if self.what.isdecimal():
            from holdfast.simulations.simulation import draw_plan

            return draw_plan(int(self.what), scenario_named(self.scenario or STANDARD))
        if self.scenario is not None:
            raise Misuse(f"--scenario goes with a seed; {self.what} has its own")
        return bugs.load(self.what).plan


def scenario_named(name: str) -> Scenario:
    """Raises `Misuse` when there is none of this name."""
    if name not in SCENARIOS:
        raise Misuse(f"there is no scenario {name}; there are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def run(name: str, first_seed: int, seeds: int, jobs: int, *, as_json: bool) -> int:
    """Run many seeds. 0 when none failed, 1 when one did, 130 when it was interrupted before one did.

    1 as well when a kind of fault was injected in none, or a checker judged nothing, though they were many.
    """
    scenario = scenario_named(name)
    asked = Asked(name, first_seed, seeds, min(jobs, seeds), commit())
    tally, interrupted = new_tally(scenario), False
    cases = (Case(seed, name) for seed in range(first_seed, first_seed + seeds))
    with CampaignView(asked, as_json=as_json) as view, _ended_as_by_ctrl_c():
        try:
            with Pool(simulate, asked.jobs, prepare=prepare) as pool:
                for case, answer in pool.map(cases):
                    view.ran(tally, tally.add(case, answer))
        except KeyboardInterrupt:
            interrupted = True
    view.summary(tally, interrupted=interrupted)
    if tally.failed or tally.missed or tally.blind:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if interrupted else 0


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM ends what runs in here as Ctrl-C does: of an hour's seeds it is told what came of them."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def replay(chosen: Chosen, report: Path | None, *, draws: bool, as_json: bool) -> int:
    """Run a plan here, and tell what happens, or draw it. 1 when it breaks an invariant."""
    from holdfast.simulations.simulation import run as run_plan

    plan = chosen.plan()
    _writable(report)
    with chosen.code():
        result, history = run_plan(plan, narrating=True)
    if draws:
        print_timeline(history, result.violations)
    else:
        print_narration(narrate(history, result.violations), as_json=as_json)
    if as_json:
        print_json(result, indent=0)
    else:
        _print_result(plan, result)
    if report is not None:
        from holdfast.simulations.report import render

        page = render(history, result, f"{chosen.command()}  # at {commit()}")
        with _told_if_unwritten(report):
            report.write_text(page, encoding="utf-8")
        if not as_json:
            console().print(f"drawn in {escape(str(report))}", soft_wrap=True)
    return EXIT_FAILED if result.violations else 0


def shrink(chosen: Chosen, jobs: int, save: Path | None, *, as_json: bool) -> int:
    """Make a failing plan small. Always 1 when there is a plan to shrink: it fails."""
    plan = chosen.plan()
    _writable(save)
    say = Console(stderr=True, highlight=False).print
    with Pool(attempt, jobs, prepare=prepare) as pool:
        shrunk = Shrinker(pool.map, jobs, lambda left, runs: say(f"after {runs} runs: {parts.size(left)}")).shrink(plan)
    named = None if chosen.what.isdecimal() else chosen.what
    command = replay_command(plan.seed, plan.scenario.name, parts.options(chosen.whole(), shrunk.plan), bug=named)
    bug = bugs.Bug(
        name=save.stem if save else "",
        checker=shrunk.violation.checker,
        what=shrunk.violation.message,
        fixed="",
        commit=commit(),
        seed=plan.seed,
        plan=shrunk.plan,
    )
    out = console()
    # Told before it is saved: it may have taken hours, and a disk may be full.
    if as_json:
        print_json({"command": command, "runs": shrunk.runs, "violation": shrunk.violation, "bug": bug})
    else:
        out.print(f"{parts.size(plan)} became {parts.size(shrunk.plan)} in {shrunk.runs} runs:")
        print_violations(out, [shrunk.violation])
        _print_parts(out, shrunk.plan)
        out.print(f"  {escape(command)}", soft_wrap=True)
    if save is not None:
        with _told_if_unwritten(save):
            bugs.save(bug, save)
        if not as_json:
            out.print(f"  holdfast sim replay {escape(str(save))}", soft_wrap=True)
    return EXIT_FAILED


def list_all(*, as_json: bool) -> int:
    """Scenarios, kinds of faults, mutants, bugs."""
    from holdfast.simulations.mutants import MUTANTS

    found = [bugs.load(name) for name in bugs.names()]
    kinds = {name: kinds_of(scenario) for name, scenario in SCENARIOS.items()}
    if as_json:
        guards = [{"name": one.name, "guard": one.guard, "places": one.places} for one in MUTANTS.values()]
        print_json({"scenarios": list(SCENARIOS.values()), "faults": kinds, "mutants": guards, "bugs": found})
        return 0
    out = console()
    out.print(table("Scenarios", _SCENARIO_COLUMNS, [_scenario_row(item) for item in SCENARIOS.values()]))
    every = dict.fromkeys(kind for names in kinds.values() for kind in names)
    rows = [(kind, ", ".join(name for name, names in kinds.items() if kind in names)) for kind in every]
    out.print(table("\nKinds of faults", ("KIND", "IN SCENARIOS"), rows))
    mutant_rows = [(one.name, one.guard) for one in MUTANTS.values()]
    out.print(table("\nMutants", ("NAME", "THE GUARD THAT IT IS WITHOUT"), mutant_rows))
    if found:
        bug_rows = [(bug.name, bug.seed, bug.commit, bug.checker, bug.what, bug.fixed) for bug in found]
        out.print(table("\nBugs that it found", ("NAME", "SEED", "FOUND AT", "CHECKER", "WHAT", "FIXED"), bug_rows))
    return 0


_SCENARIO_COLUMNS = ("NAME", "NODES", "REPLICAS", "GATEWAYS", "VIRTUAL S", "FAULTS", "REQUESTS", "FAULTS HEAL")


def _scenario_row(scenario: Scenario) -> tuple[object, ...]:
    faults = f"{scenario.faults_min} to {scenario.faults_max}" if scenario.faults_max else "none"
    size = (scenario.nodes, scenario.replicas, scenario.gateways, f"{scenario.lasts_s:g}")
    return (scenario.name, *size, faults, scenario.requests + scenario.late_requests, "yes" if scenario.heals else "no")


def _writable(path: Path | None) -> None:
    """Raises `Misuse` before a run whose result could not be written."""
    if path is None:
        return
    if path.is_dir():
        raise Misuse(f"{path} can't be written: it is a directory; name a file")
    if not path.parent.is_dir():
        raise Misuse(f"{path} can't be written: {path.parent} is no directory; make it, or name a file elsewhere")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise Misuse(f"{path} can't be written: {place} is not yours to write; name a file elsewhere")


@contextmanager
def _told_if_unwritten(path: Path) -> Iterator[None]:
    """Raises `Misuse` where a result can't be written after all."""
    try:
        yield
    except OSError as error:
        raise Misuse(f"{path} can't be written: {error.strerror}; name a file elsewhere") from error


def _print_parts(out: Console, plan: Plan) -> None:
    for item in (*plan.faults, *plan.work):
        out.print(f"  {escape(parts.described(item))}", soft_wrap=True)


def _print_result(plan: Plan, result: Result) -> None:
    out = console()
    out.print(f"seed {plan.seed} of {escape(plan.scenario.name)} ({escape(commit())}), trace {result.trace}")
    counts = ", ".join(f"{number:,} {name}" for name, number in result.counts.items())
    out.print(f"  {parts.size(plan)}; {escape(counts)}", soft_wrap=True)
    print_judged(out, result.judged)
    if result.violations:
        out.print(f"[bold red]{len(result.violations)} violations[/]")
        print_violations(out, result.violations)
    else:
        out.print("[bold green]it breaks no invariant[/]")
