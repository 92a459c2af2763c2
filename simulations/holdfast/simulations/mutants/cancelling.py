"""Guards of what nobody wants any more: engines are told, and so are those who have requests that belong to it."""

from __future__ import annotations

from typing import Final

from holdfast.gateway.contact import Contact
from holdfast.gateway.fences import Fences
from holdfast.gateway.requests import Requests
from holdfast.gateway.telling import Tellings
from holdfast.simulations.checkers.cancels import CANCELS
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import CROWDED, Mutant, Setting

_LONG: Final = Setting(
    "calm",
    shape={"requests": 150, "operations": 0},
    knobs={"itl_ms": 120.0, "kv_blocks": 256, "streams_max": 16, "slots": 6, "max_ongoing_requests": 16},
)
"""Streams last for seconds, many are asked for, and nothing befalls anybody."""

MUTANTS: Final = (
    Mutant(
        "stop-told",
        "an engine is told at once that nobody wants a stream any more",
        (
            edit(Contact.stop, ("self.connection.send(Stop(attempt))", "pass")),
            edit(Fences.stopped, ("self._stopped.append((pinged, stream))", "pass")),
        ),
        (CANCELS,),
        CROWDED,
    ),
    Mutant(
        "children-end-too",
        "a request that is cancelled, left or out of time takes those with it that belong to it",
        (edit(Requests._cancel, ("waiting.extend((child, PARENT, mode) for child in self._below(request))", "pass")),),
        (CANCELS,),
        _LONG,
    ),
    Mutant(
        "children-elsewhere",
        "gateways that have children of a request hear of its end",
        (edit(Tellings.add, ("line.waiting.append(telling)", "pass")),),
        (CANCELS,),
        _LONG,
    ),
)
