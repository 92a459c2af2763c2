"""Starts of replicas and attempts of streams: what fails is not tried again and again, as fast as can be."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, DeploymentState
from holdfast.core.reconcile import START_BACKOFF_FIRST_S, START_BACKOFF_MAX_S
from holdfast.core.starts import CLOCKS_APART_S
from holdfast.core.stream import BARREN_ATTEMPTS_MAX
from holdfast.simulations.checkers.folding import final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import ERROR, POISONED, Attempt, Request

STARTS: Final = "starts"
ATTEMPTS: Final = "attempts"

CLOCKS: Final = frozenset({"clock skew", "clock jump"})
"""Faults at whose beginning and end wall clocks jump."""

PLANNED_S: Final = 10.0
"""A leader's clock may have jumped between its plan and its decision, within so long (seconds)."""

TOLD_S: Final = 0.05
"""What a replica sent less than this before it ended, in seconds, may have been overtaken by its connection's reset."""


# --- starts ---------------------------------------------------------------------------------------------


def starts(history: History, judged: Judged) -> list[Violation]:
    """A replica that takes the place of one whose start failed is placed after a pause.

    It doubles with each failure. Pauses are counted by the clocks of nodes and leaders, as leaders do.
    """
    log = final_log(history)
    places = {record.event.id: place for place, record in enumerate(log.records)}
    found = []
    for place, record in log.effective():
        payload, cause = record.event.payload, record.event.cause
        if not isinstance(payload, ev.ReplicaReplaced) or cause not in places or _jumped(history, log.times[place]):
            continue
        ended = places[cause]
        if not isinstance(log.records[ended].event.payload, ev.ReplicaExited):
            continue
        known = [_deployment(state, payload) for state in log.states[ended + 1 : place + 1]]
        due = [_due(deployment, record.event.time) for deployment in known]
        judged["replacements after failed starts"] += all(at is not None for at in due)
        if all(at is not None and record.event.time < at for at in due):
            failures = known[0].unstable_starts if known[0] is not None else 0
            message = (
                f"{payload.replica} is placed for {payload.replaces} before the pause after {failures} failed starts"
            )
            found.append(Violation(STARTS, log.times[place], f"sequence {record.sequence}: {message} is over"))
    return found


def _deployment(state: ClusterState, placed: ev.ReplicaReplaced) -> DeploymentState | None:
    application = state.applications.get(placed.application)
    return application.deployments.get(placed.deployment) if application is not None else None


def _due(deployment: DeploymentState | None, now: datetime) -> datetime | None:
    """When the next start may be, as a leader whose clock shows `now` has to see it; None for at any time."""
    if deployment is None or deployment.failed_at is None or not deployment.unstable_starts:
        return None
    since, latest, placed = deployment.failed_at, now + timedelta(seconds=CLOCKS_APART_S), deployment.failed_after
    if since > latest or (placed is not None and since < placed):
        if placed is None or placed > latest:
            return None
        since = placed
    pause_s = min(START_BACKOFF_FIRST_S * 2.0 ** (deployment.unstable_starts - 1), START_BACKOFF_MAX_S)
    return since + timedelta(seconds=pause_s)


def _jumped(history: History, at_s: float) -> bool:
    jumps_s = [
        jump_s for fault in history.faults if fault.kind in CLOCKS for jump_s in (fault.from_s, fault.until_s or 0.0)
    ]
    return any(at_s - PLANNED_S < jump_s <= at_s for jump_s in jumps_s)


# --- attempts -------------------------------------------------------------------------------------------


def attempts(history: History, judged: Judged) -> list[Violation]:
    """No stream is begun more often than it may be moved, nor one that breaks engines more than a few times; and no
    other request ends because of those. Leaving a replica that was told to stop does not count.
    """
    most = history.attempts_max
    if most is None:
        return []
    found = []
    for request in history.requests:
        judged["requests that engines took in"] += bool(request.attempts)
        allowed = min(most, BARREN_ATTEMPTS_MAX) if request.poisoned else most
        counted = [one for one in request.attempts if not _planned(history, request, one)]
        begun = sum(not request.poisoned or _was_told(history, one) for one in counted)
        if begun > allowed * request.n * len(request.tries):
            message = f"request {request.id} was begun {begun} times, and {allowed} times are allowed for each try"
            found.append(Violation(ATTEMPTS, request.attempts[-1].at_s, message))
        elif _blamed(history, request, most):
            message = f"request {request.id} was ended for breaking engines, and another one broke them"
            found.append(Violation(ATTEMPTS, request.ended_s or history.ended_s, message))
    return found


def _planned(history: History, request: Request, attempt: Attempt) -> bool:
    """Whether it began once a replica on which the stream ran was to end in order; its gateway may act on that late."""
    left = {one.replica for one in request.attempts if one.at_s < attempt.at_s}
    return any(
        one.replica in left and one.told_s is not None and one.told_s <= attempt.at_s for one in history.processes
    )


def _was_told(history: History, attempt: Attempt) -> bool:
    """Whether its gateway heard that the engine took the stream in: the replica did not end at once."""
    ends_s = [one.ended_s for one in history.processes if one.replica == attempt.replica and one.ended_s is not None]
    return all(not 0 <= ended_s - attempt.at_s < TOLD_S for ended_s in ends_s)


def _blamed(history: History, request: Request, most: int) -> bool:
    """Whether it was ended as one that breaks engines, where only one other stream could have broken them.

    That is asked where both were at one gateway, for another one suspects nobody. The other stream may have broken two
    engines under it: once before anybody suspected this one, and once by turning up, new, where this one was tried
    alone.
    """
    if request.poisoned or (request.how, request.code) != (ERROR, "stream_lost") or not request.attempts:
        return False
    if len(request.tries) > 1 or len(request.attempts) >= most or any(one.kind != POISONED for one in history.faults):
        return False
    breaking = {sent.gateway for other in history.requests if other.poisoned for sent in other.tries}
    if breaking != {request.tries[0].gateway}:
        return False
    ended_s = request.ended_s if request.ended_s is not None else history.ended_s
    return sum(_open_streams(other, request.attempts[0].at_s, ended_s) for other in history.requests) <= 1


def _open_streams(request: Request, from_s: float, until_s: float) -> int:
    """How many streams its tries have made that were there at some time within these, if it breaks engines."""
    if not request.poisoned:
        return 0
    ends_s = [sent.at_s for sent in request.tries[1:]] + [request.deadline_s]
    here = [sent for sent, end_s in zip(request.tries, ends_s, strict=True) if sent.at_s <= until_s and end_s > from_s]
    return len(here) * request.n
