"""One run as one page: a timeline of everybody, with what broke, what was decided and what clients got.

The page holds all that it needs: it opens from a file, without a network, in light and in dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Protocol

from holdfast.simulations.checkers import error_counts, goal_reached_s
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import COMPLETE
from holdfast.simulations.report.drawing import Drawing
from holdfast.simulations.report.lanes import moves, seconds, sections, span
from holdfast.simulations.report.style import LEGEND, PAGE, SCRIPT, STYLE


class Outcome(Protocol):
    """What came of the run that is drawn."""

    @property
    def seed(self) -> int: ...
    @property
    def scenario(self) -> str: ...
    @property
    def trace(self) -> str: ...
    @property
    def violations(self) -> list[Violation]: ...


def render(history: History, result: Outcome, command: str = "") -> str:
    """The page, as HTML. `command` makes the run again; by default it is the seed's, with nothing left out."""
    drawing = Drawing(span(history))
    for section in sections(history):
        drawing.section(section)
    drawing.log_rate(final_log(history))
    if history.settle is not None:
        drawing.settling(history.settle, goal_reached_s(history))
    drawing.violations(result.violations)
    title = f"Seed {result.seed}, {result.scenario}"
    header = _header(title, history, result, command)
    body = f"{header}{_violations(result.violations)}{LEGEND}{drawing.html()}{_tables(history)}"
    return PAGE.format(title=escape(title), style=STYLE, script=SCRIPT, body=body)


def _header(title: str, history: History, result: Outcome, command: str) -> str:
    broken = len(result.violations)
    verdict = (
        f'<span class="bad">{broken} violation{"s" * (broken != 1)}</span>'
        if broken
        else '<span class="good">sound</span>'
    )
    command = command or f"holdfast sim replay {result.seed} --scenario {result.scenario}"
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(history))
    return (
        f"<header><h1>{escape(title)} {verdict}</h1><p><code>{escape(command)}</code> &middot; trace "
        f"<code title='{escape(result.trace)}'>{escape(result.trace[:16])}</code></p><dl>{facts}</dl></header>"
    )


def _facts(history: History) -> Iterable[tuple[str, str]]:
    log, requests = final_log(history), history.requests
    complete = sum(request.how == COMPLETE for request in requests)
    moved = sum(len(moves(request)) for request in requests)
    again = sum(max(0, len(request.tries) - 1) for request in requests)
    yield "virtual time", f"{history.ended_s:.1f} s"
    yield "faults", str(len(history.faults))
    yield "events in the log", str(len(log.entries))
    yield "epochs", str(len({state.epoch for state in log.states} - {0}))
    yield "requests complete", f"{complete} of {len(requests)}"
    yield "streams moved", str(moved)
    yield "sent again", str(again)
    errors = ", ".join(f"{count} {code}" for code, count in error_counts(history).items())
    yield "errors", errors or "none"
    if history.settle is not None:
        reached_s = goal_reached_s(history)
        took = f"{max(0.0, reached_s - history.settle.began_s):.1f} s" if reached_s is not None else "never"
        yield "goal reached after", took


def _violations(violations: Sequence[Violation]) -> str:
    if not violations:
        return ""
    items = "".join(
        f"<li><b>{escape(one.checker)}</b> <time>{one.at_s:.3f} s</time> {escape(one.message)}</li>"
        for one in violations
    )
    return f'<section class="violations"><h2>What broke</h2><ol>{items}</ol></section>'


def _tables(history: History) -> str:
    faults = (
        (seconds(fault.from_s), seconds(fault.until_s), fault.kind, fault.target, fault.details)
        for fault in history.faults
    )
    ends = (
        (
            str(request.id),
            seconds(request.asked_s),
            seconds(request.ended_s),
            " ".join(part for part in (request.how or "open", str(request.status or ""), request.code) if part),
            ", ".join(dict.fromkeys(sent.gateway for sent in request.tries)),
            ", ".join(dict.fromkeys(attempt.replica for attempt in request.attempts)),
        )
        for request in history.requests
        if request.how != COMPLETE
    )
    return _table("Faults", ("from", "until", "kind", "target", "details"), faults) + _table(
        "Requests that are not complete", ("request", "asked", "ended", "how", "gateways", "replicas"), ends
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<details><summary>{escape(title)}</summary>{table}</details>"
