"""The health of replicas: only what is sick is called so, no more than a part is taken out for it, and all of it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from holdfast.actors.replica_watch import START
from holdfast.core import events as ev
from holdfast.core.barren import NO_TOKEN
from holdfast.core.cluster import ClusterState, ReplicaState, ReplicaStatus
from holdfast.core.events import Record
from holdfast.core.reconcile import UNHEALTHY_FRACTION_MAX
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.health import befalls
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.starts import CLOCKS
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import REPLICA, Process
from holdfast.simulations.world.process import EPOCH

SICKNESS: Final = "sickness"

UNHEALTHY: Final = "it is unhealthy"
"""How the reason begins for which unhealthy replicas are told to stop."""

SICKENING: Final = frozenset(
    {
        "freeze",
        "slow process",
        "engine hangs",
        "slow engine",
        "barren engine",
        "failing health check",
        "wrong-length answer",
        "engine out of memory",
    }
)
"""What befalls a replica itself. That its node stood still, or was cut off, makes no replica sick."""

LOSES_STREAM: Final = "engine loses stream"
LOST_EXPLAINS_S: Final = 60.0
"""It explains that a replica makes no token for so long after it, in seconds: the stream that is lost may be all the
work that it has, until its request's time is over."""

STARTLING: Final = SICKENING | {LOSES_STREAM}
"""What keeps a replica from getting ready, whenever that was: the stream that is lost may be its warm-up."""

EXPLAINS_S: Final = 8.0
"""So long after a fault is over it explains that a replica was found sick, in seconds: canaries wait for their answers,
and a node that stood still says it late."""


TELLS_NEXT_S: Final = 0.1
"""A node that has something more to tell the log does so within so long (seconds)."""


def sickness(history: History, judged: Judged) -> list[Violation]:
    """A replica is called unhealthy only if something befell it; unhealthy ones are taken out some at a time; and one
    that stands still for good is taken out, where its node is well.
    """
    log = final_log(history)
    return [*_slandered(history, log, judged), *_too_many_at_once(log, judged), *_overlooked(history, log, judged)]


def _slandered(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    for place, record in enumerate(log.records):
        payload = record.event.payload
        if not isinstance(payload, ev.ReplicaUnhealthy):
            continue
        judged["replicas called unhealthy"] += 1
        at_s = _said_s(history, record, log.times[place], payload)
        found_s = at_s - _waited_s(log, place, at_s)
        explained = any(
            befalls(fault, payload.replica)
            and fault.from_s <= at_s
            and (fault.until_s is None or found_s <= fault.until_s + _explains_s(fault.kind, payload.kind))
            for fault in history.faults
        )
        if not explained:
            message = (
                f"{payload.replica} is called unhealthy ({payload.kind}: {payload.message}), and nothing befell it"
            )
            yield Violation(SICKNESS, at_s, f"sequence {record.sequence}: {message}")


def _explains_s(fault: str, kind: str) -> float:
    """For how long after it is over such a fault explains that a replica is called sick so; negative: it does not."""
    if kind == START and fault in STARTLING:
        return math.inf
    if kind == NO_TOKEN and fault == LOSES_STREAM:
        return LOST_EXPLAINS_S
    return EXPLAINS_S if fault in SICKENING else -math.inf


def _said_s(history: History, record: Record, appended_s: float, said: ev.ReplicaUnhealthy) -> float:
    """When the node said it: it waits with that until the log has a leader. Where its clock was wrong, when it was
    appended, or the replica's process ended: of one that is gone nobody says so.
    """
    hosts = {process.host for process in history.processes if process.name == said.node}
    if any(fault.kind in CLOCKS and befalls(fault, *hosts) for fault in history.faults):
        ends = [process.ended_s for process in history.processes if process.replica == said.replica]
        return min([appended_s, *(end_s for end_s in ends if end_s is not None)])
    return (record.event.time - EPOCH).total_seconds()


def _waited_s(log: FinalLog, place: int, at_s: float) -> float:
    """How long it may have waited at its node until then, when it was stamped: nodes tell the log one thing after the
    other, and what comes next is stamped when the one before it has come to its end.
    """
    record = log.records[place]
    for before in range(place - 1, -1, -1):
        if log.records[before].subject == record.subject:
            if log.times[before] < at_s - TELLS_NEXT_S:
                return 0.0
            waited_s = max(0.0, (record.event.time - log.records[before].event.time).total_seconds())
            return waited_s + _waited_s(log, before, at_s - waited_s)
    return 0.0


def _too_many_at_once(log: FinalLog, judged: Judged) -> Iterator[Violation]:
    for place, record in log.effective():
        payload, state = record.event.payload, log.states[place + 1]
        if not isinstance(payload, ev.ReplicaStopOrdered) or not payload.reason.startswith(UNHEALTHY):
            continue
        replica = state.replicas.get(payload.replica)
        if replica is None:
            continue
        judged["replicas taken out for it"] += 1
        going, wanted = _going(state, replica)
        if going > max(1, int(wanted * UNHEALTHY_FRACTION_MAX)):
            message = f"{going} of {wanted} replicas of {replica.deployment} are taken out for their health at once"
            yield Violation(SICKNESS, log.times[place], f"sequence {record.sequence}: {message}")


def _going(state: ClusterState, replica: ReplicaState) -> tuple[int, int]:
    """How many of its deployment stop for their health, and how many are wanted."""
    application = state.applications.get(replica.application)
    deployment = application.deployments.get(replica.deployment) if application is not None else None
    going = sum(
        other.status is ReplicaStatus.STOPPING and other.message.startswith(UNHEALTHY)
        for other in state.replicas_of(replica.application, replica.deployment)
    )
    return going, deployment.config.num_replicas if deployment is not None else going


def _overlooked(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    settle = history.settle
    if settle is None:
        return
    parents = {process.pid: process for process in history.processes}
    at_s = settle.began_s + settle.bound_s
    for process in history.processes:
        node = parents.get(process.parent)
        if process.role != REPLICA or not _for_good(history, process) or node is None or not _is_well(history, node):
            continue
        known = log.state.replicas.get(process.replica)
        judged["replicas that stand still for good"] += 1
        if process.alive and known is not None and known.live:
            message = f"{process.replica} stands still for good, and {node.name} has not noticed"
            yield Violation(SICKNESS, at_s, message)


def _for_good(history: History, process: Process) -> bool:
    """Whether it stands still at the end, or stood still when it was ended, and nobody would have thawed it."""
    if not process.frozen or process.frozen[-1][1] is not None:
        return False
    return process.alive or _has_lasting(history, process.replica)


def _is_well(history: History, node: Process) -> bool:
    """Whether the node runs, and nothing lasting befalls it or its host."""
    return node.alive and not _has_lasting(history, node.name, node.host)


def _has_lasting(history: History, *names: str) -> bool:
    return any(fault.until_s is None and befalls(fault, *names) for fault in history.faults)
