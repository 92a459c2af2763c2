"""Tables for people and JSON for machines, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 200

_COLOURS = {
    "green": {"RUNNING", "HEALTHY", "ALIVE", "LEADING", "reachable", "ok"},
    "yellow": {
        *("STARTING", "STOPPING", "UPDATING", "DEPLOYING", "DELETING", "NOT_STARTED", "DRAINING", "ELECTING", "warn"),
    },
    "red": {"EXITED", "UNHEALTHY", "DEPLOY_FAILED", "LOST", "unreachable", "fail"},
    "dim": {"LEFT", "DRAINED"},
}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}


class _Console(Console):
    """Leaves it to whoever runs the command to end it when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, to_error: bool = False) -> Console:
    """Standard output, or standard error. Where it is no terminal, nothing is cut to a width."""
    found = _Console(highlight=False, stderr=to_error)
    return found if found.is_terminal else _Console(highlight=False, stderr=to_error, width=WIDTH_WITHOUT_TERMINAL)


def print_json(value: Any, *, indent: int = 2) -> None:
    """The value as JSON, or as one line of JSON with `indent=0`."""
    data = msgspec.json.encode(value)
    if indent:
        data = msgspec.json.format(data, indent=indent)
    sys.stdout.write(data.decode() + "\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; words that say how something stands are coloured."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: object) -> str:
    text = "-" if value is None else str(value)
    colour = _COLOUR_OF.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)
