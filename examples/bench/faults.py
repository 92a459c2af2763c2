"""What failures cost streams: `python -m examples.bench faults` (`make bench-faults`).

Each scenario runs streams over the gateways of a cluster of its own, does its worst in the middle of them, and compares
every token with what the stream must say. Requests go on until the cluster has been at full strength again for a while.
A pause is the time between two tokens of a stream; what the fault added is the longest one less the longest of the
undisturbed run, which shows what the machine itself does. The wait for a first token is kept apart, since it is longer
even undisturbed; what the fault added to it has to be within the same limit for a row to be as it should.

Rows in which somebody leaves in order fail where a stream paused for longer than that, measured without the time in
which the observer was not run itself. Elsewhere pauses are only printed, and so are waits for a first token everywhere:
no stream pauses before it has begun.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from examples.bench.fault_cluster import ITL_MS, Shape, Strength, cpu_seconds, fault_cluster
from examples.bench.leaving import LEAVING
from examples.bench.load import Order, Report, sending
from examples.bench.report import end_by, interruptible, print_table
from examples.bench.scenarios import SCENARIOS, TORCH_SCENARIOS, Finding, Scenario, Times

STRENGTH_TIMEOUT_S = 180.0
SETTLED_S = 3.0
"""Replicas that are all there for this long after the worst is over are back for good (seconds)."""

LIKE_UNDISTURBED_MS = 10.0
"""What counts as no added pause: two undisturbed runs differ by as much."""

QUICK_FROZEN_S = 8.0
QUICK_DOWN_S = 9.0
"""Longer than a lease lives (5 s), so that leaders and nodes are lost in the quick version too (seconds)."""

ALL = [*SCENARIOS, *LEAVING, *TORCH_SCENARIOS]

TORCH_STREAMS = 8
TORCH_TOKENS = 200
TORCH_FIELDS = {"temperature": 1.0, "ignore_eos": True}


class Row(msgspec.Struct):
    """One scenario's result. `observer_lag_ms` is how long the measuring process was late in the longest pause, and
    `own_pause_ms` the longest pause of any stream without what that process was late in it.

    `moved` counts the times that a stream left a replica, as the log tells, or a gateway.
    `busy` is the part of all cores' time that anybody worked. `missing_s` is how long replicas were missing, None where
    none was. `added_ms`, `own_added_ms` and `first_added_ms` are None for the undisturbed run itself, `met` also where
    nothing is required. `strict` rows fail where `own_added_ms` is more than allowed.
    """

    scenario: str
    streams: int
    broken: int
    wrong: int
    moved: int
    longest_pause_ms: float
    p50_pause_ms: float
    observer_lag_ms: float
    own_pause_ms: float
    longest_first_ms: float
    busy: float
    missing_s: float | None
    note: str
    strict: bool = False
    added_ms: float | None = None
    own_added_ms: float | None = None
    first_added_ms: float | None = None
    allowed_ms: float | None = None
    met: bool | None = None

    @property
    def right(self) -> bool:
        """Whether no stream broke or was wrong."""
        return not self.broken and not self.wrong

    def failures(self) -> list[str]:
        """What makes the command fail."""
        found = []
        if not self.right:
            found.append(f"{self.scenario}: {self.broken} streams broke, {self.wrong} were wrong")
        if self.strict and self.allowed_ms is not None and (self.own_added_ms or 0.0) > self.allowed_ms:
            allowed = f"where {self.allowed_ms:.0f} ms are allowed"
            found.append(f"{self.scenario}: the longest pause was {self.own_added_ms:.0f} ms longer {allowed}")
        return found


class Measured(NamedTuple):
    """Streams through one scenario, what the log says of it, and what else was seen, as in `Row`."""

    report: Report
    finding: Finding
    moved: int
    missing_s: float | None
    busy: float


async def _measure(scenario: Scenario, order: Order, times: Times) -> Measured:
    """Run one scenario."""
    shape = scenario.shape
    async with fault_cluster(shape) as cluster:
        again = {"resumes": scenario.resumes, "retries": scenario.retries}
        order = msgspec.structs.replace(order, urls=cluster.urls, model=shape.model, **again)
        await scenario.prepare(cluster)
        strength = Strength(cluster.urls, shape.replicas)
        async with sending(order) as load, asyncio.TaskGroup() as group:
            watching = group.create_task(strength.run())
            await load.begun()
            worked_s, cores_s = cpu_seconds()
            began_s, began = time.monotonic(), datetime.now(UTC)
            await scenario.fault(cluster, times)
            await strength.settled(time.monotonic(), SETTLED_S, STRENGTH_TIMEOUT_S)
            report = await load.report()
            now_worked_s, now_cores_s = cpu_seconds()
            busy = (now_worked_s - worked_s) / (now_cores_s - cores_s)
            watching.cancel()
        missing_s = None if strength.weak_s is None else max(0.0, strength.weak_s - began_s)
        moved = cluster.migrated(began) + sum(outcome.tries > 1 for outcome in report.outcomes)
        return Measured(report, scenario.find(cluster, began), moved, missing_s, busy)


def _row(scenario: Scenario, measured: Measured) -> Row:
    report, finding, moved, missing_s, busy = measured
    pauses_ms = [1000 * outcome.pause_s for outcome in report.outcomes]
    errors = [outcome.error for outcome in report.outcomes if outcome.error is not None]
    return Row(
        scenario=scenario.name,
        streams=len(pauses_ms),
        broken=len(errors),
        wrong=sum(outcome.wrong for outcome in report.outcomes),
        moved=moved,
        longest_pause_ms=max(pauses_ms),
        p50_pause_ms=statistics.median(pauses_ms),
        observer_lag_ms=1000 * report.lag_s,
        own_pause_ms=1000 * report.own_pause_s,
        longest_first_ms=max(1000 * outcome.first_s for outcome in report.outcomes),
        busy=busy,
        missing_s=missing_s,
        note="; ".join(filter(None, (finding.note, *errors[:1]))),
        allowed_ms=scenario.allowed_ms if finding.allowed_ms is None else finding.allowed_ms,
        strict=scenario.strict,
    )


def _compare(row: Row, undisturbed: Row) -> None:
    """What the fault added, and whether that is within what is allowed."""
    row.added_ms = max(0.0, row.longest_pause_ms - undisturbed.longest_pause_ms)
    row.own_added_ms = max(0.0, row.own_pause_ms - undisturbed.own_pause_ms)
    row.first_added_ms = max(0.0, row.longest_first_ms - undisturbed.longest_first_ms)
    if row.allowed_ms is not None:
        most_ms = max(row.added_ms, row.first_added_ms)
        row.met = row.right and most_ms <= max(row.allowed_ms, LIKE_UNDISTURBED_MS)


HEADINGS = (
    "scenario",
    "streams",
    "broken",
    "wrong",
    "moved",
    "longest pause",
    "of it observer",
    "p50 pause",
    "pause added",
    "first token added",
    "allowed",
    "met",
    "cores busy",
    "replicas missing for",
)


def _cells(row: Row) -> list[str]:
    allowed = "-" if row.allowed_ms is None else _ms(row.allowed_ms) if row.allowed_ms else "none"
    return [
        row.scenario,
        str(row.streams),
        str(row.broken),
        str(row.wrong),
        str(row.moved),
        _ms(row.longest_pause_ms),
        _ms(row.observer_lag_ms),
        _ms(row.p50_pause_ms),
        _ms(row.added_ms),
        _ms(row.first_added_ms),
        allowed,
        {None: "-", True: "yes", False: "NO"}[row.met],
        f"{row.busy:.0%}",
        "-" if row.missing_s is None else f"{row.missing_s:.1f} s",
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _print(rows: list[Row], markdown: bool) -> None:
    print_table(HEADINGS, map(_cells, rows), markdown)
    print()
    for row in rows:
        if row.note:
            print(f"- {row.scenario}: {row.note}")
    missed = [row.scenario for row in rows if row.met is False]
    print(f"over what is allowed: {', '.join(missed) or 'none'}")


def _chosen(only: str) -> list[Scenario]:
    """The scenarios whose name holds one of the texts, and the undisturbed runs that they are compared with."""
    wanted = [text.strip() for text in only.split(",")]
    chosen = [one for one in ALL if any(text in one.name for text in wanted)]
    engines = {one.shape.engine for one in chosen}
    first = {engine: next(one for one in ALL if one.shape.engine == engine) for engine in engines}
    return [one for one in ALL if one in chosen or one is first.get(one.shape.engine)]


def _order(shape: Shape, streams: int, tokens: int) -> Order:
    """What is sent; where it is sent to, and for which model, follows from the cluster."""
    if shape.engine == "torch":
        streams, tokens = min(streams, TORCH_STREAMS), min(tokens, TORCH_TOKENS)
    fields = TORCH_FIELDS if shape.engine == "torch" else {}
    return Order([], "", streams, tokens, tokens * ITL_MS / 1000, fields)


def faults(
    streams: Annotated[int, typer.Option(min=1, max=1000, help="Streams at once.")] = 32,
    tokens: Annotated[int, typer.Option(min=10, max=10_000, help="Tokens of each.")] = 400,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="How long what is frozen or silent stays so, and undisturbed runs.")
    ] = 20.0,
    seconds_down: Annotated[
        float, typer.Option(min=1, max=600, help="How long servers are away, and replicas die at random.")
    ] = 60.0,
    quick: Annotated[bool, typer.Option("--quick", help="As --seconds 8 --seconds-down 9.")] = False,
    only: Annotated[str, typer.Option(help="Run the scenarios whose name holds this, or one of these,by,commas.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs/faults.md.")] = False,
) -> None:
    """Print what each kind of failure costs streams. The whole takes about half an hour, --quick ten minutes.

    Exits with 1 if any stream broke or had a wrong token, or paused for more than 50 ms longer where somebody left in
    order, without what the measuring process missed itself. Other pauses that are longer than allowed are only printed.
    """
    times = Times(QUICK_FROZEN_S, QUICK_DOWN_S) if quick else Times(seconds, seconds_down)
    chosen = _chosen(only)
    rows: list[Row] = []
    undisturbed: dict[str, Row] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("failing", total=len(chosen))
        for scenario in chosen:
            progress.update(task, description=scenario.name)
            shape = scenario.shape
            order = _order(shape, streams, max(tokens, scenario.tokens_min))
            measured = asyncio.run(interruptible(_measure(scenario, order, times)))
            row = _row(scenario, measured)
            if (reference := undisturbed.setdefault(shape.engine, row)) is not row:
                _compare(row, reference)
            rows.append(row)
            progress.advance(task)
    if as_json:
        print(msgspec.json.encode(rows).decode())
    else:
        _print(rows, markdown)
    end_by([failure for row in rows for failure in row.failures()])
