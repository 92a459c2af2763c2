"""Where a new replica goes: the live node with the fewest replicas that still has a free slot, and does not rest."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from holdfast.core.cluster import ClusterState, NodeState, ReplicaStatus


def occupancy(state: ClusterState) -> Counter[str]:
    """How many replicas hold a slot on each node; one that is stopping holds its slot until it is gone."""
    return Counter([replica.node for replica in state.replicas.values() if replica.status is not ReplicaStatus.EXITED])


class _Place(NamedTuple):
    """A node with a free slot. The fewer replicas it has, the smaller; its name breaks ties."""

    used: int
    name: str
    node: NodeState


class Vacancies:
    """The live nodes with a free slot, for one replica after another: each that is taken counts for the next.

    They stand in heaps, so that many replicas are placed on many nodes in little time: those that rest in another one
    than those that do not.
    """

    def __init__(self, state: ClusterState, used: Counter[str]) -> None:
        """`used` is the occupancy."""
        self.resting: Mapping[str, int] = {}
        self._heap = [_Place(used[node.id], node.id, node) for node in state.live_nodes() if used[node.id] < node.slots]
        heapq.heapify(self._heap)
        self._rested: list[tuple[int, _Place]] = []

    def rest(self, resting: Mapping[str, int]) -> None:
        """From now on these nodes are taken only where no other one has room: by name, with how many starts failed
        there (`starts.py`).
        """
        if resting == self.resting:
            return
        places = [*self._heap, *(place for _weight, place in self._rested)]
        self.resting = resting
        self._heap = [place for place in places if place.name not in resting]
        # By failures alone one would get everything; by replicas alone it would be one on which nothing starts.
        self._rested = [(place.used + resting[place.name], place) for place in places if place.name in resting]
        heapq.heapify(self._heap)
        heapq.heapify(self._rested)

    def take(self, avoid: str | None = None) -> NodeState | None:
        """The node for one more replica, or None when no live node has room.

        Spreads by replica count, the node's name breaking ties. `avoid` is taken only if it is the least used by
        more than one replica: what just failed there may well fail there again. On nodes that rest each failed start
        counts as one more replica; of those that then have as many the one is taken that has fewer.
        """
        if not self._heap:
            return self._take_rested()
        place = heapq.heappop(self._heap)
        if place.name == avoid and self._heap and self._heap[0].used <= place.used + 1:
            place = heapq.heapreplace(self._heap, place)
        used, name, node = place
        if used + 1 < node.slots:
            heapq.heappush(self._heap, _Place(used + 1, name, node))
        return node

    def _take_rested(self) -> NodeState | None:
        if not self._rested:
            return None
        weight, (used, name, node) = heapq.heappop(self._rested)
        if used + 1 < node.slots:
            heapq.heappush(self._rested, (weight + 1, _Place(used + 1, name, node)))
        return node
