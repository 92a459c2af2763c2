"""The long run: `python -m examples.bench chaos` (`make bench-chaos`). docs/chaos.md says how to read it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.bench.chaos.cluster import Size
from examples.bench.chaos.load import Pause
from examples.bench.chaos.run import Plan, Result, Run

SHOWN_PAUSES: Final = 5
SHOWN_MAX: Final = 20
"""So many violations are printed; the directory has all."""


def chaos(
    kills: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many are killed.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Draws requests, victims and times. [default: a random one]")] = None,
    nodes: Annotated[int, typer.Option(min=2, max=20, help="Nodes.")] = 3,
    replicas: Annotated[int, typer.Option(min=2, max=100, help="Replicas.")] = 4,
    gateways: Annotated[int, typer.Option(min=2, max=10, help="Gateways.")] = 2,
    streams: Annotated[int, typer.Option(min=1, max=1000, help="Requests at once.")] = 12,
    tokens: Annotated[int, typer.Option(min=2, max=10_000, help="The longest answer.")] = 300,
    gap_min_s: Annotated[float, typer.Option(min=0, max=600, help="Between two blows, at least (seconds).")] = 0.2,
    gap_max_s: Annotated[float, typer.Option(min=0, max=600, help="Between two blows, at most (seconds).")] = 2.4,
    directory: Annotated[
        Path | None, typer.Option(help="Where data and logs go. [default: a new one, removed if all is well]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Kill and freeze replicas, nodes, gateways and servers at random under load, and check every token.

    Exits with 1 if a request was wrong, broken or hung, or if the cluster's end was not as it should be.
    """
    if gap_max_s < gap_min_s:
        raise typer.BadParameter("--gap-max-s must not be less than --gap-min-s")
    where = _directory(directory)
    drawn = random.SystemRandom().getrandbits(32) if seed is None else seed
    plan = Plan(kills, drawn, Size(nodes, replicas, gateways), streams, tokens, (gap_min_s, gap_max_s))
    with _log_to(where / "chaos.log"):
        result = _run(plan, where)
    (where / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    if as_json:
        print(msgspec.json.encode(result).decode())
    else:
        _print(result)
    if result.violations:
        Console(stderr=True).print(f"Seed {drawn}. What happened stands in {where}", soft_wrap=True)
        raise typer.Exit(1)
    if directory is None:
        shutil.rmtree(where)


def _directory(given: Path | None) -> Path:
    """An empty directory. Raises `typer.BadParameter`."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))
    given.mkdir(parents=True, exist_ok=True)
    if any(given.iterdir()):
        raise typer.BadParameter(f"{given} is not empty: choose another --directory")
    return given.absolute()


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """The client's tries, and what reading the log meets, go to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("holdfast")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()


def _run(plan: Plan, where: Path) -> Result:
    console = Console(stderr=True)
    figures = TextColumn("{task.fields[figures]}")
    columns = (TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), figures)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("kills", total=plan.kills, figures="starting")

        def tell() -> None:
            progress.update(task, completed=run.result.killed, figures=_figures(run.result))

        run = Run(plan, where, tell)
        return asyncio.run(run.run())


def _figures(result: Result) -> str:
    return f"{result.requests} requests, " + ", ".join(
        f"{result.ended[outcome]} {outcome}" for outcome in ("wrong", "broken", "hung")
    )


def _print(result: Result) -> None:
    console = Console(width=130)
    table = Table("", "", title=f"Chaos, seed {result.plan.seed}", show_header=False)
    for name, value in _rows(result):
        table.add_row(name, value)
    console.print(table)
    console.print(_memory(result))
    for violation in result.violations[:SHOWN_MAX]:
        request = f" {violation.request_id}" if violation.request_id else ""
        console.print(f"[red]{violation.what}{request}[/]: ", end="")
        console.print(violation.text, markup=False, soft_wrap=True)


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    size, ended, log = result.plan.size, result.ended, result.log
    yield "cluster", f"{size.nodes} nodes, {size.replicas} replicas, {size.gateways} gateways, nats-server, etcd"
    yield "lasted", f"{result.seconds / 60:.1f} minutes"
    yield f"kills: {result.killed}", _counts(result.kills)
    yield f"freezes: {result.freezes.total()}", _counts(result.freezes)
    yield f"requests: {result.requests}", _counts(result.kinds)
    yield "tokens checked", str(result.tokens)
    yield "sent again by the client", str(result.tried_again)
    for outcome in ("right", "left", "wrong", "broken", "hung"):
        why = f" ({_counts(result.errors)})" if outcome == "broken" and result.errors else ""
        yield outcome, f"{ended[outcome]}{why}"
    pauses = result.pauses
    yield "longest pauses: frozen gateway", _seconds(pauses.frozen)
    yield "killed gateway", _seconds(pauses.resumed)
    yield "anything else", _seconds(pauses.other)
    others = [one for one in result.violations if not one.request_id]
    yield "cluster, log, processes left over", "as it should be" if not others else f"{len(others)} violations"
    if log is not None:
        yield "log", f"{log.events} events, {log.ignored} of deposed leaders ignored"


def _seconds(pauses: list[Pause]) -> str:
    return ", ".join(f"{pause.seconds:.2f} s" for pause in pauses[:SHOWN_PAUSES])


def _counts(counter: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items(), key=lambda item: -item[1]))


def _memory(result: Result) -> Table:
    """Resident memory at the begin and the end; most processes are not the same at both."""
    table = Table("process", "MiB at the begin", "MiB at the end", "age at the end", title="Resident memory")
    before = {row.process: row.mib for row in result.memory_begin}
    for row in result.memory_end:
        begin = f"{before[row.process]:.0f}" if row.process in before else "-"
        table.add_row(row.process, begin, f"{row.mib:.0f}", f"{row.age_s:.0f} s")
    return table
