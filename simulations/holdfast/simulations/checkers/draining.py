"""Planned stops: who is taken out of use is replaced first, what was asked of a gateway is done, and a drain ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.actors.node import FLUSH_TIMEOUT_S
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, Drain, MemberStatus, ReplicaState, ReplicaStatus
from holdfast.core.drains import may_be_relieved
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, NODE, REPLICA, Process

ROUTABLE: Final = "routable"
TAKEN_OUT: Final = "taken_out"

UNREAD_S: Final = 15.0
"""What happened within so long before a decision, in seconds, its leader may not have read."""

CALM_S: Final = 10.0
"""So long after a fault is over it no longer explains anything, in seconds."""

OBEYED_S: Final = 3.0
"""A gateway has done as a drain says so long after that drain's deadline, in seconds, where nothing befalls anybody."""

LAST_WORD_S: Final = 1.0
"""A request's last event may be on its way so long after its streams have ended, in seconds."""


# --- routable -------------------------------------------------------------------------------------------


def routable(history: History, judged: Judged) -> list[Violation]:
    """No planned stop takes the last replica of a deployment that runs: not a decision that replaces, drains or scales,
    nor a node that is told to stop while others live.
    """
    log = final_log(history)
    return [*_by_decisions(log, judged), *_by_nodes(history, log, judged)]


def _by_decisions(log: FinalLog, judged: Judged) -> Iterator[Violation]:
    ended: list[tuple[float, str]] = []
    ready: dict[str, float] = {}
    for place, record in enumerate(log.records):
        payload, before, after, at_s = record.event.payload, log.states[place], log.states[place + 1], log.times[place]
        if isinstance(payload, ev.ReplicaReady):
            ready[payload.replica] = at_s
        if not isinstance(payload, ev.ReplicaStopOrdered):
            ended += [(at_s, deployment) for deployment in _lost(before, after)]
            continue
        replica = before.replicas.get(payload.replica)
        if replica is None or after.ignored > before.ignored or not _is_planned(before, replica, payload):
            continue
        unread = any(name == replica.deployment and when_s > at_s - UNREAD_S for when_s, name in ended)
        # One that got ready just now was one of many that start, for all that the leader had read.
        unread = unread or ready.get(replica.id, 0.0) > at_s - UNREAD_S
        if unread:
            continue
        judged["planned stops"] += 1
        if not _others_run(before, replica):
            message = f"{replica.id} was the last replica of {replica.deployment} that ran, and is told to stop"
            yield Violation(ROUTABLE, at_s, f"sequence {record.sequence}: {message}: {payload.reason}")


def _lost(before: ClusterState, after: ClusterState) -> Iterator[str]:
    """The deployments that lose a replica which ran, without a decision to stop it."""
    for name, replica in before.replicas.items():
        now = after.replicas.get(name)
        if replica.status is ReplicaStatus.RUNNING and (now is None or now.status is not ReplicaStatus.RUNNING):
            yield replica.deployment


def _is_planned(state: ClusterState, replica: ReplicaState, order: ev.ReplicaStopOrdered) -> bool:
    """Whether somebody would miss it: it serves, its deployment is wanted, and nobody set a time for its end."""
    application = state.applications.get(replica.application)
    deployment = application.deployments.get(replica.deployment) if application is not None else None
    wanted = deployment is not None and deployment.config.num_replicas > 0
    timed = order.deadline_s == 0.0
    return replica.status is ReplicaStatus.RUNNING and wanted and not replica.unhealthy and not timed


def _others_run(state: ClusterState, replica: ReplicaState) -> bool:
    return any(
        other.status is ReplicaStatus.RUNNING and other.id != replica.id
        for other in state.replicas_of(replica.application, replica.deployment)
    )


def _by_nodes(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    """Nodes that stop what nobody has replaced yet, though others may."""
    nodes = {process.pid: process for process in history.processes if process.role == NODE}
    for process in history.processes:
        node = nodes.get(process.parent)
        if process.role != REPLICA or process.told_s is None or node is None or node.told_s is None:
            continue
        # What it could not tell the log for so long it need not wait for.
        state = log.states[log.at(process.told_s - FLUSH_TIMEOUT_S)]
        replica = state.replicas.get(process.replica)
        early = node.told_s <= process.told_s < node.told_s + history.node_waits_s
        if not early or replica is None or replica.status is not ReplicaStatus.RUNNING:
            continue
        ordered = log.states[log.at(process.told_s)].replicas.get(process.replica)
        still_runs = ordered is not None and ordered.status is ReplicaStatus.RUNNING
        relief = may_be_relieved(log.states[log.at(process.told_s)], replica.node)
        if not relief or not _calm(history, process.told_s):
            continue
        judged["replicas that nodes stop"] += 1
        if still_runs and not _others_run(state, replica):
            message = f"{node.name} stops {replica.id}, the last of {replica.deployment} that ran, and waits for nobody"
            yield Violation(ROUTABLE, process.told_s, message)


def _calm(history: History, at_s: float) -> bool:
    """Whether no fault explains anything that happens at that time."""
    return all(
        fault.from_s > at_s or (fault.until_s is not None and fault.until_s + CALM_S < at_s) for fault in history.faults
    )


# --- taken out ------------------------------------------------------------------------------------------


def taken_out(history: History, judged: Judged) -> list[Violation]:
    """A drained gateway says so in time, no drain outlives the decision that lifts it, and a drained node is given
    no replicas.
    """
    log = final_log(history)
    return [
        *_obeyed(history, log, judged),
        *_too_early(history, log, judged),
        *_lifted(log, judged),
        *_given(log, judged),
    ]


def _obeyed(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    for place, record in log.effective():
        order = record.event.payload
        if not isinstance(order, ev.DrainOrdered) or order.kind != "gateway":
            continue
        due_s = log.times[place] + (order.deadline_s or 0.0) + OBEYED_S
        if due_s > history.ended_s or not all(_calm(history, at_s) for at_s in (log.times[place], due_s)):
            continue
        gateway = log.states[log.at(due_s)].gateways.get(order.name)
        process = _process(history, log, order.name, due_s)
        if gateway is None or process is None or gateway.status is not MemberStatus.ALIVE:
            continue
        if gateway.drain is None or gateway.drain.event != record.event.id:
            continue
        judged["drained gateways"] += 1
        if not gateway.drained:
            message = f"{order.name} was drained by sequence {record.sequence}, and has not said that it is"
            yield Violation(TAKEN_OUT, due_s, message)


def _too_early(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    """Gateways that call themselves drained while requests go on there, and the time for these is not over."""
    orders = {record.event.id: (place, record.event.payload) for place, record in log.effective()}
    for place, record in enumerate(log.records):
        said = record.event.payload
        if not isinstance(said, ev.GatewayDrained) or record.event.cause not in orders:
            continue
        ordered, order = orders[record.event.cause]
        if not isinstance(order, ev.DrainOrdered) or order.mode == "migrate":
            continue
        judged["gateways that call themselves drained"] += 1
        at_s, over_s = log.times[place], log.times[ordered] + (order.deadline_s or 0.0)
        for exchange in history.exchanges:
            mine = log.members.get(exchange.pid)
            here = mine is not None and (mine.name, mine.incarnation) == (said.gateway, record.event.incarnation)
            ends_s = history.ended_s if exchange.ended_s is None else exchange.ended_s
            if here and exchange.began_s < log.times[ordered] and at_s < over_s and ends_s > at_s + LAST_WORD_S:
                message = f"{said.gateway} calls itself drained, and has a request until {ends_s:.3f} s"
                yield Violation(TAKEN_OUT, at_s, f"sequence {record.sequence}: {message}")


def _process(history: History, log: FinalLog, name: str, at_s: float) -> Process | None:
    """The gateway's process that has run for a while by then, and still does."""
    for process in history.processes:
        mine = log.member_of(process)
        ends_s = float("inf") if process.ended_s is None else process.ended_s
        is_it = process.role == GATEWAY and mine is not None and mine.name == name and process.told_s is None
        if is_it and process.began_s + OBEYED_S < at_s < ends_s:
            return process
    return None


def _lifted(log: FinalLog, judged: Judged) -> Iterator[Violation]:
    last: dict[tuple[str, str], ev.DrainOrdered | ev.DrainLifted] = {}
    for _place, record in log.effective():
        payload = record.event.payload
        if isinstance(payload, ev.DrainOrdered | ev.DrainLifted):
            last[payload.kind, payload.name] = payload
    for (kind, name), decision in last.items():
        if not isinstance(decision, ev.DrainLifted):
            continue
        judged["drains that were lifted"] += 1
        if _drain(log.state, kind, name) is not None:
            at_s = log.times[-1] if log.times else 0.0
            yield Violation(TAKEN_OUT, at_s, f"{kind} {name} is still drained, and that was lifted")


def _drain(state: ClusterState, kind: str, name: str) -> Drain | None:
    if kind == "node":
        return state.nodes[name].drain if name in state.nodes else None
    if kind == "gateway":
        return state.gateways[name].drain if name in state.gateways else None
    return state.replicas[name].drain if name in state.replicas else None


def _given(log: FinalLog, judged: Judged) -> Iterator[Violation]:
    for place, record in log.effective():
        payload = record.event.payload
        if not isinstance(payload, ev.ReplicaPlaced | ev.ReplicaReplaced):
            continue
        nodes = log.states[place].nodes
        judged["replicas placed beside drained nodes"] += any(one.drain is not None for one in nodes.values())
        node = nodes.get(payload.node)
        drain = node.drain if node is not None else None
        # Decisions of one round follow from one state: the drain may be the one before it.
        if drain is not None and drain.event not in {one.event.id for one in log.records[max(0, place - 100) : place]}:
            message = f"sequence {record.sequence}: {payload.replica} is placed on {payload.node}, which is drained"
            yield Violation(TAKEN_OUT, log.times[place], message)
