"""Streams leave a replica that stands still, or whose engine lost them or makes nothing, if others could take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.core.cluster import ReplicaStatus
from holdfast.simulations.checkers.demand import most_at_once, wanted_until
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import REPLICA, STREAMS_MIN, Fault, Process, Request

MOVES: Final = "moves"

UNDER_WAY_S: Final = 1.0
"""What a frozen replica had sent still comes for so long (seconds)."""

CALM_S: Final = 5.0
"""A fault that ended less than so long before a freeze, in seconds, may still keep a gateway from what it should do."""

LOSES_STREAM: Final = "engine loses stream"
"""The kind of fault that is no reason for anything but one stream's standing still."""

BARREN: Final = "barren engine"
"""The kind of fault whose engine steps on while nothing comes of it."""

BUSY_MAX: Final = 4
"""Where more requests for a model are open, its other replicas may have no room."""


def moves(history: History) -> list[Violation]:
    """A stream whose replica stands still goes on elsewhere, or ends, within `history.move_bound_s`; one that its
    engine lost, within `history.stall_bound_s`; one whose engine makes nothing, within `history.barren_bound_s`.

    That is asked where nothing but standing still befalls anybody who has to do with it, and where another replica of
    the model is well.
    """
    log = final_log(history)
    found = list(_lost(history, log)) if history.stall_bound_s else []
    found += _barren(history, log) if history.barren_bound_s else []
    if not history.move_bound_s:
        return found
    for process in history.processes:
        for from_s, until_s in process.frozen if process.role == REPLICA else ():
            due_s = from_s + history.move_bound_s
            if min(until_s or history.ended_s, process.ended_s or history.ended_s, history.ended_s) <= due_s:
                continue
            for request in _left_there(history, process, from_s, due_s):
                if _could_move(history, log, process, request, from_s, due_s):
                    message = f"request {request.id} is still on {process.replica}, which stands still since"
                    found.append(Violation(MOVES, due_s, f"{message} {from_s:.3f} s"))
    return found


def _lost(history: History, log: FinalLog) -> Iterator[Violation]:
    for request in history.requests:
        for from_s, replica in request.stood_still if request.n == 1 and request.streamed else ():
            due_s = from_s + history.stall_bound_s
            ended_s = request.ended_s if request.ended_s is not None else history.ended_s
            before = [attempt for attempt in request.attempts if attempt.at_s <= from_s]
            if ended_s <= due_s or before[-1].replica != replica or _moved(request, from_s, due_s):
                continue
            process = next(one for one in history.processes if one.replica == replica)
            well = not _befallen(history, from_s, due_s, replica, process.host)
            well = well and _lives(history, process.pid, from_s, due_s)
            if well and _could_move(history, log, process, request, from_s, due_s):
                message = f"request {request.id} is still on {replica}, whose engine lost it at {from_s:.3f} s"
                yield Violation(MOVES, due_s, message)


def _barren(history: History, log: FinalLog) -> Iterator[Violation]:
    for fault in history.faults:
        if fault.kind != BARREN:
            continue
        until_s = fault.until_s if fault.until_s is not None else history.ended_s
        process = next(one for one in history.processes if one.replica == fault.target)
        for request in history.requests:
            from_s = _there_from_s(request, fault.target, fault.from_s, until_s)
            if from_s is None or request.n != 1 or not request.streamed:
                continue
            due_s = from_s + history.barren_bound_s
            ended_s = request.ended_s if request.ended_s is not None else history.ended_s
            if min(until_s, ended_s, history.ended_s) <= due_s or _moved(request, from_s, due_s):
                continue
            well = not _befallen(history, from_s, due_s, fault.target, process.host, but=(fault,))
            well = well and _lives(history, process.pid, from_s, due_s)
            if well and _could_move(history, log, process, request, from_s, due_s, but=(fault,)):
                message = f"request {request.id} is still on {fault.target}, whose engine makes nothing since"
                yield Violation(MOVES, due_s, f"{message} {from_s:.3f} s")


def _there_from_s(request: Request, replica: str, from_s: float, until_s: float) -> float | None:
    """Since when, of this time, its last attempt until then was on the replica; None if it was not."""
    before = [attempt for attempt in request.attempts if attempt.at_s < until_s]
    if not before or before[-1].replica != replica:
        return None
    return max(from_s, before[-1].at_s)


def _left_there(history: History, process: Process, from_s: float, due_s: float) -> Iterator[Request]:
    """Streams that ran on the replica, and had got nothing from anywhere else by `due_s`."""
    for request in history.requests:
        if request.n != 1 or not request.streamed or not request.events:
            continue
        before = [attempt for attempt in request.attempts if attempt.at_s < from_s]
        ended_s = request.ended_s if request.ended_s is not None else history.ended_s
        if before and before[-1].replica == process.replica and ended_s > due_s and not _moved(request, from_s, due_s):
            yield request


def _moved(request: Request, from_s: float, due_s: float) -> bool:
    """Whether anything happened to it meanwhile: another attempt, another call of its client's, or something came."""
    begun = any(from_s < attempt.at_s <= due_s for attempt in request.attempts)
    called = any(from_s - CALM_S < sent.at_s <= due_s for sent in request.tries[1:])
    got = request.last_s is not None and from_s + UNDER_WAY_S < request.last_s <= due_s
    return begun or called or got


def _could_move(
    history: History,
    log: FinalLog,
    process: Process,
    request: Request,
    from_s: float,
    due_s: float,
    but: tuple[Fault, ...] = (),
) -> bool:
    """Whether its gateway and another replica were well all the time, and had room."""
    open_then = [
        other
        for other in history.requests
        if other.model == request.model and other.asked_s <= due_s and wanted_until(history, other) > from_s
    ]
    state = log.states[log.at(from_s)]
    mine = state.replicas.get(process.replica)
    gateway = [sent.gateway for sent in request.tries if sent.at_s <= from_s][-1]
    if mine is None or mine.status is not ReplicaStatus.RUNNING:
        return False
    if _befallen(history, from_s, due_s, gateway, "network", "*", but=but):
        return False
    well = sum(
        replica.deployment == request.model
        and replica.status is ReplicaStatus.RUNNING
        and replica.id != process.replica
        and not _befallen(history, from_s, due_s, replica.id, replica.node)
        and _lives(history, replica.pid, from_s, due_s)
        for replica in state.replicas.values()
    )
    few = len(open_then) <= BUSY_MAX and history.room_min >= STREAMS_MIN
    wanted = [(one.asked_s, wanted_until(history, one), one.n) for one in open_then]
    return well > 0 and (few or most_at_once(wanted, from_s, due_s) <= history.room_min * well)


def _befallen(history: History, from_s: float, due_s: float, *names: str, but: tuple[Fault, ...] = ()) -> bool:
    return any(
        fault.kind != LOSES_STREAM
        and fault not in but
        and fault.from_s <= due_s
        and (fault.until_s is None or fault.until_s > from_s - CALM_S)
        and (befalls(fault, *names) or fault.target == "")
        for fault in history.faults
    )


def _lives(history: History, pid: int, from_s: float, due_s: float) -> bool:
    """Whether that process runs, neither told to stop nor new, all the time."""
    for process in history.processes:
        if process.pid == pid:
            ended_s = process.ended_s if process.ended_s is not None else history.ended_s
            return process.began_s < from_s - CALM_S and ended_s > due_s and (process.told_s or due_s) >= due_s
    return False
