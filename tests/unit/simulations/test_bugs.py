"""Runs that failed once do no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.simulations import bugs
from holdfast.simulations.bugs import Bug, NoSuchBug
from holdfast.simulations.plan import SCENARIOS, STANDARD
from holdfast.simulations.simulation import draw_plan, run


@pytest.mark.parametrize("name", bugs.names())
def test_a_bug_that_was_mended_stays_mended(name: str) -> None:
    bug = bugs.load(name)
    assert bug.name == name
    assert bug.what
    assert bug.fixed
    result, _history = run(bug.plan)
    assert result.violations == []


def test_a_bug_is_kept_as_it_was_found(tmp_path: Path) -> None:
    bug = Bug("lost-token", "exactly-once", "a token was lost", "", "0123abcd", 1, draw_plan(1, SCENARIOS[STANDARD]))
    path = tmp_path / "lost-token.json"
    bugs.save(bug, path)
    assert bugs.names(tmp_path) == ["lost-token"]
    assert bugs.load("lost-token", tmp_path) == bugs.load(str(path)) == bug


def test_a_bug_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(NoSuchBug, match=r"lost is no seed, and no bug: No such file.*have a name: other$"):
        bugs.load("lost", tmp_path)
    with pytest.raises(NoSuchBug, match="does not hold a plan as this version of Holdfast has it"):
        bugs.load("other", tmp_path)
