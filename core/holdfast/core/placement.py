"""Where a new replica goes: the live node with the fewest replicas that still has a free slot."""

from __future__ import annotations

import heapq
from collections import Counter

from holdfast.core.cluster import ClusterState, NodeState, ReplicaStatus


def occupancy(state: ClusterState) -> Counter[str]:
    """How many replicas hold a slot on each node; one that is stopping holds its slot until it is gone."""
    return Counter([replica.node for replica in state.replicas.values() if replica.status is not ReplicaStatus.EXITED])


class Vacancies:
    """The live nodes with a free slot, for one replica after another: each that is taken counts for the next.

    The nodes stand in a heap, so that many replicas are placed on many nodes in little time.
    """

    def __init__(self, state: ClusterState, used: Counter[str]) -> None:
        """`used` is the occupancy."""
        self._heap = [(used[node.id], node.id, node) for node in state.live_nodes() if used[node.id] < node.slots]
        heapq.heapify(self._heap)

    def take(self, avoid: str | None = None) -> NodeState | None:
        """The node for one more replica, or None when no live node has room.

        Spreads by replica count, the node's name breaking ties. `avoid` is taken only if it is the least used by
        more than one replica: what just failed there may well fail there again.
        """
        if not self._heap:
            return None
        used, name, node = heapq.heappop(self._heap)
        if name == avoid and self._heap and self._heap[0][0] <= used + 1:
            used, name, node = heapq.heapreplace(self._heap, (used, name, node))
        if used + 1 < node.slots:
            heapq.heappush(self._heap, (used + 1, name, node))
        return node
