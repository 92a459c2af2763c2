"""The same timeline for a terminal: a row for each lane, a column for each moment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from rich.text import Text

from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.report.lanes import Lane, Mark, sections, span

NAME_COLUMNS: Final = 14
TICKS: Final = 6

_BARS: Final = {
    "fault": ("▒", "red"),
    "reign": ("█", "yellow"),
    "lease": ("─", "blue"),
    "life": ("█", "blue"),
    "life replica": ("█", "green"),
    "life gateway": ("█", "cyan"),
    "life server": ("█", "bright_black"),
    "starting": ("▁", "green"),
    "draining": ("▄", "yellow"),
    "frozen": ("░", "cyan"),
    "suspected": ("▓", "magenta"),
    "waiting": ("·", "bright_black"),
    "streaming": ("━", "blue"),
}
_SIGNS: Final = {
    "death": ("✗", "bold red"),
    "end": ("|", "bold"),
    "expiry": ("✗", "red"),
    "moved": ("┿", "bold yellow"),
    "resumed": ("◆", "bold"),
    "again": ("◇", "bold"),
    "decision": ("'", "green"),
    "outcome complete": ("●", "green"),
    "outcome error": ("●", "bold red"),
    "outcome unreached": ("●", "bold yellow"),
    "outcome cancelled": ("●", "bright_black"),
    "outcome open": ("○", "bold red"),
}
"""How marks are drawn, by what they look like or by the first word of it. Labels that are nothing else are left out."""


def timeline(history: History, violations: list[Violation], columns: int) -> Iterator[Text]:
    """The run in so many columns, a line at a time."""
    width, span_s = max(columns - NAME_COLUMNS - 2, 20), span(history)
    yield Text(" " * (NAME_COLUMNS + 1)) + _axis(width, span_s)
    if violations:
        broken = Lane("broken", [Mark(violation.at_s, None, "death", "") for violation in violations])
        yield _row(broken, width, span_s)
    for section in sections(history):
        yield Text(section.title, style="bold")
        for lane in section.lanes:
            yield _row(lane, width, span_s)


def _axis(width: int, span_s: float) -> Text:
    cells = [" "] * (width + 1)
    for tick in range(TICKS + 1):
        label = f"{span_s * tick / TICKS:.0f} s"
        begin = min(round(width * tick / TICKS), width + 1 - len(label))
        cells[begin : begin + len(label)] = label
    return Text("".join(cells), style="bright_black")


def _row(lane: Lane, width: int, span_s: float) -> Text:
    cells = [(" ", "")] * (width + 1)
    for mark in lane.marks:
        begin = _column(mark.from_s, width, span_s)
        if mark.until_s is None:
            cells[begin] = _SIGNS.get(mark.look) or _SIGNS[mark.look.partition(" ")[0]]
            continue
        drawn = _BARS.get(mark.look) or _BARS.get(mark.look.partition(" ")[0])
        if drawn is not None:
            end = max(begin + 1, _column(mark.until_s, width, span_s))
            cells[begin:end] = [drawn] * (end - begin)
    row = Text(f"{lane.label.strip()[:NAME_COLUMNS]:>{NAME_COLUMNS}} ")
    for (sign, style), equal in groupby(cells):
        row.append(sign * len(list(equal)), style=style)
    return row


def _column(at_s: float, width: int, span_s: float) -> int:
    return round(width * min(max(at_s, 0.0), span_s) / span_s)
