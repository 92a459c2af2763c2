"""Facts are so: what nodes and gateways tell the log of processes, held against the processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Final

from holdfast.actors.child import STOP_MARGIN_S
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, MemberStatus, ReplicaStatus
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, REPLICA, Process

FACTS: Final = "facts"

ENDS_S: Final = 1.0
"""A node kills who does not stop so late at most, in seconds."""

TRUSTED_S: Final = 6.0
"""A gateway that has reached a replica for so long, while nothing broke, told the log that it trusts it (seconds)."""

TOLD_TO_STOP: Final = "replica told to stop"
"""The kind of fault by which somebody else than its node tells a replica to stop: the node's time begins later."""


def facts(history: History, judged: Judged) -> list[Violation]:
    """A replica's process that the log is told of is there, or has ended in the way that is told; it is called expected
    only where somebody had told it to stop; and its slot is not free before it has ended. Where it does not stop in
    time its node kills it, and nobody who is well needs that. Who reaches a replica again does not go on suspecting it.
    """
    log = final_log(history)
    processes = {process.pid: process for process in history.processes}
    found = []
    for place, record in enumerate(log.records):
        judged["starts and ends that are told"] += isinstance(
            record.event.payload, ev.ReplicaStarted | ev.ReplicaExited
        )
        told = [
            *_told(processes, record.event.payload, log.states[place], log.times[place]),
            *_freed(processes, record.event.payload, log.states[place], log.states[place + 1], log.times[place]),
        ]
        found += [Violation(FACTS, log.times[place], f"sequence {record.sequence}: {text}") for text in told]
    return [*found, *_linger(history, processes, judged), *_suspected(history, log, judged)]


def _told(processes: dict[int, Process], payload: ev.Payload, before: ClusterState, at_s: float) -> Iterator[str]:
    if not isinstance(payload, ev.ReplicaStarted | ev.ReplicaExited) or not payload.pid:
        return
    process = processes.get(payload.pid)
    if process is None or process.replica != payload.replica:
        yield f"{payload.replica} is said to be process {payload.pid}, which it is not"
        return
    if isinstance(payload, ev.ReplicaStarted):
        return
    if process.ended_s is None or process.ended_s > at_s or process.status is None:
        yield f"{payload.replica} is said to have ended, and its process {process.pid} had not"
        return
    if _how(process.status) != (payload.exit_code, payload.signal):
        yield f"{payload.replica} ended with status {process.status}, and it is told otherwise"
    known, parent = before.replicas.get(payload.replica), processes.get(process.parent)
    ordered = known is not None and not known.live
    leaves = parent is not None and parent.told_s is not None
    if payload.expected and process.told_s is None and not ordered and not leaves:
        yield f"the end of {payload.replica} is called expected, and nobody had told it to stop"


def _how(status: int) -> tuple[int | None, str | None]:
    return (status, None) if status >= 0 else (None, signal.Signals(-status).name)


_ABOUT_NODES: Final = (ev.NodeJoined, ev.NodeLeft)
"""Facts by which all replicas of a node are over, whether or not they have ended."""


def _freed(
    processes: dict[int, Process], payload: ev.Payload, before: ClusterState, after: ClusterState, at_s: float
) -> Iterator[str]:
    """Slots that a fact frees while the replica's process runs."""
    if before.replicas is after.replicas or not isinstance(payload, ev.Fact) or isinstance(payload, _ABOUT_NODES):
        return
    for name, replica in before.replicas.items():
        now = after.replicas.get(name)
        held = now is not None and now.status is not ReplicaStatus.EXITED
        process = processes.get(replica.pid)
        runs = process is not None and (process.ended_s is None or process.ended_s > at_s)
        if replica.status is not ReplicaStatus.EXITED and not held and runs:
            yield f"the slot of {name} is free, and its process {replica.pid} runs"


def _linger(history: History, processes: dict[int, Process], judged: Judged) -> Iterator[Violation]:
    for process in history.processes:
        parent = processes.get(process.parent)
        if process.role != REPLICA or process.told_s is None or parent is None:
            continue
        killed_s = process.told_s + process.grace_s + STOP_MARGIN_S
        ends_s = history.ended_s if process.ended_s is None else process.ended_s
        until_s = history.ended_s if parent.ended_s is None else parent.ended_s
        judged["replicas told to stop"] += min(history.ended_s, until_s) > killed_s + ENDS_S
        what = f"{parent.name} told {process.replica} to stop at {process.told_s:.3f} s, and it"
        if min(ends_s, until_s) > killed_s + ENDS_S:
            if not _befell(history, process.replica, (parent.name, parent.host), process.told_s, killed_s + ENDS_S):
                yield Violation(FACTS, killed_s + ENDS_S, f"{what} runs on")
        elif (
            process.status == -signal.SIGKILL
            and killed_s - ENDS_S <= ends_s < until_s
            and not _befell(history, process.replica, (process.replica, process.host), 0.0, ends_s)
        ):
            yield Violation(FACTS, ends_s, f"{what} had to be killed, though nothing befell it")


def _befell(history: History, replica: str, names: tuple[str, ...], from_s: float, until_s: float) -> bool:
    """Whether somebody else had told the replica to stop, or anything befell these meanwhile."""
    return any(
        (fault.kind == TOLD_TO_STOP and befalls(fault, replica))
        or (befalls(fault, *names) and (fault.until_s is None or fault.until_s >= from_s))
        for fault in history.faults
        if fault.from_s <= until_s
    )


def _suspected(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    settle = history.settle
    if settle is None or settle.core or settle.began_s + settle.bound_s > history.ended_s:
        return
    for gateway in log.state.gateways.values():
        lives = any(one.role == GATEWAY and one.name == gateway.id and one.alive for one in history.processes)
        looks = [one for one in history.reaches if one.gateway == gateway.id]
        late = [one for one in looks if one.at_s >= history.ended_s - TRUSTED_S]
        if not lives or gateway.status is not MemberStatus.ALIVE or not late:
            continue
        judged["gateways at the end"] += 1
        for replica in log.state.replicas.values():
            if gateway.id in replica.suspected_by and all(replica.id in look.replicas for look in late):
                message = f"{gateway.id} reaches {replica.id}, and the log has that it suspects it"
                yield Violation(FACTS, history.ended_s, message)
