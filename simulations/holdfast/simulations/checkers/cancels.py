"""Engines stop for requests that nobody wants any more: cancelled by id, left, out of time, or below such a one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from holdfast.actors.engines.mock import TOKENS_WITHOUT_LIMIT
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import CANCELLED, GATEWAY, NODE, REPLICA, STOP, Attempt, Request

CANCELS: Final = "cancels"

STOPS_S: Final = 2.0
"""So long after its end a request's engines may still draw tokens (seconds): gateways and replicas have to be told."""

OPENS_S: Final = 0.2
"""So long a request may take to get to its gateway (seconds)."""

PACE_MIN: Final = 0.5
"""A token takes no less than this part of the longest that one may take."""

CALM_S: Final = 4.0
"""What befell anybody less than so long before the end, in seconds, may have kept a gateway from telling."""

SERVERS: Final = ("log", "lease")
"""How kinds of faults begin that befall servers alone, which have no part in this."""


def cancels(history: History, judged: Judged) -> list[Violation]:
    """No engine draws a token for a request `STOPS_S` after it was cancelled, its client left, or its time was over.

    The same goes for all requests below it. That is asked where nothing befell anybody just then.
    """
    found: list[Violation] = []
    for request in history.requests:
        for over_s, why in _ends(history, request):
            if over_s + STOPS_S <= history.ended_s and _calm(history, over_s):
                for one in [request, *below(history, request)]:
                    judged["streams that nobody wants"] += sum(_would_go_on(history, one, over_s))
                    found += _goes_on(one, over_s, f"{why} at {over_s:.3f} s", is_child=one is not request)
    return found


def below(history: History, request: Request) -> list[Request]:
    """All requests that belong to this one, to any depth, and came after the one that they belong to."""
    found: dict[int, Request] = {}
    parents = [request]
    while parents:
        parent = parents.pop()
        for one in history.requests:
            if one.parent == parent.id and one.id not in found and _came_after(one, parent):
                found[one.id] = one
                parents.append(one)
    return [one for one in found.values() if one is not request]


def _came_after(child: Request, parent: Request) -> bool:
    """Whether the parent was open for sure when the child came: no other gateway can know of a child before."""
    return bool(child.tries and parent.tries) and child.tries[0].at_s >= parent.tries[0].at_s + OPENS_S


def above(history: History, request: Request) -> set[int]:
    """The numbers of this request and of all that it belongs to."""
    parents = {one.id: one.parent for one in history.requests}
    found, number = set[int](), request.id
    while number >= 0 and number not in found:
        found.add(number)
        number = parents.get(number, -1)
    return found


def may_be_stopped(history: History, request: Request) -> bool:
    """Whether somebody asked for its end with what there is, or for that of one which it belongs to."""
    line = above(history, request) if any(one.mode == STOP for one in history.cancellations) else set[int]()
    return any(one.mode == STOP and one.request in line for one in history.cancellations)


def _ends(history: History, request: Request) -> Iterator[tuple[float, str]]:
    """When nobody wanted it any more for certain, and why."""
    for one in history.cancellations:
        if one.request == request.id and one.told_s is not None:
            yield one.told_s, f"request {request.id} was cancelled ({one.mode})"
    if len(request.tries) != 1:
        return  # it may go on at a gateway that its client has left, and that has yet to find out
    if request.how == CANCELLED and request.ended_s is not None and request.leaves_openly:
        if sum(attempt.finished for attempt in request.attempts) < request.n:
            yield request.ended_s, f"the client of request {request.id} left"
    elif request.timeout_s and request.code == "deadline_exceeded":
        yield request.tries[0].at_s + request.timeout_s, f"the time of request {request.id} was over"


def _goes_on(request: Request, over_s: float, why: str, *, is_child: bool) -> Iterator[Violation]:
    for attempt in _drawing(request.attempts, over_s):
        what = f"request {request.id}, which belongs to it," if is_child else "it"
        message = f"{why}, and {what} got a token on {attempt.replica} at {attempt.last_s:.3f} s"
        yield Violation(CANCELS, attempt.last_s, message)


def _would_go_on(history: History, request: Request, over_s: float) -> Iterator[bool]:
    """Of each attempt, whether it was under way, and had so many tokens left that going on would be found."""
    tokens = request.max_tokens or TOKENS_WITHOUT_LIMIT
    for attempt in request.attempts:
        runs = attempt.at_s < over_s and not (attempt.finished and attempt.last_s <= over_s)
        lasts_s = (tokens - attempt.accepted) * history.token_s * PACE_MIN
        # Where a stop string ends it, the engine may have had less to draw.
        yield runs and not request.stops and attempt.at_s + lasts_s > over_s + STOPS_S


def _drawing(attempts: Iterable[Attempt], over_s: float) -> Iterator[Attempt]:
    """Attempts that began before that, and drew tokens too long after it. A later one is of a client that came back."""
    return (one for one in attempts if one.at_s < over_s and one.last_s > over_s + STOPS_S)


def _calm(history: History, over_s: float) -> bool:
    """Whether nothing befell anybody around that time, but for the servers."""
    from_s, until_s = over_s - CALM_S, over_s + STOPS_S
    for fault in history.faults:
        lasts = fault.until_s is None or fault.until_s > from_s
        if fault.from_s <= until_s and lasts and not fault.kind.startswith(SERVERS):
            return False
    for process in history.processes:
        if process.role in (GATEWAY, NODE, REPLICA):
            times_s = (process.began_s, process.ended_s, process.told_s)
            if any(at_s is not None and from_s <= at_s <= until_s for at_s in times_s):
                return False
    return True
