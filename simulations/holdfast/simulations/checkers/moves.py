"""Streams leave a replica that stands still, or whose engine lost them or makes nothing, if others could take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast.core.cluster import ReplicaStatus
from holdfast.simulations.checkers.demand import most_at_once, wanted_until
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import ERROR, REPLICA, STREAMS_MIN, Fault, Process, Request

MOVES: Final = "moves"

UNDER_WAY_S: Final = 1.0
"""What a frozen replica had sent still comes for so long (seconds)."""

CALM_S: Final = 5.0
"""A fault that ended less than so long before a freeze, in seconds, may still keep a gateway from what it should do."""

LOSES_STREAM: Final = "engine loses stream"
"""The kind of fault that is no reason for anything but one stream's standing still."""

BARREN: Final = "barren engine"
"""The kind of fault whose engine steps on while nothing comes of it."""

OF_ITSELF: Final = frozenset({"deadline_exceeded", "request_timeout", "request_cancelled", "parent_cancelled"})
"""Errors in which a stream ends wherever it is."""

BUSY_MAX: Final = 4
"""Where more requests for a model are open, its other replicas may have no room."""


class _Stuck(NamedTuple):
    """A stream that stands still on its replica's process since `from_s`, and has to go on elsewhere, or end, by
    `due_s`. `because` says why, and this `fault`, if there is one, is no excuse.
    """

    request: Request
    process: Process
    from_s: float
    due_s: float
    because: str
    fault: tuple[Fault, ...] = ()


def moves(history: History, judged: Judged) -> list[Violation]:
    """A stream whose replica stands still goes on elsewhere, or ends, within `history.move_bound_s`; one that its
    engine lost, within `history.stall_bound_s`; one whose engine makes nothing, within `history.barren_bound_s`.

    That is asked where nothing but standing still befalls anybody who has to do with it, and where another replica of
    the model is well.
    """
    log = final_log(history)
    found = []
    for what, streams in (
        ("streams on frozen replicas", _frozen(history)),
        ("streams that engines lost", _lost(history)),
        ("streams on barren engines", _barren(history)),
    ):
        for stuck in streams:
            stays = _stays(history, stuck)
            if stays is None or not _could_move(history, log, stuck):
                continue
            judged[what] += 1
            if stays:
                message = f"request {stuck.request.id} is still on {stuck.process.replica}, {stuck.because}"
                found.append(Violation(MOVES, stuck.due_s, f"{message} {stuck.from_s:.3f} s"))
    return found


def _frozen(history: History) -> Iterator[_Stuck]:
    """Streams on replicas that stand still for longer than the bound."""
    if not history.move_bound_s:
        return
    for process in history.processes:
        for from_s, until_s in process.frozen if process.role == REPLICA else ():
            due_s = from_s + history.move_bound_s
            if min(until_s or history.ended_s, process.ended_s or history.ended_s, history.ended_s) <= due_s:
                continue
            for request in _of_one_stream(history):
                before = [attempt for attempt in request.attempts if attempt.at_s < from_s]
                if before and before[-1].replica == process.replica and request.events:
                    yield _Stuck(request, process, from_s, due_s, "which stands still since")


def _lost(history: History) -> Iterator[_Stuck]:
    """Streams for which their engine makes no more tokens, and does not say so."""
    if not history.stall_bound_s:
        return
    for request in _of_one_stream(history):
        for from_s, replica in request.stood_still:
            due_s = from_s + history.stall_bound_s
            before = [attempt for attempt in request.attempts if attempt.at_s <= from_s]
            process = next(one for one in history.processes if one.replica == replica)
            well = not _befallen(history, from_s, due_s, replica, process.host)
            if before[-1].replica == replica and well and _lives(history, process.pid, from_s, due_s):
                yield _Stuck(request, process, from_s, due_s, "whose engine lost it at")


def _barren(history: History) -> Iterator[_Stuck]:
    """Streams on engines that make nothing for longer than the bound."""
    for fault in history.faults if history.barren_bound_s else ():
        if fault.kind != BARREN:
            continue
        until_s = fault.until_s if fault.until_s is not None else history.ended_s
        process = next(one for one in history.processes if one.replica == fault.target)
        for request in _of_one_stream(history):
            for from_s in _there_from_s(request, fault.target, fault.from_s, until_s):
                due_s = from_s + history.barren_bound_s
                well = not _befallen(history, from_s, due_s, fault.target, process.host, but=(fault,))
                well = well and _lives(history, process.pid, from_s, due_s)
                if well and min(until_s, history.ended_s) > due_s:
                    yield _Stuck(request, process, from_s, due_s, "whose engine makes nothing since", (fault,))


def _of_one_stream(history: History) -> Iterator[Request]:
    return (request for request in history.requests if request.n == 1 and request.streamed)


def _there_from_s(request: Request, replica: str, from_s: float, until_s: float) -> Iterator[float]:
    """Since when, of this time, attempts were on the replica."""
    left_s = [*(attempt.at_s for attempt in request.attempts[1:]), float("inf")]
    for attempt, next_s in zip(request.attempts, left_s, strict=False):
        if attempt.replica == replica and attempt.at_s < until_s and next_s > from_s:
            yield max(from_s, attempt.at_s)


def _stays(history: History, stuck: _Stuck) -> bool | None:
    """Whether it stays too long. None where it didn't have to move: it was over, or its client called again, or
    something came from where it was.
    """
    request, from_s, due_s = stuck.request, stuck.from_s, stuck.due_s
    ended_s = request.ended_s if request.ended_s is not None else history.ended_s
    called = any(from_s - CALM_S < sent.at_s <= due_s for sent in request.tries[1:])
    if called or ended_s <= from_s:
        return None
    if any(from_s < attempt.at_s <= due_s for attempt in request.attempts):
        return False
    if ended_s <= due_s:
        return False if request.how == ERROR and request.code not in OF_ITSELF else None
    got = request.last_s is not None and from_s + UNDER_WAY_S < request.last_s <= due_s
    return None if got else True


def _could_move(history: History, log: FinalLog, stuck: _Stuck) -> bool:
    """Whether its gateway and another replica were well all the time, and had room."""
    request, process, from_s, due_s = stuck.request, stuck.process, stuck.from_s, stuck.due_s
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
    if _befallen(history, from_s, due_s, gateway, "network", "*", but=stuck.fault):
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
