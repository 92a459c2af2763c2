"""The run as a whole: it gets where it should, stays in its bounds, and nothing goes wrong unnoticed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Final

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, DeploymentState, ReplicaState, ReplicaStatus
from holdfast.simulations.checkers.folding import FinalLog, Member, final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.service import served
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import GATEWAY, NODE, POISONED, REPLICA, Fault, Process, Settle

BOUNDS: Final = "bounds"
LIVENESS: Final = "liveness"
QUIET: Final = "quiet"

END_REPLICAS: Final = frozenset(
    {
        *("engine hangs", "engine out of memory", "wrong-length answer", "device error"),
        *("engine loses stream", "barren engine", POISONED, "replica told to stop"),
    }
)
"""Faults that take the process of the replica with them which they befall: what breaks its engine, or a second signal
to stop, at which it ends at once."""

LAUNCH_FAILURE: Final = "launch failure"
TARGETS_MAX: Final = 1_000
"""Targets of faults whose parts are kept: those of a run are asked for again and again."""

EXPLAINS_S: Final = 5.0
"""It explains that a process ends for so long after it is over, in seconds: an engine takes its time to load."""


# --- bounds ---------------------------------------------------------------------------------------------


def bounds(history: History, judged: Judged) -> list[Violation]:
    """Queues, buffers and whatever else was sampled stay inside their bounds."""
    judged["queues and buffers"] += len(history.samples)
    return [
        Violation(BOUNDS, sample.at_s, f"{sample.actor}: {sample.name} has {sample.size}, its bound is {sample.bound}")
        for sample in history.samples.values()
        if sample.size > sample.bound
    ]


# --- liveness -------------------------------------------------------------------------------------------


def liveness(history: History, judged: Judged) -> list[Violation]:
    """Once nothing breaks any more, the goal is reached within its bound, and then requests are served.

    The goal: the log has every deployment at its number of running replicas, of its current revision and with none
    besides, no wish is undecided, and every gateway that runs reaches all those replicas. With a healthy core that is
    asked of the core's gateways and of the replicas on its nodes. A deployment may have none there, if it has one that
    lives: a machine that is slow, or whose idle engine is stuck, is no reason to move it.
    """
    settle = history.settle
    if settle is None:
        return []
    judged["runs with a goal"] += 1
    log = final_log(history)
    found = [*_goal_in_log(history, log, settle), *_goal_at_gateways(history, log, settle)]
    if found:
        return found
    reached_s = goal_reached_s(history)
    if reached_s is None or reached_s > settle.began_s + settle.bound_s:
        took = "never for good" if reached_s is None else f"after {reached_s - settle.began_s:.3f} s"
        message = f"the goal was reached {took}, and {settle.bound_s:g} s are the bound"
        return [Violation(LIVENESS, settle.began_s + settle.bound_s, message)]
    since_s = max(reached_s, settle.began_s)
    return [Violation(LIVENESS, at_s, message) for at_s, message in served(history, settle, since_s, judged)]


def goal_reached_s(history: History) -> float | None:
    """Since when the goal has been reached, at the end of the run and without a break; None if it is not."""
    settle, log = history.settle, final_log(history)
    if settle is None:
        return None
    # Operators who take thresholds back ask one dead gateway after the other: that they come late is their affair.
    late = {
        record.event.id
        for place, record in enumerate(log.records)
        if log.times[place] > settle.began_s and isinstance(record.event.payload, ev.BusyThresholdRequested)
    }
    place = len(log.records)
    while place >= 0 and _unmet(log.states[place], late) is None:
        place -= 1
    if place == len(log.records):
        return None
    reached_s = log.times[place] if place >= 0 else 0.0
    wanted = _wanted(log.state, settle)
    for gateway in _gateways(history, settle):
        since_s = _reaching_since(history, gateway, wanted)
        if since_s is None:
            return None
        reached_s = max(reached_s, since_s)
    return reached_s


def _unmet(state: ClusterState, late: Collection[str] = ()) -> str | None:
    """What of the goal the log does not show as reached, but for these late thresholds; None if it does."""
    if state.requests:
        return f"{', '.join(state.requests)} waits for a decision"
    if undecided := [request for request in state.threshold_requests if request not in late]:
        return f"thresholds that {', '.join(undecided)} asked for are not decided"
    for application in state.applications.values():
        for deployment in application.deployments.values():
            wanted = deployment.config.num_replicas
            replicas = list(state.replicas_of(application.name, deployment.config.name))
            ready = sum(_ready(replica, deployment) for replica in replicas)
            if (ready, len(replicas)) != (wanted, wanted):
                others = [f"{replica.id} {replica.status}" for replica in replicas if not _ready(replica, deployment)]
                told = f" ({', '.join(others)})" if others else ""
                return f"{deployment.config.name} has {ready} of {wanted} replicas running{told}"
    for replica in state.replicas.values():
        application_of = state.applications.get(replica.application)
        if application_of is None or replica.deployment not in application_of.deployments:
            return f"{replica.id} is {replica.status}, and nobody wants it"
    return None


def _ready(replica: ReplicaState, deployment: DeploymentState) -> bool:
    return replica.status is ReplicaStatus.RUNNING and replica.revision == deployment.revision


def _goal_in_log(history: History, log: FinalLog, settle: Settle) -> Iterator[Violation]:
    at_s = settle.began_s + settle.bound_s
    unmet = _unmet(log.state)
    if unmet is not None:
        yield Violation(LIVENESS, at_s, f"the goal is not reached: {unmet}")
        return
    living = {process.replica for process in history.processes if process.alive and not _stands_still(process)}
    for application in log.state.applications.values() if settle.core else ():
        for deployment in application.deployments.values():
            replicas = log.state.replicas_of(application.name, deployment.config.name)
            if deployment.config.num_replicas and not any(
                replica.node in settle.core or replica.id in living for replica in replicas
            ):
                yield Violation(LIVENESS, at_s, f"{deployment.config.name} has no replica that lives")


def _stands_still(process: Process) -> bool:
    return bool(process.frozen) and process.frozen[-1][1] is None


def _wanted(state: ClusterState, settle: Settle) -> frozenset[str]:
    """The replicas that gateways must reach."""
    return frozenset(
        replica.id
        for replica in state.replicas.values()
        if replica.status is ReplicaStatus.RUNNING and (not settle.core or replica.node in settle.core)
    )


def _gateways(history: History, settle: Settle) -> list[Process]:
    """The gateways that run at the end and must reach the replicas."""
    return [
        process
        for process in history.processes
        if process.role == GATEWAY and process.alive and (not settle.core or process.name in settle.core)
    ]


def _goal_at_gateways(history: History, log: FinalLog, settle: Settle) -> Iterator[Violation]:
    at_s = settle.began_s + settle.bound_s
    gateways = _gateways(history, settle)
    if not gateways:
        yield Violation(LIVENESS, at_s, "no gateway runs")
    wanted = _wanted(log.state, settle)
    for gateway in gateways:
        if _reaching_since(history, gateway, wanted) is None:
            last = next((reach for reach in reversed(history.reaches) if reach.gateway == gateway.name), None)
            missing = ", ".join(sorted(wanted - set(last.replicas if last is not None else ())))
            yield Violation(LIVENESS, at_s, f"{gateway.name} does not reach {missing or 'anybody that it tells of'}")


def _reaching_since(history: History, gateway: Process, wanted: frozenset[str]) -> float | None:
    """Since when the gateway has reached all of `wanted` without a break; None if it does not at the end."""
    since_s = None
    for reach in reversed(history.reaches):
        if reach.gateway != gateway.name:
            continue
        if reach.at_s < gateway.began_s or not wanted <= set(reach.replicas):
            break
        since_s = reach.at_s
    return since_s


# --- quiet ----------------------------------------------------------------------------------------------


def quiet(history: History, judged: Judged) -> list[Violation]:
    """No exception that nobody handled, and no process that ends in failure without a reason from outside.

    Reasons: a signal; for a replica something that breaks its engine, or keeps it from loading; for a node or gateway
    only that the log held it for gone. Whatever happens to networks, clocks and servers, these wait or go on.
    """
    log = final_log(history)
    found = [
        Violation(QUIET, error.at_s, f"{error.process}: nobody handled {error.text}") for error in history.unhandled
    ]
    for process in history.processes:
        if process.ended_s is None or process.status is None or process.by:
            continue
        judged["processes that ended by themselves"] += 1
        if process.status <= 0:
            continue
        if not any(_explains(fault, process) for fault in history.faults) and not _given_up(log, process):
            ended = f"{process.name} (process {process.pid}) ended with status {process.status}"
            found.append(Violation(QUIET, process.ended_s, f"{ended}, and nothing explains it"))
    return found


def befalls(fault: Fault, *names: str) -> bool:
    """Whether the fault's target is one of these processes, hosts or replicas, or a link of one, or everything."""
    targets = _targets(fault.target)
    return "*" in targets or any(name in targets for name in names if name)


@lru_cache(TARGETS_MAX)
def _targets(target: str) -> frozenset[str]:
    return frozenset(re.split(r"[>,|\s]+", target))


def _explains(fault: Fault, process: Process) -> bool:
    assert process.ended_s is not None
    if process.role != REPLICA or not fault.struck or fault.from_s > process.ended_s:
        return False
    if fault.kind in END_REPLICAS:
        # An engine that something is wrong with may notice only with its next request, whenever that comes.
        return befalls(fault, process.replica)
    late_s = 0.0 if fault.until_s is None else process.ended_s - fault.until_s
    return fault.kind == LAUNCH_FAILURE and befalls(fault, process.host) and late_s <= EXPLAINS_S


def _given_up(log: FinalLog, process: Process) -> bool:
    """Whether the log held this node or gateway for gone, or knew a newer one, before it ended."""
    mine = log.member_of(process)
    if process.ended_s is None or process.role not in (NODE, GATEWAY):
        return False
    upto = log.at(process.ended_s)
    if mine is None:
        # It had not joined: another of its name may have been alive, or joined just then.
        return any(_joins_as(record.event.payload, process.name) for record in log.records[:upto])
    return any(_ends(record.event, mine) for record in log.records[:upto])


def _joins_as(payload: ev.Payload, name: str) -> bool:
    return (isinstance(payload, ev.NodeJoined) and payload.node == name) or (
        isinstance(payload, ev.GatewayJoined) and payload.gateway == name
    )


def _ends(event: ev.Event, mine: Member) -> bool:
    payload = event.payload
    if isinstance(payload, ev.NodeLost):
        return (payload.node, payload.node_incarnation) == mine[:2]
    if isinstance(payload, ev.GatewayLost):
        return (payload.gateway, payload.gateway_incarnation) == mine[:2]
    return _joins_as(payload, mine.name) and event.incarnation != mine.incarnation
