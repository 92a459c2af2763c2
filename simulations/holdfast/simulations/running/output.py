"""What `holdfast sim` prints: progress, failures, tables, narrations; and the same for machines."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from holdfast.gateway.cli.tables import console, print_json, table
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.report.terminal import timeline
from holdfast.simulations.running import campaign
from holdfast.simulations.running.campaign import FAILURES_KEPT, Coverage, Failure, Fewest, Judgements, Tally
from holdfast.simulations.running.narrate import Line

FAILURES_SHOWN = 20
"""Failed seeds that are told with all that they broke; the others that are kept have a line each."""

VIOLATIONS_SHOWN = 5
"""Violations that are told of a seed."""

PROGRESS_S = 10.0
"""Where there is no terminal, progress is a line every so many real seconds."""

TRACEBACK_LINES = 6
"""Lines of a traceback that are told of a broken run, the last ones."""

COLOURS = {"fault": "yellow", "violation": "bold red", "process": "cyan", "lease": "magenta", "log": "green"}
"""Colours of a narration's lines, by what they are about."""


class Asked(msgspec.Struct, frozen=True):
    """What a campaign was asked to do."""

    scenario: str
    first_seed: int
    seeds: int
    jobs: int
    commit: str


class FailureRecord(msgspec.Struct, frozen=True):
    """A failed seed, for machines."""

    seed: int
    violations: list[Violation]
    broken: str | None
    command: str


class CampaignRecord(msgspec.Struct, frozen=True):
    """A campaign, for machines. `interrupted`: not all seeds ran. Times are real seconds, but `virtual_s`."""

    asked: Asked
    ran: int
    failed: int
    interrupted: bool
    trace: str
    wall_s: float
    busy_s: float
    virtual_s: float
    failures: list[FailureRecord]
    checkers: dict[str, int]
    coverage: dict[str, Coverage]
    never_injected: list[str]
    judged: dict[str, dict[str, Judgements]]
    never_judged: dict[str, list[str]]
    fewest: Fewest | None
    counts: dict[str, int]


def replay_command(seed: int, scenario: str, options: Sequence[str] = (), *, bug: str | None = None) -> str:
    """The command that makes a run again: a seed's, or a `bug`'s, which has a plan of its own."""
    what = [str(seed), "--scenario", scenario] if bug is None else [bug]
    return shlex.join(["holdfast", "sim", "replay", *what, *options])


class CampaignView:
    """Shows how far a campaign is, and its failures as they come. Use as a context manager."""

    def __init__(self, asked: Asked, *, as_json: bool) -> None:
        self._asked = asked
        self._as_json = as_json
        self._console = console(to_error=as_json)
        self._began_s = self._told_s = time.monotonic()
        self._shown = 0
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}")),
            *(TimeElapsedColumn(), TimeRemainingColumn()),
        )
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._bar = self._progress.add_task(f"seeds of {asked.scenario}", total=asked.seeds, failed="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def ran(self, tally: Tally, failure: Failure | None) -> None:
        """One more seed is through."""
        if failure is not None:
            self._failed(failure)
        failed = f"[red]{tally.failed:,} failed[/]" if tally.failed else "none failed"
        self._progress.update(self._bar, completed=tally.ran, failed=failed)
        now_s = time.monotonic()
        if self._progress.disable and now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            pace = tally.ran / (now_s - self._began_s)
            self._console.print(
                f"{tally.ran:,} of {self._asked.seeds:,} seeds, {tally.failed:,} failed, {pace:.1f} a second"
            )

    def summary(self, tally: Tally, *, interrupted: bool) -> None:
        """All that there is in the end."""
        wall_s = time.monotonic() - self._began_s
        if self._as_json:
            print_json(self._record(tally, wall_s, interrupted))
            return
        out = console()
        if tally.checkers:
            rows = sorted(tally.checkers.items(), key=lambda item: (-item[1], item[0]))
            out.print(table("What failed", ("CHECKER", "SEEDS"), rows))
        self._faults(out, tally)
        self._judged(out, tally)
        if tally.counts:
            out.print(
                table("\nIn all runs", ("WHAT", "NUMBER"), [(name, f"{n:,}") for name, n in tally.counts.items()])
            )
        out.print()
        out.print(self._verdict(tally, wall_s, interrupted), soft_wrap=True)

    def _faults(self, out: Console, tally: Tally) -> None:
        kinds = [(kind, item.seeds, item.injected) for kind, item in tally.coverage.items()]
        out.print(table("\nFaults injected", ("KIND", "SEEDS", "TIMES"), kinds))
        if tally.fewest is not None and kinds:
            fewest = f"No seed had fewer faults than seed {tally.fewest.seed}: {tally.fewest.faults}."
            out.print(fewest, soft_wrap=True)
        if tally.never_injected:
            colour = "bold red" if tally.missed else "yellow"
            out.print(f"[{colour}]never injected: {', '.join(tally.never_injected)}[/]", soft_wrap=True)

    def _judged(self, out: Console, tally: Tally) -> None:
        rows = [
            (checker, what, one.seeds, f"{one.judged:,}")
            for checker, things in tally.judged.items()
            for what, one in things.items()
        ]
        out.print(table("\nJudged", ("CHECKER", "WHAT", "SEEDS", "TIMES"), rows))
        if tally.never_judged:
            colour = "bold red" if tally.blind else "yellow"
            none = ", ".join(f"{checker} ({', '.join(things)})" for checker, things in tally.never_judged.items())
            out.print(f"[{colour}]never judged: {none}[/]", soft_wrap=True)

    def _failed(self, failure: Failure) -> None:
        self._shown += 1
        asked, say = self._asked, self._console.print
        if self._shown > FAILURES_KEPT:
            if self._shown == FAILURES_KEPT + 1:
                say("[red]further seeds that fail are only counted[/]")
            return
        if self._shown > FAILURES_SHOWN:
            broke = ", ".join(sorted(failure.names))
            say(f"[bold red]seed {failure.seed} of {escape(asked.scenario)} failed[/]: {escape(broke)}", soft_wrap=True)
            return
        say(f"[bold red]seed {failure.seed} of {escape(asked.scenario)} failed[/] ({escape(asked.commit)})")
        print_violations(self._console, failure.violations)
        if failure.broken is not None:
            lines = failure.broken.text.splitlines()[-TRACEBACK_LINES:]
            say(f"  {failure.broken.how}: {escape(lines.pop(0) if len(lines) == 1 else '')}", soft_wrap=True)
            for line in lines:
                say(f"    {escape(line)}", soft_wrap=True)
        say(f"  {escape(replay_command(failure.seed, asked.scenario))}", soft_wrap=True)

    def _verdict(self, tally: Tally, wall_s: float, interrupted: bool) -> str:
        asked = self._asked
        how = f"{tally.ran:,} seeds" if not interrupted else f"stopped after {tally.ran:,} of {asked.seeds:,} seeds"
        pace = f"{tally.ran / wall_s:.1f} seeds a second, {tally.virtual_s / wall_s:,.0f} times real time"
        result = f"[bold red]{tally.failed:,} failed[/]" if tally.failed else "[bold green]none failed[/]"
        many = f"in {campaign.MANY_SEEDS:,} seeds or more"
        if tally.missed:
            result += f", [bold red]but not every kind of fault was injected, as it must be {many}[/]"
        if tally.blind:
            result += f", [bold red]but {', '.join(tally.blind)} judged nothing, and must {many}[/]"
        ran = f"{how} of {asked.scenario} at {asked.commit} in {wall_s:.1f} s ({pace})"
        return f"{escape(ran)}, trace {tally.trace:032x}: {result}"

    def _record(self, tally: Tally, wall_s: float, interrupted: bool) -> CampaignRecord:
        asked = self._asked
        return CampaignRecord(
            asked=asked,
            ran=tally.ran,
            failed=tally.failed,
            interrupted=interrupted,
            trace=f"{tally.trace:032x}",
            wall_s=round(wall_s, 3),
            busy_s=round(tally.busy_s, 3),
            virtual_s=round(tally.virtual_s, 3),
            failures=[
                FailureRecord(
                    failure.seed,
                    failure.violations,
                    f"{failure.broken.how}: {failure.broken.text}" if failure.broken is not None else None,
                    replay_command(failure.seed, asked.scenario),
                )
                for failure in tally.failures
            ],
            checkers=tally.checkers,
            coverage=tally.coverage,
            never_injected=tally.never_injected,
            judged=tally.judged,
            never_judged=tally.never_judged,
            fewest=tally.fewest,
            counts=tally.counts,
        )


def print_violations(out: Console, violations: Sequence[Violation]) -> None:
    """The first of them, and how many more there are."""
    for violation in violations[:VIOLATIONS_SHOWN]:
        text = f"{violation.checker} at {violation.at_s:.3f} s: {brief(violation.message)}"
        out.print(f"  {escape(text)}", soft_wrap=True)
    if len(violations) > VIOLATIONS_SHOWN:
        out.print(f"  and {len(violations) - VIOLATIONS_SHOWN} more")


def print_judged(out: Console, judged: Mapping[str, Mapping[str, int]]) -> None:
    """What each checker judged in one run, for those that judged anything."""
    for checker, things in judged.items():
        told = ", ".join(f"{number:,} {what}" for what, number in things.items() if number)
        if told:
            out.print(f"  {checker} judged {told}", soft_wrap=True)


def brief(message: str) -> str:
    """A message in one line: of a traceback its end."""
    first, *more = message.strip().splitlines() or [""]
    before, traceback, _ = first.partition("Traceback ")
    return f"{before if traceback else f'{first} … '}{more[-1]}" if more else first


def print_timeline(history: History, violations: list[Violation]) -> None:
    """The run as a picture."""
    out = console()
    for row in timeline(history, violations, out.width):
        out.print(row, soft_wrap=True)


def print_narration(lines: Iterable[Line], *, as_json: bool) -> None:
    """A line for each, coloured on a terminal; or one object a line."""
    if as_json:
        for line in lines:
            print_json(line, indent=0)
        return
    out = console()
    if not out.is_terminal:
        for line in lines:
            print(_plain(line))
        return
    for line in lines:
        colour = COLOURS.get(line.about)
        text = escape(_plain(line))
        out.print(f"[{colour}]{text}[/]" if colour else text, soft_wrap=True)


def _plain(line: Line) -> str:
    return f"{line.at_s:>11.6f}  {line.actor:<16}  {line.text}"
