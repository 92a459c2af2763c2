"""The fold of the events of members: nodes and gateways join, stop, leave and are given up.

A node's end is final: what that incarnation still tells changes nothing, since its replicas are placed elsewhere. A
gateway that was given up may come back as it is.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, GatewayState, Losses, MemberStatus, NodeState, Reducers
from holdfast.core.replica_life import drop_replicas_on, without_suspicions_of
from holdfast.core.sharing import with_entry

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
    state = drop_replicas_on(state, fact.node, event.id, f"node {fact.node} restarted")
    return msgspec.structs.replace(state, nodes=with_entry(state.nodes, node.id, node))


def _node_stopping(state: ClusterState, event: ev.Event, fact: ev.NodeStopping) -> ClusterState:
    return _set_node(state, event, fact.node, event.incarnation, MemberStatus.STOPPING)


def _node_left(state: ClusterState, event: ev.Event, fact: ev.NodeLeft) -> ClusterState:
    if not state.takes_part(fact.node, event.incarnation):
        return state
    state = drop_replicas_on(state, fact.node, event.id, f"node {fact.node} left")
    return _set_node(state, event, fact.node, event.incarnation, MemberStatus.LEFT)


def _node_lost(state: ClusterState, event: ev.Event, decision: ev.NodeLost) -> ClusterState:
    if not state.takes_part(decision.node, decision.node_incarnation):
        return state
    state = _count_losses(state, decision.node, event.time)
    state = drop_replicas_on(state, decision.node, event.id, f"node {decision.node} lost: {decision.reason}")
    return _set_node(state, event, decision.node, decision.node_incarnation, MemberStatus.LOST)


def _count_losses(state: ClusterState, node: str, now: datetime) -> ClusterState:
    lost = sum(replica.node == node and replica.live for replica in state.replicas.values())
    if not lost:
        return state
    if state.losses is not None and state.losses.recent(now):
        return msgspec.structs.replace(state, losses=Losses(state.losses.since, state.losses.replicas + lost))
    return msgspec.structs.replace(state, losses=Losses(now, lost))


def _set_node(
    state: ClusterState, event: ev.Event, node_id: str, incarnation: str, status: MemberStatus
) -> ClusterState:
    if not state.takes_part(node_id, incarnation):
        return state
    node = msgspec.structs.replace(state.nodes[node_id], status=status, event=event.id)
    return msgspec.structs.replace(state, nodes=with_entry(state.nodes, node_id, node))


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
    state = without_suspicions_of(state, gateway.id, state.replicas.values())
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
    if gateway is None or gateway.incarnation != incarnation or gateway.status.ended:
        return state
    gateway = msgspec.structs.replace(gateway, status=status, event=event.id)
    if status.ended:
        state = without_suspicions_of(state, gateway_id, state.replicas.values())
    return msgspec.structs.replace(state, gateways=with_entry(state.gateways, gateway_id, gateway))


REDUCERS: Reducers = {
    ev.NodeJoined: _node_joined,
    ev.NodeStopping: _node_stopping,
    ev.NodeLeft: _node_left,
    ev.NodeLost: _node_lost,
    ev.GatewayJoined: _gateway_joined,
    ev.GatewayStopping: _gateway_stopping,
    ev.GatewayLeft: _gateway_left,
    ev.GatewayLost: _gateway_lost,
}
