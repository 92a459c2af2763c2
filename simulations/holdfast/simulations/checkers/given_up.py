"""Streams that lose their replica go on: a gateway gives one up only once it has tried as often as it may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import Exchange, Request

GIVEN_UP: Final = "given_up"

UNSENT: Final = 1
"""So many of an exchange's attempts may have ended before their frames were on the wire, with the connection."""


def given_up(history: History) -> list[Violation]:
    """A gateway tells a client that its stream is lost only after it has begun it as often as it may be moved, or so
    often that the request itself may be what breaks engines; or where its deployment is gone.
    """
    most = history.attempts_max
    if most is None:
        return []
    requests = {request.id: request for request in history.requests}
    due, found = min(most, BARREN_ATTEMPTS_MAX), []
    for exchange in history.exchanges:
        request = requests.get(exchange.request)
        if exchange.lost_s is None or request is None or not _deployed(history, request.model, exchange):
            continue
        begun = sum(1 for _ in _begun(history, request, exchange))
        if begun + UNSENT < due:
            message = f"request {request.id} was given up after {begun} attempts, and {due} are due"
            found.append(Violation(GIVEN_UP, exchange.lost_s, message))
    return found


def _begun(history: History, request: Request, exchange: Exchange) -> Iterator[float]:
    """When the exchange's gateway began a stream of the request; one may be of another try at the same gateway."""
    assert exchange.lost_s is not None
    for one in history.begun:
        mine = one.prompt == request.prompt if one.prompt else one.response_id == request.response_id
        if mine and one.pid == exchange.pid and exchange.began_s <= one.at_s <= exchange.lost_s:
            yield one.at_s


def _deployed(history: History, model: str, exchange: Exchange) -> bool:
    """Whether the log had the model all the time."""
    assert exchange.lost_s is not None
    log = final_log(history)
    states = log.states[log.at(exchange.began_s) : log.at(exchange.lost_s) + 1]
    return all(any(model in one.deployments for one in state.applications.values()) for state in states)
