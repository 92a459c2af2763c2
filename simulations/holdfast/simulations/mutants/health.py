"""Guards of health: what is sick is found, and no more than a part is taken out for it at a time."""

from __future__ import annotations

from typing import Final

from holdfast.actors.replica_watch import ReplicaWatch
from holdfast.core import reconcile
from holdfast.simulations.checkers.sickness import SICKNESS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, Mutant, Setting
from holdfast.simulations.plan import CORE

MUTANTS: Final = (
    Mutant(
        "canary",
        "a node asks its idle replicas for a token, and has those that give none replaced",
        (edit(ReplicaWatch._canary_tells, ('verdict.message if kind == verdict.kind else ""', '""')),),
        (SICKNESS,),
        Setting(CORE, kinds=("freeze",)),
    ),
    Mutant(
        "health-budget",
        "only a part of a deployment's replicas is taken out for its health at a time",
        (edit(reconcile._standing, ("replica.unhealthy and budget > 0", "replica.unhealthy")),),
        (SICKNESS,),
        CROWDED,
    ),
)
