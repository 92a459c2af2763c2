"""What holds of runs as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec
import pytest

from holdfast.simulations import simulation
from holdfast.simulations.checkers import BROKE_OFF
from holdfast.simulations.faults import kinds as injecting
from holdfast.simulations.faults.injection import Broken, Injector, Kind
from holdfast.simulations.plan import CORE, SCENARIOS, STANDARD, Fault
from holdfast.simulations.running.campaign import Case, simulate
from holdfast.simulations.running.narrate import narrate
from holdfast.simulations.running.shrink import bug_of
from holdfast.simulations.simulation import draw_plan, run

SEEDS = (1, 2)


def traces(scenario: str) -> list[str]:
    """The traces of some seeds, one after the other."""
    return [simulate(Case(seed, scenario)).trace for seed in SEEDS]


@pytest.mark.parametrize("scenario", [STANDARD, CORE])
def test_a_seed_is_the_same_run_twice_and_whatever_hashes_are(scenario: str) -> None:
    here = traces(scenario)
    assert traces(scenario) == here
    assert len(set(here)) == len(SEEDS)
    told = [
        subprocess.run(
            [sys.executable, "-c", f"from {__name__} import traces; print(*traces({scenario!r}))"],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert told == [here, here]


def test_a_narrated_run_is_the_same_run() -> None:
    plan = draw_plan(1, SCENARIOS[STANDARD])
    assert run(plan, narrating=True)[0].trace == run(plan)[0].trace


def test_what_is_said_where_the_world_ends_is_not_told() -> None:
    plan = msgspec.structs.replace(draw_plan(1, SCENARIOS["calm"]), lasts_s=20.0)
    _result, history = run(plan, narrating=True)
    assert history.notes
    assert "world" not in {note.actor for note in history.notes}


def test_a_run_that_is_cut_short_is_not_blamed_for_what_it_had_no_time_for() -> None:
    plan = draw_plan(1, SCENARIOS["calm"])
    for lasts_s, settles in ((plan.lasts_s, True), (1.0, False)):
        result, history = run(msgspec.structs.replace(plan, lasts_s=lasts_s))
        assert (history.settle is not None) == settles
        assert result.violations == []


@pytest.mark.parametrize("seed", range(1, 13))
def test_seeds_of_the_standard_scenario_break_no_invariant(seed: int) -> None:
    assert run(draw_plan(seed, SCENARIOS["standard"]))[0].violations == []


@pytest.mark.parametrize("seed", range(1, 7))
def test_seeds_with_faults_that_never_heal_break_no_invariant(seed: int) -> None:
    assert run(draw_plan(seed, SCENARIOS["core"]))[0].violations == []


@pytest.mark.parametrize("seed", range(1, 21))
def test_seeds_of_the_short_scenario_break_no_invariant(seed: int) -> None:
    assert run(draw_plan(seed, SCENARIOS["short"]))[0].violations == []


@pytest.mark.parametrize("seed", range(1, 9))
def test_seeds_of_busy_clusters_break_no_invariant(seed: int) -> None:
    assert run(draw_plan(seed, SCENARIOS["busy"]))[0].violations == []


@pytest.mark.parametrize("seed", range(1, 6))
def test_seeds_of_uneven_clusters_break_no_invariant(seed: int) -> None:
    assert run(draw_plan(seed, SCENARIOS["uneven"]))[0].violations == []


def test_a_run_that_raises_is_told_up_to_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = draw_plan(1, SCENARIOS[STANDARD])
    broken = plan.faults[3]

    def inject(_injector: Injector, fault: Fault) -> Broken:
        raise RuntimeError(f"nobody can break {fault.number}")

    kinds = {**injecting.KINDS, broken.kind: Kind(inject)}
    monkeypatch.setattr(simulation, "KINDS", kinds)
    first = next(fault for fault in plan.faults if fault.kind == broken.kind)
    result, history = run(plan, narrating=True)
    (violation,) = result.violations
    assert (violation.checker, violation.at_s) == (BROKE_OFF, first.at_s)
    assert bug_of(violation) == f"{BROKE_OFF} RuntimeError"
    assert any("starts as pid" in line.text for line in narrate(history, result.violations))
    assert run(plan)[0].trace == result.trace


def test_leaving_the_simulation_between_turns_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Injector, "_inject", lambda _injector, _fault: time.time())
    (violation,) = run(draw_plan(1, SCENARIOS[STANDARD]))[0].violations
    assert bug_of(violation) == f"{BROKE_OFF} holdfast.simulations.world.guards.LeftTheSimulation"


def test_only_faults_that_did_something_are_counted() -> None:
    plan = draw_plan(1, SCENARIOS["calm"])
    kinds = ("log: acks lost", "log: stale reads", "launch failure", "engine out of memory", "freeze")
    idle = tuple(Fault(number, 40.0 + 2 * number, kind, 1.0, 0.1, 0.1) for number, kind in enumerate(kinds))
    plan = msgspec.structs.replace(plan, work=plan.work[:1])
    # Not even a canary comes to the engine that has no memory left.
    alone = msgspec.structs.replace(plan.knobs, log_servers=1, canary_wait_s=plan.lasts_s)
    result, history = run(msgspec.structs.replace(plan, faults=idle, knobs=alone))
    assert [fault.kind for fault in history.faults if not fault.struck] == [
        "log: acks lost",
        "launch failure",
        "engine out of memory",
    ]
    assert result.faults == {"freeze": 1}
    three = msgspec.structs.replace(plan.knobs, log_servers=3)
    acks_lost = Fault(0, 0.0, "log: acks lost", 20.0, 0.1, 1.0)
    busy = msgspec.structs.replace(plan, faults=(acks_lost, idle[1], idle[3]), knobs=three)
    assert run(busy)[0].faults == {"log: acks lost": 1, "log: stale reads": 1, "engine out of memory": 1}


def loses_power(seed: int, *, sync_always: bool) -> set[str]:
    """The invariants that break where the log's only server loses its power again and again while a cluster starts."""
    plan = draw_plan(seed, SCENARIOS["calm"])
    faults = tuple(Fault(number, 0.9 + 1.3 * number, "log server power failure", 0.5, 0.0, 1.0) for number in range(6))
    knobs = msgspec.structs.replace(plan.knobs, log_servers=1, sync_always=sync_always)
    result, _history = run(msgspec.structs.replace(plan, faults=faults, knobs=knobs))
    return {violation.checker for violation in result.violations}


def test_acknowledged_events_are_lost_at_a_power_failure_unless_the_servers_sync_always() -> None:
    seeds = range(1, 7)
    assert "durability" in set().union(*(loses_power(seed, sync_always=False) for seed in seeds))
    assert set().union(*(loses_power(seed, sync_always=True) for seed in seeds)) == set()
