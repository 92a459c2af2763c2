"""Guards of what operators ask for: no wish is forgotten, and what was decided outlives processes."""

from __future__ import annotations

from typing import Final

from holdfast.core import applications, drains, membership
from holdfast.simulations.checkers.wishes import WISHES
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import Mutant, Setting

_BUSY_OPERATORS: Final = Setting(
    kinds=("log: appends late", "log: slow disk", "log: slow delivery", "gateway crash", "node crash"),
    shape={"operations": 24},
)
"""Operators ask for one thing after the other, of a log that is slow, while members crash."""

_KEEPS_DRAIN: Final = ("before.drain if before is not None else None", "None")

MUTANTS: Final = (
    Mutant(
        "wish-in-between",
        "a wish that comes while another one about the same is decided waits for its own decision",
        (
            edit(
                applications._without_decided,
                ("if request is not None and request.event == event.cause:", "if request is not None:"),
            ),
        ),
        (WISHES,),
        _BUSY_OPERATORS,
    ),
    Mutant(
        "drain-in-between",
        "so does a drain that is lifted, or ordered again, meanwhile",
        (
            edit(
                drains._without_decided, ("if pending is None or pending.event != event.cause:", "if pending is None:")
            ),
        ),
        (WISHES,),
        _BUSY_OPERATORS,
    ),
    Mutant(
        "new-revision",
        "replicas are replaced where their engine is changed",
        (edit(applications._deployment, ("(config.engine != before.config.engine)", "0")),),
        (WISHES,),
    ),
    Mutant(
        "same-revision",
        "and nowhere else",
        (edit(applications._deployment, ("(config.engine != before.config.engine)", "1")),),
        (WISHES,),
    ),
    Mutant(
        "drained-node",
        "a node that is drained is so when its process is started again",
        (edit(membership._node_joined, _KEEPS_DRAIN),),
        (WISHES,),
        _BUSY_OPERATORS,
    ),
    Mutant(
        "drained-gateway",
        "and so is a gateway",
        (edit(membership._gateway_joined, _KEEPS_DRAIN),),
        (WISHES,),
        _BUSY_OPERATORS,
    ),
)
