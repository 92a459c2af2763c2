"""All that failures and load must not do, one report: `python -m examples.bench resilience` (`make bench-faults`).

Each part is a command of its own, run in a process of its own, so that none inherits another's memory. What they print
stands under its name; the end says which failed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Annotated

import msgspec
import typer

from examples.bench.faults import ALL
from holdfast.gateway.cli.running import EXIT_INTERRUPTED


class Part(msgspec.Struct, frozen=True):
    """One command: what stands above its output, and its arguments in the quick version."""

    title: str
    command: str
    quick: tuple[str, ...]


FAULTS = Part("What failures cost streams", "faults", ("--quick",))

PARTS = [
    FAULTS,
    Part("Sick replicas that nobody asks", "canaries", ("--quick",)),
    Part("Clients that connect and vanish", "vanish", ("--clients", "1000")),
    Part("A load of ten times the capacity", "overload", ("--seconds", "10")),
    Part("Clients that read slowly", "slow-readers", ("--seconds", "5")),
]


def _chosen(only: str) -> list[tuple[Part, tuple[str, ...]]]:
    """The parts to run, with what is left out of them. Raises `BadParameter` where nothing has such a name."""
    wanted = [text.strip() for text in only.split(",") if text.strip()]
    if not wanted:
        return [(part, ()) for part in PARTS]
    chosen: list[tuple[Part, tuple[str, ...]]] = []
    rows = [text for text in wanted if any(text in scenario.name for scenario in ALL)]
    if rows:
        chosen.append((FAULTS, ("--only", ",".join(rows))))
    chosen += [(part, ()) for part in PARTS if part.command in wanted and part is not FAULTS]
    if not chosen:
        names = ", ".join(part.command for part in PARTS)
        raise typer.BadParameter(f"no row of faults, and none of {names}, has such a name", param_hint="--only")
    return chosen


def _run(part: Part, arguments: tuple[str, ...]) -> int:
    """Run one part to its end, which Ctrl-C and SIGTERM reach as well; its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "examples.bench", part.command, *arguments])
    before = signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has told the part as well
        process.wait()
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def resilience(
    quick: Annotated[bool, typer.Option("--quick", help="Shorter times and fewer clients.")] = False,
    only: Annotated[
        str, typer.Option(help="Run these parts, and the rows of faults whose name holds one of these, by commas.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each part.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as in docs/faults.md.")] = False,
) -> None:
    """Run faults, canaries and all loads one after the other. Takes about three quarters of an hour, --quick twenty
    minutes. Exits with 1 if any part did.
    """
    failed = []
    for part, arguments in _chosen(only):
        if not as_json:
            print(f"\n## {part.title}\n", flush=True)
        shared = (*(part.quick if quick else ()), *(("--json",) if as_json else ()))
        shared += ("--markdown",) if markdown else ()
        code = _run(part, (*shared, *arguments))
        if code == EXIT_INTERRUPTED:
            raise typer.Exit(code)
        if code:
            failed.append(part.command)
    print(f"\nnot as it must be: {', '.join(failed) or 'nothing'}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
