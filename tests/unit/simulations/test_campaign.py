"""What many seeds add up to."""

from __future__ import annotations

import pytest

from holdfast.simulations.checkers import CHECKERS
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.faults.kinds import KINDS, LASTING
from holdfast.simulations.plan import CORE, SCENARIOS, STANDARD
from holdfast.simulations.running import campaign
from holdfast.simulations.running.campaign import (
    FAILURES_KEPT,
    Case,
    Coverage,
    Failure,
    Fewest,
    Judgements,
    kinds_of,
    new_tally,
)
from holdfast.simulations.running.pool import Broken
from tests.unit.simulations.fake_runs import VIOLATION, result

DRAWN = [name for name, kind in KINDS.items() if kind.weight]
"""The kinds of faults that are drawn where no scenario names others."""


def test_a_tally_counts_seeds_faults_and_checkers() -> None:
    tally = new_tally(SCENARIOS[STANDARD])
    assert tally.add(Case(1, STANDARD), result(1, faults={"freeze": 3, "partition": 1})) is None
    twice = Violation("exactly-once", 13.0, "again")
    assert tally.add(Case(2, STANDARD), result(2, VIOLATION, twice)) == Failure(2, [VIOLATION, twice])
    broken = Broken("died", "its process ended by SIGSEGV")
    assert tally.add(Case(3, STANDARD), broken) == Failure(3, [], broken)
    assert (tally.ran, tally.failed, tally.checkers) == (3, 2, {"exactly-once": 1, "died": 1})
    assert (tally.coverage["freeze"], tally.coverage["partition"]) == (Coverage(2, 5), Coverage(1, 1))
    assert tally.fewest == Fewest(2, 2)
    assert tally.never_injected == [kind for kind in DRAWN if kind not in ("freeze", "partition")]
    assert (tally.virtual_s, tally.busy_s, tally.counts) == (120.0, 0.5, {"requests": 80})


def test_a_tally_counts_what_each_checker_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = new_tally(SCENARIOS[STANDARD])
    for seed in (1, 2, 3):
        tally.add(Case(seed, STANDARD), result(seed))
    assert tally.judged["streams"] == {"answers": Judgements(seeds=2, judged=3)}
    others = {checker.__name__: list(things) for checker, things in CHECKERS.items() if checker.__name__ != "streams"}
    assert tally.never_judged == others
    assert tally.blind == []
    monkeypatch.setattr(campaign, "MANY_SEEDS", 3)
    assert tally.blind == [name for name in others if name not in SCENARIOS[STANDARD].idle]
    for things in tally.judged.values():
        next(iter(things.values())).seeds = 1  # of one kind of thing something was judged: that one holds something
    assert tally.blind == []


def test_the_trace_of_many_runs_is_the_same_in_any_order() -> None:
    tallies = [new_tally(SCENARIOS[STANDARD]) for _ in range(3)]
    for tally, seeds in zip(tallies, ((1, 2, 3), (3, 1, 2), (1, 2, 4)), strict=True):
        for seed in seeds:
            tally.add(Case(seed, STANDARD), result(seed))
    assert tallies[0].trace == tallies[1].trace != tallies[2].trace


def test_a_tally_of_any_number_of_seeds_keeps_a_bounded_number_of_failures() -> None:
    tally = new_tally(SCENARIOS[STANDARD])
    for seed in range(3 * FAILURES_KEPT):
        assert tally.add(Case(seed, STANDARD), result(seed, VIOLATION)) is not None
    assert (tally.failed, len(tally.failures)) == (3 * FAILURES_KEPT, FAILURES_KEPT)


def test_a_scenario_is_only_expected_to_have_the_faults_that_can_be_drawn_in_it() -> None:
    assert kinds_of(SCENARIOS[STANDARD]) == DRAWN
    assert set(kinds_of(SCENARIOS["uneven"])) > KINDS.keys() - set(DRAWN)
    assert set(kinds_of(SCENARIOS[CORE])) == set(LASTING)
    assert kinds_of(SCENARIOS["calm"]) == []
