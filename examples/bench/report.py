"""What the benches that print tables share: the table itself, and how Ctrl-C ends what was started."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from holdfast.gateway.cli.running import EXIT_INTERRUPTED

_T = TypeVar("_T")

TABLE_COLUMNS = 200


async def interruptible(work: Coroutine[Any, Any, _T]) -> _T:
    """The work's result. Ctrl-C and SIGTERM cancel it, which ends all that it has started, and then this process."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def end_by(failures: Sequence[str]) -> None:
    """Say what is not as it must be, beside the table or JSON, and end with 1 if there is any such thing."""
    for failure in failures:
        print(f"not as it must be: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool) -> None:
    """Print rows of as many cells as there are headings; the first column holds words."""
    if markdown:
        aligned = ["---", *["---:"] * (len(headings) - 1)]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (headings, aligned, *rows)))
        return
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for cells in rows:
        table.add_row(*cells)
    Console(width=TABLE_COLUMNS).print(table)
