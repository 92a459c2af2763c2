"""What is: the fold of the log, and nothing but.

`apply` reads no clock, no randomness and no environment: the same records give the same state everywhere, which
`state_hash` makes comparable. Every record type has one small reducer in `_REDUCERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from holdfast.core import events as ev
from holdfast.core.breakdowns import broke_down, count_breakdown, count_kill, was_killed
from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    GatewayState,
    Head,
    Losses,
    MemberStatus,
    NodeState,
    PendingRequest,
    ReplicaState,
    ReplicaStatus,
)
from holdfast.core.config import DeploymentConfig
from holdfast.core.drains import (
    drain_lifted,
    drain_ordered,
    drain_requested,
    gateway_drained,
)
from holdfast.core.endings import how_it_ended
from holdfast.core.errors import CorruptLog
from holdfast.core.overloads import threshold_requested, threshold_set
from holdfast.core.sharing import SharedMap, with_entry, without_entry
from holdfast.core.starts import count_failure, count_start, start_failed, was_stable
from holdfast.core.thresholds import NONE_SET

_ENDS = (MemberStatus.LEFT, MemberStatus.LOST)


def apply(state: ClusterState, record: ev.Record) -> ClusterState:
    """The state after one more record.

    Raises `CorruptLog` when the record is not the next one, or does not chain to the one before it in its
    subject.
    """
    _check_order(state, record)
    state = msgspec.structs.replace(
        state,
        sequence=record.sequence,
        heads=with_entry(state.heads, record.subject, Head(record.sequence, record.digest)),
    )
    event = record.event
    if isinstance(event.payload, ev.Decision):
        if event.epoch < state.epoch:
            return msgspec.structs.replace(state, ignored=state.ignored + 1)
        if event.epoch > state.epoch and not isinstance(event.payload, ev.LeaderElected):
            raise CorruptLog(f"sequence {record.sequence}: epoch {event.epoch} decides before its election")
    return _REDUCERS[type(event.payload)](state, event, event.payload)


def state_hash(state: ClusterState) -> str:
    """SHA-256 over the state in canonical form: equal states have equal hashes on every machine."""
    return hashlib.sha256(msgspec.json.encode(state, enc_hook=_plain, order="deterministic")).hexdigest()


def _plain(value: object) -> object:
    return value.merged() if isinstance(value, SharedMap) else value


def _check_order(state: ClusterState, record: ev.Record) -> None:
    if record.sequence != state.sequence + 1:
        raise CorruptLog(f"sequence {record.sequence} follows {state.sequence}: the log has a hole")
    if record.event.previous != state.head(record.subject).digest:
        raise CorruptLog(
            f"sequence {record.sequence} on {record.subject} does not chain to the event before it there: "
            f"somebody changed, removed or forged an event"
        )


# --- nodes ----------------------------------------------------------------------------------------------


def _node_joined(state: ClusterState, event: ev.Event, fact: ev.NodeJoined) -> ClusterState:
    before = state.nodes.get(fact.node)
    if before is not None and before.incarnation == event.incarnation:
        return state
    node = NodeState(
        fact.node,
        event.incarnation,
        MemberStatus.ALIVE,
        fact.host,
        fact.pid,
        fact.version,
        fact.slots,
        event.id,
        before.drain if before is not None else None,
        fact.system_port,
    )
    state = _drop_replicas_on(state, fact.node, event.id, f"node {fact.node} restarted")
    return msgspec.structs.replace(state, nodes=with_entry(state.nodes, node.id, node))


def _node_stopping(state: ClusterState, event: ev.Event, fact: ev.NodeStopping) -> ClusterState:
    return _set_node(state, event, fact.node, event.incarnation, MemberStatus.STOPPING)


def _node_left(state: ClusterState, event: ev.Event, fact: ev.NodeLeft) -> ClusterState:
    if not _takes_part(state, fact.node, event.incarnation):
        return state
    state = _drop_replicas_on(state, fact.node, event.id, f"node {fact.node} left")
    return _set_node(state, event, fact.node, event.incarnation, MemberStatus.LEFT)


def _node_lost(state: ClusterState, event: ev.Event, decision: ev.NodeLost) -> ClusterState:
    if not _takes_part(state, decision.node, decision.node_incarnation):
        return state
    state = _count_losses(state, decision.node, event.time)
    state = _drop_replicas_on(state, decision.node, event.id, f"node {decision.node} lost: {decision.reason}")
    return _set_node(state, event, decision.node, decision.node_incarnation, MemberStatus.LOST)


def _count_losses(state: ClusterState, node: str, now: datetime) -> ClusterState:
    lost = sum(replica.node == node and replica.live for replica in state.replicas.values())
    if not lost:
        return state
    if state.losses is not None and state.losses.recent(now):
        return msgspec.structs.replace(state, losses=Losses(state.losses.since, state.losses.replicas + lost))
    return msgspec.structs.replace(state, losses=Losses(now, lost))


def _takes_part(state: ClusterState, node_id: str, incarnation: str) -> bool:
    """Whether this incarnation of the node is in the cluster. Its end is final: late facts don't bring it back."""
    node = state.nodes.get(node_id)
    return node is not None and node.incarnation == incarnation and node.status not in _ENDS


def _set_node(
    state: ClusterState, event: ev.Event, node_id: str, incarnation: str, status: MemberStatus
) -> ClusterState:
    if not _takes_part(state, node_id, incarnation):
        return state
    node = msgspec.structs.replace(state.nodes[node_id], status=status, event=event.id)
    return msgspec.structs.replace(state, nodes=with_entry(state.nodes, node_id, node))


def _drop_replicas_on(state: ClusterState, node: str, event_id: str, message: str) -> ClusterState:
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


# --- replicas -------------------------------------------------------------------------------------------


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
    if not _takes_part(state, decision.node, decision.node_incarnation):
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


# --- gateways -------------------------------------------------------------------------------------------


def _gateway_joined(state: ClusterState, event: ev.Event, fact: ev.GatewayJoined) -> ClusterState:
    before = state.gateways.get(fact.gateway)
    if before is not None and before.incarnation == event.incarnation and before.status is not MemberStatus.LOST:
        # It holds nothing that could have been given to others, so one that was given up may simply come back.
        return state
    gateway = GatewayState(
        fact.gateway,
        event.incarnation,
        MemberStatus.ALIVE,
        fact.host,
        fact.pid,
        fact.url,
        fact.version,
        event.id,
        before.drain if before is not None else None,
    )
    state = _without_suspicions_of(state, gateway.id, state.replicas.values())
    return msgspec.structs.replace(state, gateways=with_entry(state.gateways, gateway.id, gateway))


def _gateway_stopping(state: ClusterState, event: ev.Event, fact: ev.GatewayStopping) -> ClusterState:
    return _set_gateway(state, event, fact.gateway, event.incarnation, MemberStatus.STOPPING)


def _gateway_left(state: ClusterState, event: ev.Event, fact: ev.GatewayLeft) -> ClusterState:
    return _set_gateway(state, event, fact.gateway, event.incarnation, MemberStatus.LEFT)


def _gateway_lost(state: ClusterState, event: ev.Event, decision: ev.GatewayLost) -> ClusterState:
    return _set_gateway(state, event, decision.gateway, decision.gateway_incarnation, MemberStatus.LOST)


def _set_gateway(
    state: ClusterState, event: ev.Event, gateway_id: str, incarnation: str, status: MemberStatus
) -> ClusterState:
    gateway = state.gateways.get(gateway_id)
    if gateway is None or gateway.incarnation != incarnation or gateway.status in _ENDS:
        return state
    gateway = msgspec.structs.replace(gateway, status=status, event=event.id)
    if status in _ENDS:
        state = _without_suspicions_of(state, gateway_id, state.replicas.values())
    return msgspec.structs.replace(state, gateways=with_entry(state.gateways, gateway_id, gateway))


def _replica_suspected(state: ClusterState, event: ev.Event, fact: ev.ReplicaSuspected) -> ClusterState:
    replica = state.replicas.get(fact.replica)
    if replica is None or fact.gateway in replica.suspected_by:
        return state
    return _set_suspicions(state, replica, (*replica.suspected_by, fact.gateway))


def _replica_trusted(state: ClusterState, event: ev.Event, fact: ev.ReplicaTrusted) -> ClusterState:
    replica = state.replicas.get(fact.replica)
    return state if replica is None else _without_suspicions_of(state, fact.gateway, [replica])


def _for_people(state: ClusterState, event: ev.Event, fact: ev.Fact) -> ClusterState:
    """For people to read: what is remembered of a request is in its gateway, and who leads was decided before."""
    return state


def _without_suspicions_of(state: ClusterState, gateway: str, replicas: Iterable[ReplicaState]) -> ClusterState:
    for replica in list(replicas):
        if gateway in replica.suspected_by:
            others = tuple(other for other in replica.suspected_by if other != gateway)
            state = _set_suspicions(state, replica, others)
    return state


def _set_suspicions(state: ClusterState, replica: ReplicaState, gateways: tuple[str, ...]) -> ClusterState:
    changed = msgspec.structs.replace(replica, suspected_by=gateways)
    return msgspec.structs.replace(state, replicas=with_entry(state.replicas, replica.id, changed))


# --- the controller and the goal ------------------------------------------------------------------------


def _leader_elected(state: ClusterState, event: ev.Event, decision: ev.LeaderElected) -> ClusterState:
    return msgspec.structs.replace(
        state, epoch=event.epoch, leader=decision.node, leader_incarnation=decision.node_incarnation
    )


def _deploy_requested(state: ClusterState, event: ev.Event, fact: ev.DeployRequested) -> ClusterState:
    request = PendingRequest(event.id, fact.application)
    return msgspec.structs.replace(state, requests=with_entry(state.requests, fact.application.name, request))


def _delete_requested(state: ClusterState, event: ev.Event, fact: ev.DeleteRequested) -> ClusterState:
    request = PendingRequest(event.id, fact.application)
    return msgspec.structs.replace(state, requests=with_entry(state.requests, fact.application, request))


def _application_deployed(state: ClusterState, event: ev.Event, decision: ev.ApplicationDeployed) -> ClusterState:
    name = decision.application.name
    before = state.applications.get(name)
    state = _forget_exited(_remember_numbers(state, before), name)
    deployments = {
        config.name: _deployment(state, before, name, config, event) for config in decision.application.deployments
    }
    application = ApplicationState(name, event.time, event.id, deployments)
    return msgspec.structs.replace(
        state,
        applications=with_entry(state.applications, name, application),
        requests=_without_decided(state, event, name),
    )


def _deployment(
    state: ClusterState, application: ApplicationState | None, name: str, config: DeploymentConfig, event: ev.Event
) -> DeploymentState:
    before = application.deployments.get(config.name) if application else None
    if before is None:
        # Replicas of a deployment of this name that was deleted may still be there, and are outdated.
        revision = 1 + max((replica.revision for replica in state.replicas_of(name, config.name)), default=0)
        return DeploymentState(config, event.id, revision, state.numbered.get(f"{name}.{config.name}", 0))
    revision = before.revision + (config.engine != before.config.engine)
    ran = before.ran and revision == before.revision
    failed_on = before.failed_on if revision == before.revision else {}
    thresholds = before.thresholds if config.thresholds == before.config.thresholds else NONE_SET
    return DeploymentState(
        config, event.id, revision, before.replicas_placed, failed_on=failed_on, ran=ran, thresholds=thresholds
    )


def _application_deleted(state: ClusterState, event: ev.Event, decision: ev.ApplicationDeleted) -> ClusterState:
    state = _remember_numbers(state, state.applications.get(decision.application))
    state = _forget_exited(state, decision.application)
    return msgspec.structs.replace(
        state,
        applications=without_entry(state.applications, decision.application),
        requests=_without_decided(state, event, decision.application),
    )


def _without_decided(state: ClusterState, event: ev.Event, application: str) -> Mapping[str, PendingRequest]:
    """The requests without the one that this decides. One that came in between waits for its own decision."""
    request = state.requests.get(application)
    if request is not None and request.event == event.cause:
        return without_entry(state.requests, application)
    return state.requests


def _remember_numbers(state: ClusterState, application: ApplicationState | None) -> ClusterState:
    if application is None:
        return state
    numbers = {
        f"{application.name}.{name}": deployment.replicas_placed for name, deployment in application.deployments.items()
    }
    return msgspec.structs.replace(state, numbered={**state.numbered, **numbers})


def _forget_exited(state: ClusterState, application: str) -> ClusterState:
    """A new goal is a new count: what exited under the old one needs no replacement by name."""
    replicas = {
        replica.id: replica
        for replica in state.replicas.values()
        if replica.application != application or replica.status is not ReplicaStatus.EXITED
    }
    return msgspec.structs.replace(state, replicas=replicas)


_REDUCERS: dict[type[ev.Payload], Callable[[ClusterState, ev.Event, Any], ClusterState]] = {
    ev.NodeJoined: _node_joined,
    ev.NodeStopping: _node_stopping,
    ev.NodeLeft: _node_left,
    ev.NodeLost: _node_lost,
    ev.ReplicaStarted: _replica_started,
    ev.ReplicaReady: _replica_ready,
    ev.ReplicaExited: _replica_exited,
    ev.ReplicaUnhealthy: _replica_unhealthy,
    ev.ReplicaHealthy: _replica_healthy,
    ev.ReplicaPlaced: _replica_placed,
    ev.ReplicaReplaced: _replica_replaced,
    ev.ReplicaStopOrdered: _replica_stop_ordered,
    ev.ReplicaDraining: _replica_draining,
    ev.DrainRequested: drain_requested,
    ev.UndrainRequested: drain_requested,
    ev.DrainOrdered: drain_ordered,
    ev.DrainLifted: drain_lifted,
    ev.GatewayJoined: _gateway_joined,
    ev.GatewayStopping: _gateway_stopping,
    ev.GatewayLeft: _gateway_left,
    ev.GatewayLost: _gateway_lost,
    ev.GatewayDrained: gateway_drained,
    ev.ReplicaSuspected: _replica_suspected,
    ev.ReplicaTrusted: _replica_trusted,
    ev.StreamsMigrated: _for_people,
    ev.RejectionsBegan: _for_people,
    ev.RejectionsEnded: _for_people,
    ev.ReplicaEjected: _for_people,
    ev.ReplicaReinstated: _for_people,
    ev.BusyThresholdRequested: threshold_requested,
    ev.BusyThresholdSet: threshold_set,
    ev.StreamsFenced: _for_people,
    ev.LeaderDeposed: _for_people,
    ev.LeaderElected: _leader_elected,
    ev.ApplicationDeployed: _application_deployed,
    ev.ApplicationDeleted: _application_deleted,
    ev.DeployRequested: _deploy_requested,
    ev.DeleteRequested: _delete_requested,
}
