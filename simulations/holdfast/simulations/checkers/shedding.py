"""Load is shed lowest first: what goes before all else gives way to nothing."""

from __future__ import annotations

from typing import Final

from holdfast.core.admission import Reason
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History

SHEDDING: Final = "shedding"

CRITICAL: Final = "critical"

GIVES_WAY: Final = frozenset({Reason.DISPLACED, Reason.PRIORITY})
"""Reasons of rejections in favour of requests that go first. There is one tenant: no key is asked for."""


def shedding(history: History, judged: Judged) -> list[Violation]:
    """No critical request is rejected in favour of others."""
    found = []
    for request in history.requests:
        for sent in request.tries:
            if sent.rejected not in GIVES_WAY:
                continue
            judged["rejections in favour of others"] += 1
            if request.priority == CRITICAL:
                message = f"critical request {request.id} was rejected at {sent.gateway} as {sent.rejected}"
                found.append(Violation(SHEDDING, sent.at_s, message))
    return found
