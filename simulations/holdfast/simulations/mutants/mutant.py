"""What a mutant is: production code without one of its guards, and how that must be noticed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from holdfast.simulations.mutants.edits import Constant, Edit, applied
from holdfast.simulations.plan import BUSY, STANDARD

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Setting(NamedTuple):
    """The runs in which a guard is needed: of all faults only some `kinds`, if named; other values for fields of the
    scenario (`shape`) and for `knobs`.
    """

    scenario: str = STANDARD
    kinds: tuple[str, ...] = ()
    shape: Mapping[str, Any] = NOTHING
    knobs: Mapping[str, Any] = NOTHING

    @property
    def is_own(self) -> bool:
        """Whether its runs are others than those of `sim run --scenario`."""
        return bool(self.kinds or self.shape or self.knobs)


USUAL: Final = Setting()

CUT_OFF: Final = Setting(kinds=("freeze", "partition", "one-way partition", "delay"))
"""Members stand still or are cut off, and come back."""

STALE: Final = Setting(
    kinds=("freeze", "partition", "one-way partition", "slow process", "log: appends late", "log: leader change")
)
"""Leaders are replaced while they can't know it, and what they wrote lands late."""

CROWDED: Final = Setting(BUSY)
"""There is more work than room, and what befalls replicas outlasts all bounds."""


class Mutant(NamedTuple):
    """A guard that is taken out. `guard` says what it holds, for people; `edits` are how it is taken out.

    Where guards stand behind each other, so that either alone holds, all of them are out: `guard` says so. It counts
    as caught only when one of `caught_by`, names of checkers, reports a violation: an accident that has nothing to do
    with the guard is no proof. `setting` says what its runs are like, where others would hardly ever need it.
    """

    name: str
    guard: str
    edits: tuple[Edit | Constant, ...]
    caught_by: tuple[str, ...]
    setting: Setting = USUAL

    @property
    def places(self) -> str:
        """Where the guard stands."""
        return ", ".join(edit.place for edit in self.edits)

    def removed(self) -> AbstractContextManager[None]:
        """While entered, production code is without the guard. Raises `StaleEdit`."""
        return applied(self.edits)
