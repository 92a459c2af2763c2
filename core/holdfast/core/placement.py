"""Where a new replica goes: the live node with the fewest replicas that still has a free slot."""

from __future__ import annotations

from collections import Counter

from holdfast.core.cluster import ClusterState, NodeState, ReplicaStatus


def occupancy(state: ClusterState) -> Counter[str]:
    """How many replicas hold a slot on each node; one that is stopping holds its slot until it is gone."""
    return Counter(replica.node for replica in state.replicas.values() if replica.status is not ReplicaStatus.EXITED)


def choose_node(state: ClusterState, used: Counter[str], avoid: str | None = None) -> NodeState | None:
    """The node for one more replica, or None when no live node has room.

    Spreads by replica count, the node's name breaking ties. `avoid` is taken only if it is the least used by
    more than one replica: what just failed there may well fail there again.
    """
    candidates = [node for node in state.live_nodes() if used[node.id] < node.slots]
    return min(
        candidates, key=lambda node: (used[node.id] + (node.id == avoid), node.id == avoid, node.id), default=None
    )
