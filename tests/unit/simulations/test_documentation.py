"""What docs/simulation.md says in tables is what the code has."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from holdfast.simulations.checkers import CHECKERS
from holdfast.simulations.faults.kinds import KINDS, LASTING
from holdfast.simulations.plan import SCENARIOS, Knobs, Scenario, draw_knobs

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/simulation.md").read_text()

DERIVED = {"heartbeat_timeout_s", "slots"}
"""Settings that follow from others, which the page tells in words."""

SEEDS = 300
"""So many draws have every value of a setting."""


def rows(heading: str, column: str) -> list[list[str]]:
    """The cells of the table under a heading whose first column has this name."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section.split(f"\n| {column} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def named(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def lasting(low_s: float, high_s: float) -> str:
    return f"{low_s:g} to {high_s:g}" if high_s else "at once"


def test_every_kind_of_fault_is_told_with_how_long_it_lasts() -> None:
    told = [(*named(name), lasts, core) for name, what, lasts, core in rows("Kinds of faults", "kind") if what]
    assert told == [(name, lasting(*kind.lasts_s), "yes" * (name in LASTING)) for name, kind in KINDS.items()]


def test_every_checker_is_told() -> None:
    told = [(*named(name), judged) for name, what, judged in rows("Checkers", "checker") if what]
    assert told == [(one.__name__, ", ".join(things)) for one, things in CHECKERS.items()]


def test_every_scenario_is_told() -> None:
    def row(scenario: Scenario) -> list[str]:
        faults = f"{scenario.faults_min} to {scenario.faults_max}" if scenario.faults_max else "none"
        sizes = (scenario.nodes, scenario.replicas, scenario.gateways, f"{scenario.lasts_s:g}", faults)
        return [
            f"`{scenario.name}`",
            *map(str, sizes),
            str(scenario.requests + scenario.late_requests),
            "yes" if scenario.heals else "no",
        ]

    assert rows("Scenarios", "scenario") == [row(scenario) for scenario in SCENARIOS.values()]


def test_every_setting_is_told_with_what_it_is_drawn_from() -> None:
    drawn = [draw_knobs(Random(f"{seed}/knobs"), scenario) for scenario in SCENARIOS.values() for seed in range(SEEDS)]
    told: dict[str, str] = {}
    for names, told_of in rows("Scenarios", "setting"):
        # Either all settings of a row have the values, or each its own.
        parts = told_of.split("; ")
        parts = parts if len(parts) == len(named(names)) else [told_of] * len(named(names))
        told.update(zip(named(names), parts, strict=True))
    assert sorted(told) == sorted(Knobs.__struct_fields__)
    for name in told.keys() - DERIVED:
        values = {getattr(knobs, name) for knobs in drawn}
        if values <= {True, False}:
            assert set(re.findall("yes|no(?!t)", told[name])) == {"yes" if value else "no" for value in values}, name
        else:
            numbers = re.sub(r"with \w+ log servers?|with three", "", told[name])
            assert {float(number) for number in re.findall(r"[\d.]+", numbers)} == values, name


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|examples|gateway|docs)/[\w/.*-]+)", PAGE))))
def test_every_file_that_is_named_is_there(path: str) -> None:
    inside = path.replace("gateway/", "gateway/holdfast/gateway/", 1) if path.startswith("gateway/") else path
    assert list(ROOT.glob(inside)), path


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:world|cluster|nats|etcd|faults|work)/[\w/.]*)", PAGE))))
def test_every_module_that_is_named_is_there(path: str) -> None:
    assert (ROOT / "simulations/holdfast/simulations" / path).exists(), path
