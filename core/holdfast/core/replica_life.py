"""The fold of the events of replicas: placed, started, ready, suspected, sick, told to stop, gone.

A fact about a replica counts only from the node incarnation that it was placed on. How starts and runs fail is
counted in the replica's deployment, as long as that is of the replica's revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from holdfast.core import events as ev
from holdfast.core.breakdowns import broke_down, count_breakdown, count_kill, was_killed
from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    Reducers,
    ReplicaState,
    ReplicaStatus,
)
from holdfast.core.endings import how_it_ended
from holdfast.core.sharing import with_entry, without_entry
from holdfast.core.starts import count_failure, count_start, start_failed, was_stable


def _replica_placed(
    state: ClusterState, event: ev.Event, decision: ev.ReplicaPlaced | ev.ReplicaReplaced
) -> ClusterState:
    application = state.applications.get(decision.application)
    deployment = application.deployments.get(decision.deployment) if application else None
    if application is None or deployment is None:
        return state
    replica = ReplicaState(
        decision.replica,
        decision.application,
        decision.deployment,
        deployment.revision,
        decision.node,
        decision.node_incarnation,
        ReplicaStatus.STARTING,
        event.id,
    )
    if not state.takes_part(decision.node, decision.node_incarnation):
        # It ended between the plan and this decision: nobody is there to start the replica, or to say that it ended.
        message = f"node {decision.node} was gone when the replica was placed there"
        replica = msgspec.structs.replace(replica, status=ReplicaStatus.EXITED, message=message)
    state = msgspec.structs.replace(state, replicas=with_entry(state.replicas, replica.id, replica))
    placed = msgspec.structs.replace(deployment, replicas_placed=deployment.replicas_placed + 1, placed_at=event.time)
    return _set_deployment(state, application, placed)


def _replica_replaced(state: ClusterState, event: ev.Event, decision: ev.ReplicaReplaced) -> ClusterState:
    gone = state.replicas.get(decision.replaces)
    if gone is not None and gone.status is ReplicaStatus.EXITED:
        state = msgspec.structs.replace(state, replicas=without_entry(state.replicas, gone.id))
    return _replica_placed(state, event, decision)


def _replica_started(state: ClusterState, event: ev.Event, fact: ev.ReplicaStarted) -> ClusterState:
    if _told_of(state, event, fact) is None:
        return state
    return _change_replica(state, event, fact.replica, pid=fact.pid)


def _replica_ready(state: ClusterState, event: ev.Event, fact: ev.ReplicaReady) -> ClusterState:
    replica = _told_of(state, event, fact)
    if replica is None:
        return state
    starting = replica.status is ReplicaStatus.STARTING
    changes: dict[str, Any] = {"address": fact.address, "info": fact.info, "system_port": fact.system_port}
    if starting:
        changes |= {"status": ReplicaStatus.RUNNING, "unhealthy": "", "message": ""}
    state = _change_replica(state, event, fact.replica, ready_at=replica.ready_at or event.time, **changes)
    return _with_deployment_of(state, replica, lambda known: count_start(known, replica)) if starting else state


def _replica_exited(state: ClusterState, event: ev.Event, fact: ev.ReplicaExited) -> ClusterState:
    replica = _told_of(state, event, fact)
    if replica is None:
        return state
    if replica.status is ReplicaStatus.STOPPING:
        return msgspec.structs.replace(state, replicas=without_entry(state.replicas, replica.id))
    message = how_it_ended(replica, fact)
    if was_stable(replica, event.time):
        state = _change_deployment_of(state, replica, unstable_starts=0, failed_at=None)
    elif start_failed(replica, fact, event.time):
        state = _count_start_failure(state, event, replica, message)
    if broke_down(replica, fact):
        state = _count_breakdown(state, event, replica, message)
    elif was_killed(replica, fact):
        state = _with_deployment_of(state, replica, lambda known: count_kill(known, replica, event.time, message))
    return _change_replica(
        state, event, replica.id, status=ReplicaStatus.EXITED, message=message, pid=0, address="", system_port=0
    )


def _replica_stop_ordered(state: ClusterState, event: ev.Event, decision: ev.ReplicaStopOrdered) -> ClusterState:
    replica = state.replicas.get(decision.replica)
    if replica is None:
        return state
    if replica.status is ReplicaStatus.EXITED:
        return msgspec.structs.replace(state, replicas=without_entry(state.replicas, replica.id))
    how = {"stop_mode": decision.mode, "stop_deadline_s": decision.deadline_s}
    return _change_replica(state, event, replica.id, status=ReplicaStatus.STOPPING, message=decision.reason, **how)


def _replica_draining(state: ClusterState, event: ev.Event, fact: ev.ReplicaDraining) -> ClusterState:
    if _told_of(state, event, fact) is None:
        return state
    return _change_replica(state, event, fact.replica, status=ReplicaStatus.STOPPING, message="it was told to stop")


def _replica_unhealthy(state: ClusterState, event: ev.Event, fact: ev.ReplicaUnhealthy) -> ClusterState:
    replica = _told_of(state, event, fact)
    if replica is None or not replica.live:
        return state
    if not replica.unhealthy:
        count = _count_breakdown if replica.status is ReplicaStatus.RUNNING else _count_start_failure
        state = count(state, event, replica, fact.message)
    return _change_replica(state, event, replica.id, unhealthy=fact.kind, message=fact.message)


def _replica_healthy(state: ClusterState, event: ev.Event, fact: ev.ReplicaHealthy) -> ClusterState:
    """One that was sick is well again; of one that was not, it is said that it has been well for long enough."""
    replica = _told_of(state, event, fact)
    if replica is None or replica.status is not ReplicaStatus.RUNNING:
        return state
    if replica.unhealthy:
        return _change_replica(state, event, replica.id, unhealthy="", message="")
    return _change_deployment_of(state, replica, breakdowns=0, breakdown_message="", kills=0)


_AboutReplica = (
    ev.ReplicaStarted
    | ev.ReplicaReady
    | ev.ReplicaExited
    | ev.ReplicaDraining
    | ev.ReplicaUnhealthy
    | ev.ReplicaHealthy
)


def _told_of(state: ClusterState, event: ev.Event, fact: _AboutReplica) -> ReplicaState | None:
    """The replica, if the fact about it comes from the node incarnation that it was placed on."""
    replica = state.replicas.get(fact.replica)
    if replica is None or (replica.node, replica.node_incarnation) != (fact.node, event.incarnation):
        return None
    return replica


def _change_replica(state: ClusterState, event: ev.Event, replica_id: str, **changes: Any) -> ClusterState:
    """Change a replica's record, unless the replica has ended."""
    replica = state.replicas[replica_id]
    if replica.status is ReplicaStatus.EXITED:
        return state
    changed = msgspec.structs.replace(replica, event=event.id, **changes)
    return msgspec.structs.replace(state, replicas=with_entry(state.replicas, replica_id, changed))


def _count_start_failure(state: ClusterState, event: ev.Event, replica: ReplicaState, message: str) -> ClusterState:
    def counted(deployment: DeploymentState) -> DeploymentState:
        replicas = state.replicas_of(replica.application, replica.deployment)
        return count_failure(deployment, replicas, replica, event.time, message)

    return _with_deployment_of(state, replica, counted)


def _count_breakdown(state: ClusterState, event: ev.Event, replica: ReplicaState, message: str) -> ClusterState:
    return _with_deployment_of(state, replica, lambda known: count_breakdown(known, replica, event.time, message))


def _change_deployment_of(state: ClusterState, replica: ReplicaState, **changes: Any) -> ClusterState:
    return _with_deployment_of(state, replica, lambda known: msgspec.structs.replace(known, **changes))


def _with_deployment_of(
    state: ClusterState, replica: ReplicaState, changed: Callable[[DeploymentState], DeploymentState]
) -> ClusterState:
    """Change the replica's deployment, if the replica is of its current revision."""
    application = state.applications.get(replica.application)
    deployment = application.deployments.get(replica.deployment) if application else None
    if application is None or deployment is None or replica.revision != deployment.revision:
        return state
    return _set_deployment(state, application, changed(deployment))


def _set_deployment(state: ClusterState, application: ApplicationState, deployment: DeploymentState) -> ClusterState:
    changed = msgspec.structs.replace(
        application, deployments=with_entry(application.deployments, deployment.config.name, deployment)
    )
    return msgspec.structs.replace(state, applications=with_entry(state.applications, application.name, changed))


def drop_replicas_on(state: ClusterState, node: str, event_id: str, message: str) -> ClusterState:
    """What ran on the node is gone: what was meant to stop is done, the rest waits to be replaced."""
    replicas = state.replicas
    here = [one for one in replicas.values() if one.node == node and one.status is not ReplicaStatus.EXITED]
    for replica in here:
        if replica.live:
            gone = msgspec.structs.replace(
                replica, status=ReplicaStatus.EXITED, event=event_id, message=message, pid=0, address=""
            )
            replicas = with_entry(replicas, replica.id, gone)
        else:
            replicas = without_entry(replicas, replica.id)
    return msgspec.structs.replace(state, replicas=replicas)


# --- suspicions -----------------------------------------------------------------------------------------


def _replica_suspected(state: ClusterState, event: ev.Event, fact: ev.ReplicaSuspected) -> ClusterState:
    replica = state.replicas.get(fact.replica)
    if replica is None or fact.gateway in replica.suspected_by:
        return state
    return _set_suspicions(state, replica, (*replica.suspected_by, fact.gateway))


def _replica_trusted(state: ClusterState, event: ev.Event, fact: ev.ReplicaTrusted) -> ClusterState:
    replica = state.replicas.get(fact.replica)
    return state if replica is None else without_suspicions_of(state, fact.gateway, [replica])


def without_suspicions_of(state: ClusterState, gateway: str, replicas: Iterable[ReplicaState]) -> ClusterState:
    for replica in list(replicas):
        if gateway in replica.suspected_by:
            others = tuple(other for other in replica.suspected_by if other != gateway)
            state = _set_suspicions(state, replica, others)
    return state


def _set_suspicions(state: ClusterState, replica: ReplicaState, gateways: tuple[str, ...]) -> ClusterState:
    changed = msgspec.structs.replace(replica, suspected_by=gateways)
    return msgspec.structs.replace(state, replicas=with_entry(state.replicas, replica.id, changed))


REDUCERS: Reducers = {
    ev.ReplicaStarted: _replica_started,
    ev.ReplicaReady: _replica_ready,
    ev.ReplicaExited: _replica_exited,
    ev.ReplicaUnhealthy: _replica_unhealthy,
    ev.ReplicaHealthy: _replica_healthy,
    ev.ReplicaPlaced: _replica_placed,
    ev.ReplicaReplaced: _replica_replaced,
    ev.ReplicaStopOrdered: _replica_stop_ordered,
    ev.ReplicaDraining: _replica_draining,
    ev.ReplicaSuspected: _replica_suspected,
    ev.ReplicaTrusted: _replica_trusted,
}
