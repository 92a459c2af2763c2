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

    `resting` are nodes that are taken only where no other one has room, by name, with how many starts failed there
    (`starts.py`). The nodes stand in a heap, so that many replicas are placed on many nodes in little time.
    """

    def __init__(self, state: ClusterState, used: Counter[str]) -> None:
        """`used` is the occupancy."""
        self.resting: Mapping[str, int] = {}
        self._heap = [_Place(used[node.id], node.id, node) for node in state.live_nodes() if used[node.id] < node.slots]
        heapq.heapify(self._heap)

    def take(self, avoid: str | None = None) -> NodeState | None:
        """The node for one more replica, or None when no live node has room.

        Spreads by replica count, the node's name breaking ties. `avoid` is taken only if it is the least used by
        more than one replica: what just failed there may well fail there again. Of the nodes that rest, the one on
        which the fewest starts failed is taken.
        """
        passed: list[_Place] = []
        place = self._next(passed)
        if place is not None and place.name == avoid:
            other = self._next(passed)
            if other is not None and other.used <= place.used + 1:
                place, other = other, place
            if other is not None:
                passed.append(other)
        if place is None and passed:
            place = min(passed, key=lambda one: (self.resting[one.name], one.name == avoid, one))
            passed.remove(place)
        for one in passed:
            heapq.heappush(self._heap, one)
        if place is None:
            return None
        used, name, node = place
        if used + 1 < node.slots:
            heapq.heappush(self._heap, _Place(used + 1, name, node))
        return node

    def _next(self, passed: list[_Place]) -> _Place | None:
        """The next one that does not rest; those that do are taken out of the heap as well, and put to `passed`."""
        while self._heap:
            place = heapq.heappop(self._heap)
            if place.name not in self.resting:
                return place
            passed.append(place)
        return None
