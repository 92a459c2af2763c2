"""Guards of planned stops: who goes is replaced first, a gateway obeys, and a drain that is lifted is over."""

from __future__ import annotations

from typing import Final

from holdfast.actors.node import Node
from holdfast.core import drains, reconcile
from holdfast.gateway.draining import GatewayDrain
from holdfast.simulations.checkers.draining import ROUTABLE, TAKEN_OUT
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import Mutant, Setting

OPERATED: Final = Setting("calm", shape={"operations": 12, "faults_until_s": 36.0, "replicas": 3})
"""Nothing happens but what operators do, which is a lot; the second model has one replica."""

MUTANTS: Final = (
    Mutant(
        "replaced-first",
        "who leaves a node, or is drained, stops only when a replacement runs",
        (edit(reconcile._stop_leaving, ("if replica.id in free or why.expired(now):", "if True:")),),
        (ROUTABLE,),
        OPERATED,
    ),
    Mutant(
        "relieved-first",
        "a node that is told to stop waits until others run what it ran",
        (edit(Node._leave, ("await self._be_relieved()", "pass")),),
        (ROUTABLE,),
        OPERATED,
    ),
    Mutant(
        "gateway-obeys",
        "a gateway that is drained lets go of what is open, and says so",
        (
            edit(
                GatewayDrain.run,
                ("group.create_task(self._obey(drain)) if drain is not None else None", "None"),
            ),
        ),
        (TAKEN_OUT,),
        OPERATED,
    ),
    Mutant(
        "undrained",
        "a drain that is lifted is over",
        (
            edit(
                drains._drain_lifted,
                (
                    "_set_drain(_without_decided(state, event, decision), decision, None)",
                    "_without_decided(state, event, decision)",
                ),
            ),
        ),
        (TAKEN_OUT,),
        OPERATED,
    ),
)
