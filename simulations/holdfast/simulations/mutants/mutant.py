"""What a mutant is: production code without one of its guards, and how that must be noticed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from holdfast.simulations.mutants.edits import Constant, Edit, applied
from holdfast.simulations.plan import STANDARD

NO_KNOBS: Final[Mapping[str, Any]] = MappingProxyType({})


class Mutant(NamedTuple):
    """A guard that is taken out. `guard` says what it holds, for people; `edits` are how it is taken out.

    Where guards stand behind each other, so that either alone holds, all of them are out: `guard` says so. It counts
    as caught only when one of `caught_by`, names of checkers, reports a violation: an accident that has nothing to do
    with the guard is no proof. `scenario` and `knobs` are those of its runs, where others would hardly ever need it.
    """

    name: str
    guard: str
    edits: tuple[Edit | Constant, ...]
    caught_by: tuple[str, ...]
    scenario: str = STANDARD
    knobs: Mapping[str, Any] = NO_KNOBS

    @property
    def places(self) -> str:
        """Where the guard stands."""
        return ", ".join(edit.place for edit in self.edits)

    def removed(self) -> AbstractContextManager[None]:
        """While entered, production code is without the guard. Raises `StaleEdit`."""
        return applied(self.edits)
