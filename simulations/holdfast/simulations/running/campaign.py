"""Many seeds of a scenario: what failed, which kinds of faults were injected, and how much each checker judged.

Only sums and the first failures are kept, so that 100,000 seeds need no more memory than ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.plan import SCENARIOS, Scenario
from holdfast.simulations.running.pool import Broken

if TYPE_CHECKING:
    from holdfast.simulations.simulation import Result

FAILURES_KEPT = 200
"""So many failed seeds are kept with their violations; of the others only the number."""

VIOLATIONS_KEPT = 20
"""Violations that are kept of a seed."""


MANY_SEEDS = 1_000
"""Of so many seeds at least one has each kind of fault, or that kind can't strike any more; and each checker judges
something in one of them, or it can't find anything any more.
"""

TRACES = 1 << 128
"""There are so many traces, of a run and of many."""


class Case(msgspec.Struct, frozen=True):
    """One run to make: a seed of a scenario."""

    seed: int
    scenario: str


class Failure(msgspec.Struct, frozen=True):
    """A seed that failed: the invariants that it broke; or `broken`, when the run has no result."""

    seed: int
    violations: list[Violation]
    broken: Broken | None = None

    @property
    def names(self) -> set[str]:
        """The checkers that found something; or how the run broke."""
        if self.broken is not None:
            return {self.broken.how}
        return {violation.checker for violation in self.violations}


class Coverage(msgspec.Struct):
    """How often a kind of fault was injected, and in how many seeds."""

    seeds: int = 0
    injected: int = 0


class Judgements(msgspec.Struct):
    """How many things of a kind a checker judged, and in how many seeds it judged any."""

    seeds: int = 0
    judged: int = 0


class Fewest(msgspec.Struct, frozen=True):
    """The faults that a seed had, of those that did something; no other seed had fewer."""

    faults: int
    seed: int


class Tally(msgspec.Struct):
    """What there is so far. `coverage` has every kind of fault there is, those never injected too; `judged` by checker
    every kind of thing, those of which there was none too. Checkers that are `idle` may judge nothing.

    `fewest` is the seed that had the fewest faults, and how many.
    `failed` counts seeds, also those that are not among `failures` any more; `checkers` how many seeds each broke.
    `lasts_s` is how long a run is; `virtual_s` and `busy_s` are sums over all runs, of virtual and of a processor's
    real seconds. `trace` is of all runs together, whatever the order in which they were done.
    """

    coverage: dict[str, Coverage]
    judged: dict[str, dict[str, Judgements]]
    lasts_s: float
    idle: tuple[str, ...] = ()
    ran: int = 0
    failed: int = 0
    failures: list[Failure] = []
    fewest: Fewest | None = None
    checkers: dict[str, int] = {}
    counts: dict[str, int] = {}
    virtual_s: float = 0.0
    busy_s: float = 0.0
    trace: int = 0

    def add(self, case: Case, answer: Result | Broken) -> Failure | None:
        """Take in a seed; the failure if it is one."""
        self.ran += 1
        if isinstance(answer, Broken):
            failure = Failure(case.seed, [], answer)
        else:
            self._count(answer)
            fewest = Fewest(sum(answer.faults.values()), case.seed)
            self.fewest = min(self.fewest or fewest, fewest, key=lambda one: (one.faults, one.seed))
            if not answer.violations:
                return None
            failure = Failure(case.seed, answer.violations)
        self.failed += 1
        for name in sorted(failure.names):
            self.checkers[name] = self.checkers.get(name, 0) + 1
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(failure)
        return failure

    @property
    def never_injected(self) -> list[str]:
        """Kinds of faults that no seed had."""
        return [kind for kind, coverage in self.coverage.items() if not coverage.seeds]

    @property
    def never_judged(self) -> dict[str, list[str]]:
        """By checker, the kinds of things of which it judged none."""
        none = {name: [what for what, one in things.items() if not one.seeds] for name, things in self.judged.items()}
        return {name: things for name, things in none.items() if things}

    @property
    def missed(self) -> list[str]:
        """Kinds of faults that no seed had, though so many ran that one should: what they show is not shown."""
        return self.never_injected if self.ran >= MANY_SEEDS else []

    @property
    def blind(self) -> list[str]:
        """Checkers that judged nothing at all, though so many seeds ran that they should have: they hold nothing."""
        if self.ran < MANY_SEEDS:
            return []
        none = {name: len(things) for name, things in self.never_judged.items()}
        return [name for name, things in self.judged.items() if none.get(name) == len(things) and name not in self.idle]

    def _count(self, result: Result) -> None:
        for kind, number in result.faults.items():
            if number:
                coverage = self.coverage.setdefault(kind, Coverage())
                coverage.seeds += 1
                coverage.injected += number
        for checker, things in result.judged.items():
            for what, number in things.items():
                if number:
                    judged = self.judged[checker][what]
                    judged.seeds += 1
                    judged.judged += number
        for name, number in result.counts.items():
            self.counts[name] = self.counts.get(name, 0) + number
        self.virtual_s += self.lasts_s
        self.busy_s += result.wall_s
        self.trace = (self.trace + int(result.trace, 16)) % TRACES


def kinds_of(scenario: Scenario) -> list[str]:
    """The kinds of faults that can be drawn in a scenario."""
    from holdfast.simulations.faults.kinds import KINDS, LASTING

    if not scenario.faults_max:
        return []
    among = scenario.kinds or [name for name, kind in KINDS.items() if kind.weight]
    return [kind for kind in KINDS if kind in among and (scenario.heals or kind in LASTING)]


def new_tally(scenario: Scenario) -> Tally:
    """Nothing ran yet."""
    from holdfast.simulations.checkers import CHECKERS

    judged = {one.__name__: {what: Judgements() for what in things} for one, things in CHECKERS.items()}
    coverage = {kind: Coverage() for kind in kinds_of(scenario)}
    return Tally(coverage, judged, scenario.lasts_s, scenario.idle)


def simulate(case: Case) -> Result:
    """Draw a seed's run and make it. For worker processes."""
    from holdfast.simulations.simulation import draw_plan, run

    result, _history = run(draw_plan(case.seed, SCENARIOS[case.scenario]))
    return msgspec.structs.replace(result, violations=result.violations[:VIOLATIONS_KEPT])


def prepare() -> None:
    """Import what `simulate` needs."""
    from holdfast.simulations import simulation  # noqa: F401
