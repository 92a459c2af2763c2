"""Drains: who is on the way out by an operator's wish, and which replicas shall go because of it.

A node or gateway that is drained stays so by its name, through restarts of its process and changes of leader, until
the drain is lifted: somebody who takes a machine down must not find it in use again because it was restarted. A
replica's drain ends with the replica. Who is drained goes on serving until there is a replacement, or until the
deadline; a gateway, which nothing has to replace, takes nothing new at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, Drain, MemberStatus, PendingDrain, Reducers, ReplicaState, ReplicaStatus
from holdfast.core.config import DrainMode
from holdfast.core.sharing import with_entry, without_entry


class Leaving(msgspec.Struct, frozen=True):
    """Why a replica shall go, once it is replaced or by `ends`, `deadline_s` after it was said in the event `cause`.

    One that `makes_room` goes before that where nobody has room for its replacement.
    """

    reason: str
    cause: str
    mode: DrainMode | None = None
    ends: datetime | None = None
    deadline_s: float | None = None
    makes_room: bool = False

    def expired(self, now: datetime) -> bool:
        """Whether it shall go now, replaced or not."""
        return self.ends is not None and now >= self.ends

    def left_s(self, now: datetime) -> float | None:
        """How much of the deadline is left, in seconds; None without one.

        Never more than there was: `now` may be by the clock of another leader than `ends` is.
        """
        if self.ends is None or self.deadline_s is None:
            return None
        return max(0.0, min(self.deadline_s, round((self.ends - now).total_seconds(), 3)))


def nodes_left(state: ClusterState) -> Mapping[str, Leaving]:
    """The nodes whose replicas shall go elsewhere."""
    found = {}
    for node in state.nodes.values():
        if node.status is MemberStatus.STOPPING:
            found[node.id] = Leaving(f"node {node.id} stops", node.event)
        elif node.drain is not None and node.status is MemberStatus.ALIVE:
            found[node.id] = _by(node.drain, f"node {node.id} is drained")
    return found


def leaving(replica: ReplicaState, nodes: Mapping[str, Leaving]) -> Leaving | None:
    """Why this replica shall go, if it shall; `nodes` are those of `nodes_left`."""
    if replica.drain is not None:
        return _by(replica.drain, "it is drained")
    return nodes.get(replica.node) if nodes else None


def better_elsewhere(state: ClusterState, replica: ReplicaState) -> bool:
    """Whether streams shall rather begin on other replicas, if those have room: this one is sick, or about to go."""
    node = state.nodes.get(replica.node)
    node_goes = node is not None and (node.drain is not None or node.status is MemberStatus.STOPPING)
    return node_goes or replica.drain is not None or bool(replica.unhealthy)


def may_be_relieved(state: ClusterState, node_id: str) -> bool:
    """Whether replicas that run on the node may still be replaced elsewhere: there are some, and other nodes."""
    here = any(replica.node == node_id and replica.live for replica in state.replicas.values())
    return here and any(node.id != node_id for node in state.live_nodes())


def _by(drain: Drain, reason: str) -> Leaving:
    return Leaving(reason, drain.event, drain.mode, drain.ends, drain.deadline_s)


# --- the fold -------------------------------------------------------------------------------------------


def _drain_requested(
    state: ClusterState, event: ev.Event, fact: ev.DrainRequested | ev.UndrainRequested
) -> ClusterState:
    """An operator's wish waits for its decision; of several about the same the last one counts."""
    if isinstance(fact, ev.DrainRequested):
        pending = PendingDrain(event.id, fact.kind, fact.name, True, fact.mode, fact.deadline_s)
    else:
        pending = PendingDrain(event.id, fact.kind, fact.name, False)
    requests = with_entry(state.drain_requests, drain_key(fact.kind, fact.name), pending)
    return msgspec.structs.replace(state, drain_requests=requests)


def _drain_ordered(state: ClusterState, event: ev.Event, decision: ev.DrainOrdered) -> ClusterState:
    """Who is not there, or not any more, can't be drained."""
    drain = Drain(event.id, event.time, decision.mode, decision.deadline_s)
    return _set_drain(_without_decided(state, event, decision), decision, drain)


def _drain_lifted(state: ClusterState, event: ev.Event, decision: ev.DrainLifted) -> ClusterState:
    """As if there had been no drain; a replica that was told to stop by then stops all the same."""
    return _set_drain(_without_decided(state, event, decision), decision, None)


def _gateway_drained(state: ClusterState, event: ev.Event, fact: ev.GatewayDrained) -> ClusterState:
    """One that answers to an earlier drain, or comes from an earlier process, tells nothing."""
    gateway = state.gateways.get(fact.gateway)
    if gateway is None or gateway.incarnation != event.incarnation or gateway.drain is None:
        return state
    if gateway.drain.event != event.cause:
        return state
    changed = msgspec.structs.replace(gateway, drained=True)
    return msgspec.structs.replace(state, gateways=with_entry(state.gateways, gateway.id, changed))


def drain_key(kind: str, name: str) -> str:
    """Under what `ClusterState.drain_requests` has who is drained."""
    return f"{kind}/{name}"


def _without_decided(state: ClusterState, event: ev.Event, decision: ev.DrainOrdered | ev.DrainLifted) -> ClusterState:
    """The requests without the one that this decides. One that came in between waits for its own decision."""
    key = drain_key(decision.kind, decision.name)
    pending = state.drain_requests.get(key)
    if pending is None or pending.event != event.cause:
        return state
    return msgspec.structs.replace(state, drain_requests=without_entry(state.drain_requests, key))


def _set_drain(state: ClusterState, decision: ev.DrainOrdered | ev.DrainLifted, drain: Drain | None) -> ClusterState:
    name = decision.name
    changes: dict[str, Any] = {"drain": drain}
    if decision.kind == "node" and name in state.nodes:
        node = msgspec.structs.replace(state.nodes[name], **changes)
        return msgspec.structs.replace(state, nodes=with_entry(state.nodes, name, node))
    if decision.kind == "gateway" and name in state.gateways:
        gateway = msgspec.structs.replace(state.gateways[name], drained=False, **changes)
        return msgspec.structs.replace(state, gateways=with_entry(state.gateways, name, gateway))
    if decision.kind == "replica" and name in state.replicas:
        replica = state.replicas[name]
        if replica.status is not ReplicaStatus.EXITED:
            replica = msgspec.structs.replace(replica, **changes)
            return msgspec.structs.replace(state, replicas=with_entry(state.replicas, name, replica))
    return state


REDUCERS: Reducers = {
    ev.DrainRequested: _drain_requested,
    ev.UndrainRequested: _drain_requested,
    ev.DrainOrdered: _drain_ordered,
    ev.DrainLifted: _drain_lifted,
    ev.GatewayDrained: _gateway_drained,
}
