"""Attempts of streams, as gateways begin them: as many as a stream may have, and each with its request's deadline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import Begun, Exchange, Request

GIVEN_UP: Final = "given_up"
DEADLINES: Final = "deadlines"

UNSENT: Final = 1
"""So many of an exchange's attempts may have ended before their frames were on the wire, with the connection."""


def given_up(history: History, judged: Judged) -> list[Violation]:
    """A gateway tells a client that its stream is lost only after it has begun it as often as it may be moved, or so
    often that the request itself may be what breaks engines; or where its deployment is gone.
    """
    due = min(history.attempts_max or 0, BARREN_ATTEMPTS_MAX)
    if due <= UNSENT:
        return []
    requests, found = {request.id: request for request in history.requests}, []
    for exchange in history.exchanges:
        request = requests.get(exchange.request)
        if request is None:
            continue
        over_s = _ended_s(history, exchange) if exchange.lost_s is None else exchange.lost_s
        begun = sum(1 for _ in _begun_between(history, request, exchange, over_s))
        if exchange.lost_s is None:
            judged["streams that lost their replicas"] += begun > request.n
            continue
        if not _deployed(history, request.model, exchange):
            continue
        judged["streams that lost their replicas"] += 1
        if begun + UNSENT < due:
            message = f"request {request.id} was given up after {begun} attempts, and {due} are due"
            found.append(Violation(GIVEN_UP, exchange.lost_s, message))
    return found


LATE_S: Final = 1.0
"""A slow gateway reads a request so long after it came, in seconds, and its time begins then."""


def deadlines(history: History, judged: Judged) -> list[Violation]:
    """A replica is told with each attempt, also with later ones and where one is taken over, how long its request may
    still take at its gateway: no longer than that, and than its client asked for.
    """
    requests = {request.id: request for request in history.requests}
    found = []
    for exchange in history.exchanges:
        request = requests.get(exchange.request)
        if request is None:
            continue
        due_s = exchange.due_s + LATE_S
        if request.timeout_s:
            due_s = min(due_s, exchange.began_s + request.timeout_s + LATE_S)
        for one in _begun_between(history, request, exchange, _ended_s(history, exchange)):
            judged["attempts"] += 1
            if not 0 < one.timeout_s <= due_s - one.at_s:
                told = f"may take {one.timeout_s:g} s" if one.timeout_s else "may take as long as it likes"
                message = f"a replica is told that request {request.id} {told}, and it has {due_s - one.at_s:.3f} s"
                found.append(Violation(DEADLINES, one.at_s, message))
    return found


def _ended_s(history: History, exchange: Exchange) -> float:
    return history.ended_s if exchange.ended_s is None else exchange.ended_s


def _begun_between(history: History, request: Request, exchange: Exchange, until_s: float) -> Iterator[Begun]:
    """What the exchange's gateway began of the request until then; one may be of another try at the same gateway."""
    for one in history.begun:
        mine = one.prompt == request.prompt if one.prompt else one.response_id == request.response_id
        if mine and one.pid == exchange.pid and exchange.began_s <= one.at_s <= until_s:
            yield one


def _deployed(history: History, model: str, exchange: Exchange) -> bool:
    """Whether the log had the model all the time."""
    assert exchange.lost_s is not None
    log = final_log(history)
    states = log.states[log.at(exchange.began_s) : log.at(exchange.lost_s) + 1]
    return all(any(model in one.deployments for one in state.applications.values()) for state in states)
