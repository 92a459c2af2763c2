"""The timeline for a terminal."""

from __future__ import annotations

from holdfast.simulations.checkers import Violation
from holdfast.simulations.history import History
from holdfast.simulations.report.terminal import NAME_COLUMNS, timeline
from tests.unit.simulations.recorded import well

COLUMNS = NAME_COLUMNS + 2 + 60


def rows(history: History, violations: list[Violation] | None = None) -> dict[str, str]:
    """What stands on each lane, by its name."""
    lines = [line.plain for line in timeline(history, violations or [], COLUMNS)]
    assert all(len(line) <= COLUMNS for line in lines)
    return {line[:NAME_COLUMNS].strip(): line[NAME_COLUMNS + 1 :] for line in lines}


def test_lanes_are_rows_and_times_are_columns() -> None:
    run = well()
    run.history.fault(15.0, "partition", "node-1", until_s=22.5)
    run.processes["gateway-1"].froze(21.0)
    run.processes["gateway-1"].thawed(24.0)
    run.processes["gateway-1"].ended(27.0, -9, "fault")
    drawn = rows(run.history)
    assert drawn["faults"].rstrip() == " " * 30 + "▒" * 15
    assert drawn["gateway-1"].rstrip() == "  " + "█" * 40 + "░" * 6 + "█" * 6 + "✗"
    assert drawn["in the log"].rstrip() == "  " + "█" * 58
    assert drawn["2"].strip() == "··━━●"
    assert "broken" not in drawn


def test_violations_come_first() -> None:
    assert rows(well().history, [Violation("ends", 15.0, "late")])["broken"].rstrip() == " " * 30 + "✗"


def test_a_moment_is_still_seen() -> None:
    run = well()
    run.history.fault(15.0, "kill", "node-1", until_s=15.0)
    assert rows(run.history)["faults"].strip() == "▒"
