"""`holdfast sim` as a person and as a script use it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.simulations import checkers
from holdfast.simulations.checkers.moves import moves
from holdfast.simulations.checkers.streams import ends, streams
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.cli import app
from holdfast.simulations.faults.kinds import KINDS
from holdfast.simulations.history import History
from holdfast.simulations.plan import Plan
from holdfast.simulations.running import campaign, commands, output
from holdfast.simulations.running.output import brief
from holdfast.simulations.simulation import Result
from tests.unit.simulations import fake_runs
from tests.unit.simulations.fake_runs import result

Invoke = Callable[..., Any]

DRAWN = [name for name, kind in KINDS.items() if kind.weight]
"""The kinds of faults that are drawn where no scenario names others."""


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """The command, with runs that are told what comes of them."""
    monkeypatch.setattr(commands, "simulate", fake_runs.simulate)
    monkeypatch.setattr(commands, "prepare", None)
    monkeypatch.setattr(commands, "commit", lambda: "0123abcd")
    monkeypatch.setattr("holdfast.simulations.simulation.run", _run)

    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})

    return invoke


def _run(plan: Plan, *, narrating: bool = False) -> tuple[Result, History]:
    """Seed 3 fails with fault 2."""
    history = History(narrating=narrating)
    for fault in plan.faults:
        history.fault(fault.at_s, fault.kind, "n1", until_s=fault.at_s)
    history.note(50.0, "n1", "is through")
    fails = plan.seed == 3 and any(fault.number == 2 for fault in plan.faults)
    return result(plan.seed, *([Violation("exactly-once", 51.0, "twice")] if fails else [])), history


def test_seeds_that_fail_are_told_with_the_commit_and_the_command_that_replays_them(sim: Invoke) -> None:
    ended = sim("run", "--seeds", "6", "--jobs", "2")
    assert ended.exit_code == 1
    said = [line.rstrip() for line in ended.stdout.splitlines()]
    at = said.index("seed 3 of standard failed (0123abcd)")
    assert said[at + 1 : at + 3] == [
        "  exactly-once at 12.500 s: request 3 got token 7 twice",
        "  holdfast sim replay 3 --scenario standard",
    ]
    at = said.index("seed 5 of standard failed (0123abcd)")
    assert said[at + 1] == "  died: its process ended with exit code 7"
    assert "    KeyError: 'in the simulation'" in said
    assert "6 seeds of standard at 0123abcd in" in said[-1]
    assert said[-1].endswith(", trace " + "0" * 31 + "c: 3 failed")


def test_a_table_tells_in_how_many_seeds_each_kind_of_fault_was_injected(sim: Invoke) -> None:
    ended = sim("run", "--seeds", "2", "--jobs", "1")
    assert ended.exit_code == 0
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert ["freeze", "2", "4"] in rows
    assert ["clogging", "0", "0"] in rows
    assert ended.stdout.rstrip().endswith(": none failed")
    assert "never injected: " in ended.stdout


def test_many_seeds_of_which_none_had_a_kind_of_fault_are_a_failure(
    sim: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "MANY_SEEDS", 2)
    assert sim("run", "--seeds", "1", "--jobs", "1").exit_code == 0
    ended = sim("run", "--seeds", "2", "--jobs", "1")
    assert ended.exit_code == 1
    last = ended.stdout.rstrip().splitlines()[-1]
    assert ": none failed, but not every kind of fault was injected, as it must be in 2 seeds or more" in last
    assert "\nnever injected: node crash, " in ended.stdout
    told = sim("run", "--seeds", "2", "--jobs", "1", "--json")
    assert (told.exit_code, json.loads(told.stdout)["failed"]) == (1, 0)
    monkeypatch.setattr(campaign, "kinds_of", lambda _scenario: ["freeze"])
    monkeypatch.setattr(checkers, "CHECKERS", {streams: ("answers",)})
    assert sim("run", "--seeds", "2", "--jobs", "1").exit_code == 0


def test_many_seeds_in_which_a_checker_had_nothing_to_judge_are_a_failure(
    sim: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "MANY_SEEDS", 2)
    monkeypatch.setattr(campaign, "kinds_of", lambda _scenario: ["freeze"])
    monkeypatch.setattr(checkers, "CHECKERS", {streams: ("answers",), ends: ("requests of clients",), moves: ("x",)})
    ended = sim("run", "--seeds", "2", "--jobs", "1")
    assert ended.exit_code == 1
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert ["streams", "answers", "1", "1"] in rows
    assert ["ends", "requests", "of", "clients", "0", "0"] in rows
    assert "\nnever judged: ends (requests of clients), moves (x)\n" in ended.stdout
    last = ended.stdout.rstrip().splitlines()[-1]
    assert last.endswith(": none failed, but ends judged nothing, and must in 2 seeds or more")  # moves is idle
    told = json.loads(sim("run", "--seeds", "2", "--jobs", "1", "--json").stdout)
    assert told["judged"]["streams"] == {"answers": {"seeds": 1, "judged": 1}}
    assert told["never_judged"] == {"ends": ["requests of clients"], "moves": ["x"]}


def test_machines_get_one_object(sim: Invoke) -> None:
    ended = sim("run", "--seeds", "3", "--first-seed", "2", "--jobs", "1", "--json")
    assert ended.exit_code == 1
    told: dict[str, Any] = json.loads(ended.stdout)
    assert told["asked"] == {"scenario": "standard", "first_seed": 2, "seeds": 3, "jobs": 1, "commit": "0123abcd"}
    assert (told["ran"], told["failed"], told["interrupted"], told["virtual_s"]) == (3, 2, False, 120.0)
    assert list(told["coverage"]) == DRAWN
    assert told["coverage"]["freeze"] == {"seeds": 2, "injected": 4}
    assert told["never_injected"] == [kind for kind in DRAWN if kind != "freeze"]
    assert told["checkers"] == {"exactly-once": 1, "raised KeyError": 1}
    violation, broken = told["failures"]
    assert violation == {
        "seed": 3,
        "violations": [{"checker": "exactly-once", "at_s": 12.5, "message": "request 3 got token 7 twice"}],
        "broken": None,
        "command": "holdfast sim replay 3 --scenario standard",
    }
    assert (broken["seed"], broken["violations"]) == (4, [])
    assert "KeyError" in broken["broken"]


def test_ctrl_c_ends_a_campaign_with_what_there_is_so_far(sim: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "simulate", fake_runs.interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where all this runs in the background
    try:
        ended = sim("run", "--seeds", "9", "--jobs", "1", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.exit_code == 130
    told = json.loads(ended.stdout)
    assert (told["ran"], told["interrupted"]) == (1, True)


def test_sigterm_ends_a_campaign_with_what_there_is_so_far(sim: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "simulate", fake_runs.terminated)
    before = signal.getsignal(signal.SIGTERM)
    ended = sim("run", "--seeds", "9", "--jobs", "1", "--json")
    assert ended.exit_code == 130
    told = json.loads(ended.stdout)
    assert (told["ran"], told["interrupted"]) == (1, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_of_many_failed_seeds_each_has_at_least_its_line(sim: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "simulate", fake_runs.always_fails)
    monkeypatch.setattr(output, "FAILURES_SHOWN", 2)
    monkeypatch.setattr(output, "FAILURES_KEPT", 4)
    said = sim("run", "--seeds", "6", "--jobs", "1").stdout.splitlines()
    assert [line for line in said if line.startswith("seed ")] == [
        "seed 1 of standard failed (0123abcd)",
        "seed 2 of standard failed (0123abcd)",
        "seed 3 of standard failed: exactly-once",
        "seed 4 of standard failed: exactly-once",
    ]
    assert said.count("further seeds that fail are only counted") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--scenario", "x"], "there is no scenario x; there are standard, core, short, busy, uneven, calm"),
        (["replay", "1", "--scenario", "x"], "there is no scenario x"),
        (["replay", "lost"], "lost is no seed, and no bug"),
        (["replay", "lost", "--scenario", "core"], "--scenario goes with a seed; lost has its own"),
        (["replay", "1", "--only-faults", "1,99"], "--only-faults 1,99: seed 1 has no 99 there; it has 0, 1, 2"),
        (["replay", "1", "--only-work", "x"], "--only-work x: seed 1 has no x there; it has op"),
        (
            ["replay", "1", "--report", "/nowhere/x.html"],
            "/nowhere/x.html can't be written: /nowhere is no directory; make it",
        ),
        (["replay", "1", "--report", "/"], "/ can't be written: it is a directory; name a file"),
        (["replay", "1", "--report", "/dev/full"], "/dev/full can't be written: No space left on device; name a file"),
        (["shrink", "1", "--save", "/"], "/ can't be written: it is a directory; name a file"),
        (["shrink", "1", "--jobs", "1"], "seed 1 of standard breaks no invariant: there is nothing to shrink"),
        (["shrink", "1", "--save", "/nowhere/x.json"], "/nowhere/x.json can't be written: /nowhere is no directory"),
    ],
)
def test_mistakes_are_told_in_one_line_with_code_2(sim: Invoke, arguments: list[str], said: str) -> None:
    ended = sim(*arguments)
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"holdfast: {said}")
    assert ended.stderr.count("\n") == 1


def test_a_replay_tells_what_happened_and_what_it_broke(sim: Invoke) -> None:
    ended = sim("replay", "3")
    assert ended.exit_code == 1
    said = ended.stdout.splitlines()
    assert said[0].split()[1] == "faults"
    assert "  50.000000  n1                is through" in said
    assert "  51.000000  checkers          exactly-once: twice" in said
    assert said[-3:] == ["  streams judged 2 answers", "1 violations", "  exactly-once at 51.000 s: twice"]


def test_a_replay_is_drawn_in_a_file_and_in_the_terminal(sim: Invoke, tmp_path: Path) -> None:
    page = tmp_path / "3.html"
    ended = sim("replay", "3", "--timeline", "--report", str(page))
    assert ended.exit_code == 1
    assert "is through" not in ended.stdout
    assert "broken" in ended.stdout
    assert f"drawn in {page}" in ended.stdout
    assert "exactly-once" in page.read_text()


@pytest.mark.parametrize("command", [("replay", "3", "--report"), ("shrink", "3", "--save")])
def test_what_may_not_be_written_is_told_before_anything_runs(
    sim: Invoke, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine")
    monkeypatch.setattr(os, "access", lambda _place, how: how != os.W_OK)
    for path, place in ((there, there), (tmp_path / "new.json", tmp_path)):
        ended = sim(*command, str(path))
        told = f"holdfast: {path} can't be written: {place} is not yours to write; name a file elsewhere"
        assert (ended.exit_code, ended.stdout, ended.stderr) == (2, "", f"{told}\n")
    assert there.read_text() == "mine"


def test_what_was_shrunk_is_told_though_it_can_t_be_kept(sim: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "attempt", fake_runs.attempt)
    for as_json in ((), ("--json",)):
        ended = sim("shrink", "3", "--jobs", "1", "--save", "/dev/full", *as_json)
        assert ended.exit_code == 2
        assert "holdfast sim replay 3 --scenario standard --only-faults 2" in ended.stdout
        assert ended.stderr.endswith("/dev/full can't be written: No space left on device; name a file elsewhere\n")


def test_of_a_traceback_only_the_end_is_told_among_other_seeds() -> None:
    told = brief("o1: nobody handled it: Traceback (most recent call last):\n  File …\nKeyError: 'x'\n")
    assert told == "o1: nobody handled it: KeyError: 'x'"
    assert brief("one line") == "one line"
    assert brief("a state\nof two lines") == "a state … of two lines"


def test_a_replay_without_one_of_its_faults_is_otherwise_the_same(sim: Invoke) -> None:
    ended = sim("replay", "3", "--only-faults", "0,5", "--only-work", "none", "--lasts-s", "20", "--json")
    assert ended.exit_code == 0
    *lines, last = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["about"] for line in lines] == ["fault", "fault", "note"]
    assert last["violations"] == []


def test_a_shrunk_run_is_kept_and_replayed(sim: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "attempt", fake_runs.attempt)
    path = tmp_path / "twice.json"
    ended = sim("shrink", "3", "--jobs", "1", "--save", str(path))
    assert ended.exit_code == 1
    assert "became 1 faults, 0 pieces of work, 0.25 virtual s" in ended.stdout
    command = "holdfast sim replay 3 --scenario standard --only-faults 2 --only-work none --lasts-s 0.25"
    assert f"  {command}" in ended.stdout.splitlines()
    again = sim("replay", str(path))
    assert again.exit_code == 1
    assert "1 faults, 0 pieces of work, 0.25 virtual s" in again.stdout
    told = json.loads(sim("shrink", str(path), "--jobs", "1", "--json").stdout)
    assert told["violation"]["checker"] == "exactly-once"
    assert [fault["number"] for fault in told["bug"]["plan"]["faults"]] == [2]
    assert told["command"] == f"holdfast sim replay {path}"


def test_the_command_for_a_shrunk_run_names_all_that_was_left_out(sim: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "attempt", fake_runs.attempt)
    told = json.loads(sim("shrink", "3", "--only-faults", "2", "--only-work", "none", "--jobs", "1", "--json").stdout)
    left = "--only-faults 2 --only-work none --lasts-s 0.25"
    assert told["command"] == f"holdfast sim replay 3 --scenario standard {left}"


def test_scenarios_faults_and_bugs_are_listed(sim: Invoke) -> None:
    told = json.loads(sim("list", "--json").stdout)
    assert [scenario["name"] for scenario in told["scenarios"]] == [
        "standard",
        "core",
        "short",
        "busy",
        "uneven",
        "calm",
    ]
    assert told["faults"]["standard"] == DRAWN
    listed = sim("list").stdout
    assert all(kind in listed for kind in KINDS)


@pytest.mark.parametrize(
    "chosen",
    [
        ["3", "--lasts-s", "1"],
        ["3", "--scenario", "core", "--only-faults", "0", "--lasts-s", "2.5"],
        ["start-held-back", "--lasts-s", "2"],
        ["2", "--mutant", "token-once", "--only-work", "none", "--lasts-s", "1"],
    ],
)
def test_a_report_tells_the_command_that_makes_its_run_again(chosen: list[str], tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    CliRunner().invoke(app, ["replay", *chosen, "--report", str(page)])
    told = re.search(r"<code>holdfast sim replay (.*?)  # at (.*?)</code>", page.read_text())
    assert told is not None
    assert told[2]
    again = CliRunner().invoke(app, ["replay", *told[1].split(), "--json"])
    first = CliRunner().invoke(app, ["replay", *chosen, "--json"])
    assert again.stdout.splitlines()[-1].split('"wall_s"')[0] == first.stdout.splitlines()[-1].split('"wall_s"')[0]
