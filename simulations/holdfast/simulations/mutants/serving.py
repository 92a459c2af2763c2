"""Guards without which a cluster looks well, and serves nobody."""

from __future__ import annotations

from typing import Final

from holdfast.gateway.pool import Pool
from holdfast.gateway.serving import Serving
from holdfast.simulations.checkers.health import LIVENESS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, Mutant

MUTANTS: Final = (
    Mutant(
        "known-models",
        "a gateway serves the models that are deployed, and calls none of them unknown",
        (edit(Serving._pool, ("self._pools.get(model)", "None")),),
        (LIVENESS,),
    ),
    Mutant(
        "replica-chosen",
        "a stream begins where there is room for it",
        (edit(Pool.choose, ("self.links if among is None else among", "()")),),
        (LIVENESS,),
    ),
    Mutant(
        "room-again",
        "a gateway whose replicas were all full notices that one has room again",
        (edit(Pool.has_room, ("self.exhausted = self.full = False", "pass")),),
        (LIVENESS,),
        CROWDED,
    ),
)
