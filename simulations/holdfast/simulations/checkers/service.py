"""Whether a cluster that is well serves: each request that fails there needs a reason, and the history must show it.

What the answer says is no reason. `model_not_found` is one where nobody deploys the model. That no replica took a
request, or none in time, has one where more streams were wanted at once than the model's replicas take, where
operators had set thresholds, or where the request's own time was too short for its tokens, while these kept coming.

With a healthy core it is asked what the last gateways did, if they were in it: what a client lost at others before was
its time, so only what it had left then is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.core.cluster import ClusterState, DeploymentState, ReplicaStatus
from holdfast.core.thresholds import NONE_SET
from holdfast.simulations.checkers.cancels import above
from holdfast.simulations.checkers.demand import most_at_once, wanted_until
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.streams import due_of
from holdfast.simulations.history import History
from holdfast.simulations.records import CANCELLED, ERROR, UNREACHED, Request, Settle, Try

CANCELLED_CODES: Final = frozenset({"request_cancelled", "parent_cancelled"})
NOT_FOUND: Final = "model_not_found"
OVERLOADED: Final = "overloaded"
LATE: Final = "deadline_exceeded"
NO_ROOM: Final = frozenset({OVERLOADED, "no_replica", LATE})
"""Errors that a cluster in full health answers with too, where it is asked for more than it can do."""

SPARE_S: Final = 1.0
"""What a request takes beside its tokens, at most (seconds): connections, the way there and back."""

LOOKS_BACK_S: Final = 4.0
"""What replicas were busy with so long ago may still count at gateways (seconds): heartbeats tell of it."""


def served(history: History, settle: Settle, since_s: float, judged: Judged) -> Iterator[tuple[float, str]]:
    """Requests asked since then which failed for no reason: when, and what is to be said of each.

    From then on the goal has been reached, and the log has not left it.
    """
    for request in history.requests:
        failed = request.how in (ERROR, UNREACHED)
        if request.asked_s <= since_s or request.how == CANCELLED or (failed and _excused(history, settle, request)):
            continue
        judged["requests once all is well"] += 1
        if failed:
            ended = f"request {request.id} ended in {request.how} {request.code}".rstrip()
            yield _ended_s(history, request), f"{ended}, while all had been well since {since_s:.3f} s"


def _excused(history: History, settle: Settle, request: Request) -> bool:
    tries = _tries(settle, request)
    if not tries or request.code in CANCELLED_CODES:
        return True
    state = final_log(history).state
    deployment = _deployment(state, request.model)
    if deployment is None:
        return True
    if request.how == ERROR and request.code not in NO_ROOM:
        return False
    if _crowded(history, settle, request, tries[0]):
        return True
    if request.code == OVERLOADED or tries[-1].rejected:
        return deployment.thresholds != NONE_SET
    if request.code == LATE and _parent_is_late(history, request):
        return True
    return request.code in (LATE, "") and _hurried(history, request, tries[0].at_s)


def _tries(settle: Settle, request: Request) -> list[Try]:
    """The last ones that are judged, in their order: those that no other gateway than of the core had a part in."""
    judged: list[Try] = []
    for sent in reversed(request.tries):
        if settle.core and sent.gateway not in settle.core:
            break
        judged.insert(0, sent)
    return judged


def _deployment(state: ClusterState, model: str) -> DeploymentState | None:
    return next(
        (one.deployments[model] for one in state.applications.values() if model in one.deployments),
        None,
    )


# --- room -----------------------------------------------------------------------------------------------


def _crowded(history: History, settle: Settle, request: Request, first: Try) -> bool:
    """Whether more streams of the model were wanted at once, around its time, than replicas take for sure."""
    running = sum(
        replica.deployment == request.model
        and replica.status is ReplicaStatus.RUNNING
        and not replica.unhealthy
        and (not settle.core or replica.node in settle.core)
        for replica in final_log(history).state.replicas.values()
    )
    others = [
        (one.asked_s, _taken_until(history, settle, one), one.n)
        for one in history.requests
        if one.model == request.model
    ]
    wanted = most_at_once(others, first.at_s - LOOKS_BACK_S, _ended_s(history, request))
    return wanted > running * history.room_min


def _taken_until(history: History, settle: Settle, request: Request) -> float:
    """Until when replicas may have its streams; a gateway outside of the core may never take them back."""
    until_s = wanted_until(history, request)
    if settle.core and any(sent.gateway not in settle.core for sent in request.tries):
        return max(until_s, request.deadline_s)
    return until_s


# --- time -----------------------------------------------------------------------------------------------


def _hurried(history: History, request: Request, from_s: float) -> bool:
    """Whether its time was too short for its tokens; if they came until then, or there were no more to come."""
    time_s = min(request.deadline_s - from_s, request.timeout_s or request.deadline_s)
    tokens = max(len(due.drawn) for due in due_of(request, request.seed or 0))
    if time_s >= history.first_token_s + tokens * history.token_s + request.paused_s + SPARE_S:
        return False
    drawn = sum(attempt.finished for attempt in request.attempts) >= request.n
    seen_s = max([from_s, request.last_s or 0.0, *(max(one.at_s, one.last_s) for one in request.attempts)])
    # A client that takes nothing for too long is cut off, and its stream goes on when it comes back.
    silent_s = _ended_s(history, request) - seen_s - request.paused_s
    return drawn or silent_s < history.first_token_s + history.token_s + SPARE_S


def _parent_is_late(history: History, request: Request) -> bool:
    """Whether it ended just when the time was over that one asked for which it belongs to."""
    line, ended_s = above(history, request) - {request.id}, _ended_s(history, request)
    return any(
        one.id in line and one.timeout_s and 0.0 <= ended_s - sent.at_s - one.timeout_s <= SPARE_S
        for one in history.requests
        for sent in one.tries
    )


def _ended_s(history: History, request: Request) -> float:
    return request.ended_s if request.ended_s is not None else history.ended_s
