"""Replicas: none that the log doesn't know, none too many, none stopped or given up carelessly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Final

import msgspec

from holdfast.actors.child import STOP_MARGIN_S
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core import events as ev
from holdfast.core.cluster import LOSS_INTERVAL_S, ClusterState, MemberStatus, ReplicaState, ReplicaStatus
from holdfast.core.drains import leaving, nodes_left
from holdfast.core.reconcile import LOSS_FRACTION_MAX
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.members import ended_leases
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, NODE, REPLICA, Exchange, Process

ORPHANS: Final = "orphans"
PLACEMENTS: Final = "placements"
CAPACITY: Final = "capacity"
LOSSES: Final = "losses"
DRAINS: Final = "drains"
UPDATES: Final = "updates"

SETTLED_S: Final = 5.0
"""What the log and the processes disagree about is settled after so long, in seconds, while nothing breaks."""

ORPHAN_GRACE_S: Final[float] = next(
    field.default for field in msgspec.structs.fields(ReplicaSpecification) if field.name == "orphan_grace_s"
)
"""A replica whose node's process is gone may serve on for so long (seconds), and then drains."""


# --- orphans --------------------------------------------------------------------------------------------


def orphans(history: History, judged: Judged) -> list[Violation]:
    """After settling, what runs is what the log knows: no replica's process that it does not, and none missing.

    A replica that outlived its node's process may serve on for its time of grace.
    """
    if history.settle is None:
        return []
    log = final_log(history)
    core = frozenset(history.settle.core)
    return [*_unknown(history, log, core, judged), *_missing(history, log, core, judged)]


def _unknown(history: History, log: FinalLog, core: frozenset[str], judged: Judged) -> Iterator[Violation]:
    parents = {process.pid: process for process in history.processes if process.role == NODE}
    drain_s = _longest_drain_s(log) + STOP_MARGIN_S + SETTLED_S
    for process in history.processes:
        parent = parents.get(process.parent)
        outside = bool(core) and (parent is None or parent.name not in core)
        if process.role != REPLICA or not process.alive or _stands_still(process) or outside:
            continue
        judged["processes of replicas"] += 1
        unknown_since_s = _unknown_since(log, process)
        if unknown_since_s is None:
            continue
        if parent is not None and parent.ended_s is not None:
            unknown_since_s = max(unknown_since_s, parent.ended_s + ORPHAN_GRACE_S)
        if history.ended_s > unknown_since_s + drain_s:
            message = (
                f"{process.replica} still runs on {process.host} (process {process.pid}), of which the log "
                f"has known nothing since {unknown_since_s:.3f} s"
            )
            yield Violation(ORPHANS, history.ended_s, message)


def _stands_still(process: Process) -> bool:
    return bool(process.frozen) and process.frozen[-1][1] is None


def _unknown_since(log: FinalLog, process: Process) -> float | None:
    """Since when the log does not have this process for a replica that lives; None if it does at the end."""
    if _knows(log.state, process):
        return None
    place = len(log.records)
    while place > 0 and not _knows(log.states[place], process):
        place -= 1
    return max(process.began_s, log.times[place] if place else 0.0)


def _knows(state: ClusterState, process: Process) -> bool:
    known = state.replicas.get(process.replica)
    return known is not None and known.status is not ReplicaStatus.EXITED and known.pid == process.pid


def _missing(history: History, log: FinalLog, core: frozenset[str], judged: Judged) -> Iterator[Violation]:
    processes = {process.pid: process for process in history.processes}
    for replica in log.state.replicas.values():
        if replica.status is ReplicaStatus.EXITED or not replica.pid or (core and replica.node not in core):
            continue
        judged["replicas of the log"] += 1
        process = processes.get(replica.pid)
        ended_s = process.ended_s if process is not None else 0.0
        if ended_s is not None and history.ended_s > ended_s + SETTLED_S:
            message = (
                f"the log has {replica.id} as {replica.status} in process {replica.pid}, which ended at {ended_s:.3f} s"
            )
            yield Violation(ORPHANS, history.ended_s, message)


def _longest_drain_s(log: FinalLog) -> float:
    deployments = [
        deployment.config
        for state in (log.state, log.states[len(log.states) // 2])
        for application in state.applications.values()
        for deployment in application.deployments.values()
    ]
    return max((config.graceful_shutdown_timeout_s for config in deployments), default=5.0)


# --- placements -----------------------------------------------------------------------------------------


def placements(history: History, judged: Judged) -> list[Violation]:
    """A replica's process is started only because a decision that counts placed it on that incarnation of that node,
    and once; no replica is placed twice.
    """
    log = final_log(history)
    placed: dict[str, tuple[float, str, str]] = {}
    found = []
    for place, record in log.effective():
        payload = record.event.payload
        if isinstance(payload, ev.ReplicaPlaced | ev.ReplicaReplaced):
            judged["placements"] += 1
            if payload.replica in placed:
                message = f"sequence {record.sequence}: {payload.replica} is placed a second time"
                found.append(Violation(PLACEMENTS, log.times[place], message))
            placed.setdefault(payload.replica, (log.times[place], payload.node, payload.node_incarnation))
    return [*found, *_started(history, log, placed, judged)]


def _started(
    history: History, log: FinalLog, placed: dict[str, tuple[float, str, str]], judged: Judged
) -> Iterator[Violation]:
    started: dict[str, int] = {}
    for process in history.processes:
        if process.role != REPLICA or not process.replica:
            continue
        judged["processes of replicas"] += 1
        what = f"{process.replica} was started on {process.host} (process {process.pid})"
        first = started.setdefault(process.replica, process.pid)
        if first != process.pid:
            yield Violation(PLACEMENTS, process.began_s, f"{what}, and runs as process {first} already or did")
        at_s, node, incarnation = placed.get(process.replica, (float("inf"), "", ""))
        if at_s > process.began_s:
            yield Violation(PLACEMENTS, process.began_s, f"{what}, where no decision that counts had placed it")
            continue
        starter = log.members.get(process.parent)
        if starter is not None and (starter.name, starter.incarnation) != (node, incarnation):
            message = f"{what} by {starter.name} {starter.incarnation}, and was placed on {node} {incarnation}"
            yield Violation(PLACEMENTS, process.began_s, message)


# --- capacity -------------------------------------------------------------------------------------------


def capacity(history: History, judged: Judged) -> list[Violation]:
    """No node has more replicas than slots, in the log or as processes; no deployment more than it may have.

    That is as many of its current revision as are wanted, and during an update one more to start at a time; those that
    shall leave their node, or are drained, or are unhealthy, are replaced beside that.
    """
    log = final_log(history)
    return [*_by_log(log, judged), *_by_processes(history, log, judged)]


def _by_log(log: FinalLog, judged: Judged) -> Iterator[Violation]:
    recovered = _recoveries(log)
    for place, record in log.effective():
        payload, state = record.event.payload, log.states[place + 1]
        if not isinstance(payload, ev.ReplicaPlaced | ev.ReplicaReplaced):
            continue
        judged["placements"] += 1
        node = state.nodes.get(payload.node)
        held = [replica for replica in state.replicas.values() if _holds_slot(replica) and replica.node == payload.node]
        if node is not None and len(held) > node.slots:
            message = f"sequence {record.sequence}: {node.id} has {len(held)} replicas in {node.slots} slots"
            yield Violation(CAPACITY, log.times[place], message)
        at_s = log.times[place]
        well = {replica for replica, well_s in recovered if at_s - UNREAD_S < well_s <= at_s}
        if (wrong := _too_many(state, payload.application, payload.deployment, well)) is not None:
            yield Violation(CAPACITY, log.times[place], f"sequence {record.sequence}: {wrong}")


def _holds_slot(replica: ReplicaState) -> bool:
    return replica.status is not ReplicaStatus.EXITED


def _recoveries(log: FinalLog) -> list[tuple[str, float]]:
    """The replicas that were unhealthy and got well, and when: the leader may not have read it by its next decision.

    Whose start takes too long is unhealthy as well, and may yet get ready.
    """
    found = []
    for place, record in enumerate(log.records):
        payload = record.event.payload
        if not isinstance(payload, ev.ReplicaHealthy | ev.ReplicaReady):
            continue
        before = log.states[place].replicas.get(payload.replica)
        if before is None or not before.unhealthy:
            continue
        if isinstance(payload, ev.ReplicaHealthy) or before.status is ReplicaStatus.STARTING:
            found.append((before.id, log.times[place]))
    return found


def _too_many(state: ClusterState, application: str, name: str, recovered: Collection[str]) -> str | None:
    goal = state.applications.get(application)
    deployment = goal.deployments.get(name) if goal is not None else None
    if deployment is None:
        return None
    nodes = nodes_left(state)
    everybody = [replica for replica in state.replicas_of(application, name) if replica.live]
    live = [
        replica
        for replica in everybody
        if leaving(replica, nodes) is None and not replica.unhealthy and replica.id not in recovered
    ]
    current = [replica for replica in live if replica.revision == deployment.revision]
    if len(current) > deployment.config.num_replicas:
        return f"{name} has {len(current)} replicas, and {deployment.config.num_replicas} are wanted"
    starting = sum(replica.status is ReplicaStatus.STARTING for replica in current)
    if len(live) > len(current) and starting > max(1, len(everybody) - len(live)):
        return f"{name} is being updated, and {starting} new replicas start at once"
    return None


def _by_processes(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    """At each start, how many replicas of the same node process run."""
    by_parent: dict[int, list[Process]] = defaultdict(list)
    for process in history.processes:
        if process.role == REPLICA and process.parent in log.members:
            by_parent[process.parent].append(process)
    for parent, children in by_parent.items():
        node = log.members[parent]
        judged["processes of replicas"] += len(children)
        for child in children:
            at_s = child.began_s
            running = sum(
                other.began_s <= at_s and (other.ended_s is None or other.ended_s > at_s) for other in children
            )
            if running > node.slots:
                message = f"{node.name} runs {running} replicas in {node.slots} slots"
                yield Violation(CAPACITY, at_s, message)


# --- losses ---------------------------------------------------------------------------------------------


def losses(history: History, judged: Judged) -> list[Violation]:
    """No more of the replicas are given up on lease evidence in one interval than the limit, but one node's always.

    Intervals are counted by the leader's clock, as it does; nodes whose process was seen to end are not limited.
    """
    log = final_log(history)
    found = []
    since: datetime | None = None
    given_up = 0
    given_up_s: list[tuple[float, str]] = []
    for place, record in log.effective():
        payload, state = record.event.payload, log.states[place]
        if not isinstance(payload, ev.NodeLost) or not _takes_part(state, payload):
            continue
        now = record.event.time
        if since is None or not 0 <= (now - since).total_seconds() < LOSS_INTERVAL_S:
            since, given_up = now, 0
        held = Counter(replica.node for replica in state.replicas.values() if _holds_slot(replica))
        # One more than the limit: a replica may have ended on another node between the plan and the decision.
        budget = LOSS_FRACTION_MAX * (held.total() + given_up) + 1
        if given_up and held[payload.node] and given_up + held[payload.node] > budget and "lease" in payload.reason:
            message = (
                f"sequence {record.sequence}: {payload.node} is given up for its lease with {held[payload.node]} "
                f"replicas, {given_up} within {LOSS_INTERVAL_S:g} s before it"
            )
            found.append(Violation(LOSSES, log.times[place], message))
        lost = sum(replica.live and replica.node == payload.node for replica in state.replicas.values())
        given_up += lost
        if lost:
            given_up_s.append((log.times[place], payload.node))
        if not given_up:
            since = None
    judged["nodes without a lease soon after others"] += sum(_soon_after(history, log, given_up_s))
    return found


def _soon_after(history: History, log: FinalLog, given_up_s: list[tuple[float, str]]) -> Iterator[bool]:
    """Of each lease of a node that ended, whether others had been given up by then, and it had replicas to be lost."""
    for event, process in ended_leases(history, log):
        others = [0 <= event.at_s - at_s < LOSS_INTERVAL_S for at_s, node in given_up_s if node != process.name]
        replicas = log.states[log.at(event.at_s)].replicas.values()
        yield any(others) and any(_holds_slot(replica) and replica.node == process.name for replica in replicas)


def _takes_part(state: ClusterState, decision: ev.NodeLost) -> bool:
    node = state.nodes.get(decision.node)
    return (
        node is not None
        and node.incarnation == decision.node_incarnation
        and node.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)
    )


# --- updates --------------------------------------------------------------------------------------------

UNREAD_S: Final = 15.0
"""What happened within so long before a decision, in seconds, its leader may not have read: a reader whose connection
is silent notices so late."""

_ENDS: Final = (ev.ReplicaExited, ev.NodeJoined, ev.NodeLeft, ev.NodeLost)


def updates(history: History, judged: Judged) -> list[Violation]:
    """An update stops an old replica only while at least one fewer than are wanted would remain: old ones, and new ones
    that run.

    One fewer always passes, since a place is made in this way where no node has room; that there was none is not looked
    at. Those that ended of themselves within `UNREAD_S` before may be missing as well.
    """
    log = final_log(history)
    found = []
    ended: list[tuple[float, ReplicaState]] = []
    for place, record in enumerate(log.records):
        payload, state, at_s = record.event.payload, log.states[place], log.times[place]
        if isinstance(payload, _ENDS):
            ended += [(at_s, replica) for replica in _ended_by(state, log.states[place + 1])]
        elif isinstance(payload, ev.ReplicaStopOrdered):
            left, wanted = _left_after(state, payload.replica)
            judged["old replicas that are stopped"] += wanted > 0
            if left >= wanted - 1:
                continue
            name = state.replicas[payload.replica].deployment
            unread = sum(replica.deployment == name and when_s > at_s - UNREAD_S for when_s, replica in ended)
            if left + unread < wanted - 1:
                message = f"{payload.replica} is stopped for a newer one, and {left} of {wanted} remain"
                found.append(Violation(UPDATES, at_s, f"sequence {record.sequence}: {message}"))
    return found


def _ended_by(before: ClusterState, after: ClusterState) -> list[ReplicaState]:
    """The replicas that were to go on, and did not."""
    return [
        replica
        for name, replica in before.replicas.items()
        if replica.live and ((now := after.replicas.get(name)) is None or not now.live)
    ]


def _left_after(state: ClusterState, replica_id: str) -> tuple[int, int]:
    """How many replicas remain of those that serve or soon will, and how many are wanted; zeros where it is current."""
    replica = state.replicas.get(replica_id)
    application = state.applications.get(replica.application) if replica is not None else None
    deployment = application.deployments.get(replica.deployment) if application and replica else None
    if replica is None or deployment is None or not replica.live or replica.revision == deployment.revision:
        return 0, 0
    others = state.replicas_of(replica.application, replica.deployment)
    left = sum(
        other.live and (other.revision != deployment.revision or other.status is ReplicaStatus.RUNNING)
        for other in others
    )
    return left - 1, deployment.config.num_replicas


# --- drains ---------------------------------------------------------------------------------------------


ROUNDING_S = 1e-6
"""Each process's clock began at another time, and rounds otherwise."""


def drains(history: History, judged: Judged) -> list[Violation]:
    """A replica that is told to stop does not end in order while it has streams and time left to finish them; nor does
    a gateway send clients away.
    """
    found = []
    for process in history.processes:
        if process.told_s is None or process.ended_s is None or process.status != 0:
            continue
        judged["replicas told to stop with streams"] += _had_streams(history, process)
        if not process.streams_left:
            continue
        took_s = process.ended_s - process.told_s
        if took_s < process.grace_s - ROUNDING_S:
            ended = (
                f"{process.name} ended with {process.streams_left} streams, {took_s:.3f} s after it was told to stop"
            )
            found.append(Violation(DRAINS, process.ended_s, f"{ended}, and it had {process.grace_s:g} s"))
    return [*found, *_sent_away(history, judged)]


def _had_streams(history: History, process: Process) -> bool:
    """Whether its engine had a stream to go on with when it was told to stop."""
    told_s = process.told_s or 0.0
    return bool(process.streams_left) or any(
        attempt.replica == process.replica and attempt.at_s < told_s < attempt.last_s
        for request in history.requests
        for attempt in request.attempts
    )


def _drained_meanwhile(log: FinalLog, name: str, exchange: Exchange) -> bool:
    """Whether the log drained the gateway while the exchange went on, and the time for that was over before its client
    was told; operators of a simulation always name one.

    The drain may have been lifted by then: a client that is turned away reads that behind all that it had not read yet.
    """
    ordered_s: dict[str, float] = {}
    for place, when_s in enumerate(log.times):
        gateway = log.states[place + 1].gateways.get(name)
        drain = gateway.drain if gateway is not None else None
        if drain is None:
            continue
        grace_s = 0.0 if drain.mode == "migrate" else drain.deadline_s or 0.0
        over_s = ordered_s.setdefault(drain.event, when_s) + grace_s - ROUNDING_S
        until_s = log.times[place + 1] if place + 1 < len(log.times) else float("inf")
        if max(over_s, when_s, exchange.began_s) <= min(until_s, exchange.sent_away_s or 0.0):
            return True
    return False


def _sent_away(history: History, judged: Judged) -> Iterator[Violation]:
    log = final_log(history)
    gateways = {process.pid: process for process in history.processes if process.role == GATEWAY}
    for exchange in history.exchanges:
        if exchange.sent_away_s is None:
            continue
        gateway, at_s = gateways[exchange.pid], exchange.sent_away_s
        if _drained_meanwhile(log, gateway.name, exchange):
            continue
        judged["clients sent away"] += 1
        if gateway.told_s is None or at_s - gateway.told_s < gateway.grace_s - ROUNDING_S:
            told = "was not told to stop" if gateway.told_s is None else f"was told to stop at {gateway.told_s:.3f} s"
            message = f"{gateway.name} sends a client away, and {told}; requests have {gateway.grace_s:g} s to end"
            yield Violation(DRAINS, at_s, message)
