"""Production code with one guard taken out: each must be caught by the checkers, or the simulation proves little.

A mutant's name is what its guard holds. `removed` takes the guard out of production code for as long as it is entered.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from holdfast.core.errors import Misuse
from holdfast.simulations.mutants import (
    cancelling,
    draining,
    health,
    leading,
    lenient,
    log,
    placing,
    serving,
    shedding,
    streams,
    telling,
    wishing,
)
from holdfast.simulations.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant", "NoSuchMutant", "mutant", "removed"]

MUTANTS: Final[dict[str, Mutant]] = {
    one.name: one
    for one in (
        *log.MUTANTS,
        *leading.MUTANTS,
        *placing.MUTANTS,
        *wishing.MUTANTS,
        *telling.MUTANTS,
        *streams.MUTANTS,
        *cancelling.MUTANTS,
        *health.MUTANTS,
        *draining.MUTANTS,
        *shedding.MUTANTS,
        *serving.MUTANTS,
        *lenient.MUTANTS,
    )
}
"""All of them, by name."""


class NoSuchMutant(Misuse):
    """No mutant has this name."""


def mutant(name: str) -> Mutant:
    """A mutant by its name. Raises `NoSuchMutant`."""
    if name not in MUTANTS:
        raise NoSuchMutant(f"there is no mutant {name}; there are {', '.join(MUTANTS)}")
    return MUTANTS[name]


def removed(name: str) -> AbstractContextManager[None]:
    """While entered, production code is without this guard. Raises `NoSuchMutant`, `StaleEdit`."""
    return mutant(name).removed()
