"""Replicas that are passed over: few at a time, for their time and no longer, and only such as something befell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast.core import events as ev
from holdfast.core.cluster import ReplicaStatus
from holdfast.core.outliers import FIRST_MORE_S
from holdfast.simulations.checkers.demand import most_at_once
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.leniency import Limits, Passing
from holdfast.simulations.records import COMPLETE, REPLICA, Fault, Process, Request
from holdfast.simulations.world.process import EPOCH

EJECTIONS: Final = "ejections"

PART: Final = 10
"""One of so many replicas may be passed over at a time, and one always."""

LOOK_S: Final = 0.25
"""Between two looks at gateways, in seconds: what they saw may have been so for so long."""

TOLD_S: Final = 1.0
"""A gateway tells the log of an ejection within so long, in seconds, and does what is due so late at most."""

LAG_S: Final = 4.0
"""What befell a replica shows at gateways for so long after it is over, in seconds, beside the time after which a
stream stands still: prompts that wait are read one after the other."""

OF_HOSTS: Final = frozenset({"partition", "one-way partition", "delay", "clogging"})
OF_GATEWAYS: Final = frozenset({"freeze", "slow process"})
"""What makes a replica look bad at a gateway though it befalls its host or the gateway. All else must befall itself."""

AT_ONCE: Final = frozenset({"flapping link", "reset connection"})
"""What shows at once, and never again."""

FIRST_TOKENS: Final = "first tokens took"
"""What stands in the reason where it is too slow."""

NETWORK: Final = "network"


class Told(NamedTuple):
    """What the log says: the gateway passes the replica over from `at_s` on, or a moment earlier, and has taken it back
    at `back_s`, if it has.
    """

    at_s: float
    said: ev.ReplicaEjected
    back_s: float


class Spell(NamedTuple):
    """From one look to another a gateway's process passed the replica over; `until_s` None: to the end of either."""

    pid: int
    gateway: str
    deployment: str
    replica: str
    from_s: float
    until_s: float | None


def ejections(history: History, judged: Judged) -> list[Violation]:
    """A gateway passes over a tenth of a deployment's replicas at most, or one, and says so; each for the time that is
    said, and no longer; and none that was well for as long as it was judged by.
    """
    limits = history.limits
    if limits is None or not history.passings:
        return []
    log = final_log(history)
    told = _told(log)
    found = [*_too_many(history, limits), *_slandered(history, limits, log, told)]
    judged["reasons that are told"] += len(told)
    for spell in _spells(history):
        judged["times that a replica was passed over"] += 1
        found += _spell(history, limits, told, spell)
    for looks in _looks(history).values():
        for one in told:
            if one.said.gateway == looks[0].gateway and any(one.said.replica in look.passed for look in looks):
                found += _let_back(history, limits, log, one, looks)
    return found


def _told(log: FinalLog) -> list[Told]:
    events = [record.event for record in log.records]
    said = [((event.time - EPOCH).total_seconds(), event.payload) for event in events]
    back = [(at_s, one.gateway, one.replica) for at_s, one in said if isinstance(one, ev.ReplicaReinstated)]
    return [
        Told(
            at_s,
            one,
            min(
                (back_s for back_s, *who in back if back_s > at_s and who == [one.gateway, one.replica]),
                default=math.inf,
            ),
        )
        for at_s, one in said
        if isinstance(one, ev.ReplicaEjected)
    ]


# --- how many -------------------------------------------------------------------------------------------


def _looks(history: History) -> dict[tuple[int, str], list[Passing]]:
    """What was seen, by the gateway's process and deployment."""
    looks: dict[tuple[int, str], list[Passing]] = {}
    for passing in history.passings:
        looks.setdefault((passing.pid, passing.deployment), []).append(passing)
    return looks


def _too_many(history: History, limits: Limits) -> Iterator[Violation]:
    for looks in _looks(history).values():
        for at, look in enumerate(looks):
            since_s = look.at_s - limits.interval_s - LOOK_S
            there = max(len(one.reached | one.passed) for one in _lately(looks, at, since_s))
            may = max(0, min(max(1, there // PART), there - 1))
            if len(look.passed) > may:
                names = ", ".join(sorted(look.passed))
                message = f"{look.gateway} passes over {names}: {len(look.passed)} of {there} of {look.deployment}"
                yield Violation(EJECTIONS, look.at_s, f"{message}, and may {may}")


def _lately(looks: list[Passing], at: int, since_s: float) -> Iterator[Passing]:
    """This look, and those before it that held after that time."""
    while at >= 0:
        yield looks[at]
        if looks[at].at_s <= since_s:
            return
        at -= 1


# --- for how long ---------------------------------------------------------------------------------------


def _spells(history: History) -> Iterator[Spell]:
    for (pid, deployment), looks in _looks(history).items():
        open_since: dict[str, float] = {}
        for look in looks:
            for replica in sorted(open_since.keys() - look.passed):
                yield Spell(pid, look.gateway, deployment, replica, open_since.pop(replica), look.at_s)
            for replica in sorted(look.passed - open_since.keys()):
                open_since[replica] = look.at_s
        for replica, from_s in sorted(open_since.items()):
            yield Spell(pid, looks[0].gateway, deployment, replica, from_s, None)


def _spell(history: History, limits: Limits, told: list[Told], spell: Spell) -> Iterator[Violation]:
    gateway = next(process for process in history.processes if process.pid == spell.pid)
    over_s = min(gateway.ended_s or history.ended_s, history.ended_s)
    last_s = over_s if spell.until_s is None else spell.until_s
    mine = [
        one
        for one in told
        if (one.said.gateway, one.said.replica) == (spell.gateway, spell.replica)
        and spell.from_s - LOOK_S - TOLD_S <= one.at_s + one.said.seconds
        and one.at_s <= last_s + TOLD_S
    ]
    who = f"{spell.gateway} passes over {spell.replica} from {spell.from_s:.3f} s on"
    if not mine:
        if spell.from_s + TOLD_S < over_s and not _stands_still(gateway, spell.from_s, spell.from_s + TOLD_S):
            yield Violation(EJECTIONS, spell.from_s, f"{who}, and the log does not say so")
        return
    yield from (_lasts(limits, one) for one in mine if not _may_last(limits, one.said.seconds))
    due_s = max(one.at_s + one.said.seconds for one in mine)
    late_s = due_s + limits.interval_s + LOOK_S + TOLD_S
    if last_s > late_s and not _stands_still(gateway, due_s - TOLD_S, late_s):
        yield Violation(EJECTIONS, late_s, f"{who}, until {last_s:.3f} s, and would have to {due_s:.3f} s")


def _may_last(limits: Limits, seconds: float) -> bool:
    """Whether a replica may be passed over for so long."""
    lasts_s = limits.first_s
    while lasts_s < min(seconds, limits.longest_s):
        lasts_s *= 2
    return abs(seconds - min(lasts_s, limits.longest_s)) < 0.001


def _lasts(limits: Limits, one: Told) -> Violation:
    wants = f"{limits.first_s:g} s, or twice that again and again up to {limits.longest_s:g} s"
    return Violation(
        EJECTIONS,
        one.at_s,
        f"{one.said.gateway} passes over {one.said.replica} for {one.said.seconds:g} s, not for {wants}",
    )


def _stands_still(process: Process, from_s: float, until_s: float) -> bool:
    """Whether it stood still for some of this time."""
    return any(begin_s < until_s and (end_s is None or end_s > from_s) for begin_s, end_s in process.frozen)


def _let_back(history: History, limits: Limits, log: FinalLog, one: Told, looks: list[Passing]) -> Iterator[Violation]:
    """It is passed over as long as it is said, while there is another one: where all others are gone it is used, and
    taken back if they are when replicas are compared.
    """
    said, due_s = one.said, one.at_s + one.said.seconds - TOLD_S
    gateway = next(process for process in history.processes if process.pid == looks[0].pid)
    over_s = min(due_s, one.back_s + 3 * LOOK_S, gateway.ended_s or history.ended_s)
    for at, look in enumerate(looks):
        until_s = min(looks[at + 1].at_s if at + 1 < len(looks) else over_s, over_s)
        if said.replica in look.passed or until_s <= max(look.at_s, one.at_s + LOOK_S):
            continue
        since_s = until_s - limits.interval_s - 2 * LOOK_S
        lately = list(_lately(looks, at, since_s))
        others = frozenset.intersection(*(each.reached - each.passed for each in lately)) - {said.replica}
        steady = [other for other in others if not _shaken(history, said.gateway, other, since_s - TOLD_S, until_s)]
        if steady and _is_there(history, log, said.replica, until_s):
            message = f"{said.gateway} does not pass over {said.replica}, and would to {due_s + TOLD_S:.3f} s"
            yield Violation(EJECTIONS, until_s, f"{message}; {', '.join(sorted(steady))} can be used")
            return


def _shaken(history: History, gateway: str, replica: str, from_s: float, until_s: float) -> bool:
    """Whether the gateway may have been without it for some of this time, by what befell it."""
    hosts = _hosts(history, gateway, replica)
    return any(
        fault.from_s <= until_s
        and (fault.until_s is None or fault.until_s >= from_s)
        and _is_seen(fault, gateway, replica, hosts)
        for fault in history.faults
    )


def _is_there(history: History, log: FinalLog, replica: str, at_s: float) -> bool:
    """Whether it runs, also a moment later."""
    known = log.states[log.at(at_s + TOLD_S)].replicas.get(replica)
    process = next((one for one in history.processes if one.role == REPLICA and one.replica == replica), None)
    if known is None or known.status is not ReplicaStatus.RUNNING or process is None:
        return False
    return process.ended_s is None or process.ended_s > at_s + TOLD_S


# --- whom -----------------------------------------------------------------------------------------------


def _slandered(history: History, limits: Limits, log: FinalLog, told: list[Told]) -> Iterator[Violation]:
    for one in told:
        since_s = _sick_until(history, one.said, one.at_s)
        well_s = one.at_s - since_s
        if FIRST_TOKENS in one.said.reason and _crowded(history, limits, one):
            continue
        if well_s > limits.window_s + limits.interval_s + TOLD_S and not _by_row(one.said):
            yield _slander(one, f"and nothing befell it in the {limits.window_s:g} s before")
        elif well_s == math.inf:
            yield _slander(one, "and nothing ever befell it")
        elif well_s > 0 and _by_row(one.said) and (good := _good_one(history, one, since_s)) is not None:
            yield _slander(one, f"and request {good.id} went well there since")


def _crowded(history: History, limits: Limits, one: Told) -> bool:
    """Whether it had more streams at once than it has room for, for sure: first tokens wait then, in any engine."""
    attempts = [
        (attempt.at_s, attempt.last_s or request.ended_s or history.ended_s, 1)
        for request in history.requests
        for attempt in request.attempts
        if attempt.replica == one.said.replica
    ]
    since_s = -math.inf if _by_row(one.said) else one.at_s - limits.window_s - 2 * limits.interval_s
    return most_at_once(attempts, since_s, one.at_s) > history.room_min


def _by_row(said: ev.ReplicaEjected) -> bool:
    """Whether it is judged by its last ones, however long ago these were."""
    return " last " in said.reason


def _slander(one: Told, why: str) -> Violation:
    said = one.said
    return Violation(EJECTIONS, one.at_s, f"{said.gateway} passes over {said.replica} ({said.reason}), {why}")


def _sick_until(history: History, said: ev.ReplicaEjected, at_s: float) -> float:
    """Until when what befell the replica, as the gateway sees it, may have shown there; minus infinity: nothing did."""
    hosts = _hosts(history, said.gateway, said.replica)
    return max(
        (
            at_s if fault.until_s is None else fault.until_s + _lag_s(history, fault)
            for fault in history.faults
            if fault.from_s <= at_s and _is_seen(fault, said.gateway, said.replica, hosts)
        ),
        default=-math.inf,
    )


def _lag_s(history: History, fault: Fault) -> float:
    """For how long after it is over it may show."""
    return TOLD_S if fault.kind in AT_ONCE else history.stall_bound_s + LAG_S


def _hosts(history: History, *names: str) -> set[str]:
    return {process.host for process in history.processes if process.name in names}


def _is_seen(fault: Fault, gateway: str, replica: str, hosts: set[str]) -> bool:
    """Whether the gateway may see of the replica what the fault does."""
    if befalls(fault, replica):
        return True
    if fault.kind in OF_GATEWAYS and befalls(fault, gateway):
        return True
    return fault.kind in OF_HOSTS and befalls(fault, NETWORK, *hosts)


def _good_one(history: History, one: Told, since_s: float) -> Request | None:
    """A request that the replica served well for that gateway, begun after that time and over before it was judged."""
    said = one.said
    for request in history.requests:
        if len(request.tries) != 1 or request.tries[0].gateway != said.gateway or request.how != COMPLETE:
            continue
        if request.n != 1 or len(request.attempts) != 1 or request.attempts[0].replica != said.replica:
            continue
        asked_s, ended_s = request.tries[0].at_s, request.ended_s or history.ended_s
        quick = request.streamed and request.first_s is not None and request.first_s - asked_s < FIRST_MORE_S
        if asked_s > since_s and ended_s < one.at_s - TOLD_S and (quick or "failed" in said.reason):
            return request
    return None
