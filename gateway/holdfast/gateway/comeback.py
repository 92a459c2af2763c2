"""When a deployment without replicas should have one again, as well as the log lets a gateway know.

Times between events of one node are its clock's; how long ago something was is the loop's, from when it was read. So
no clocks are compared. What was read long after it happened counts as new: the estimate is then too long, never by
more than it comes to.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from holdfast.core.cluster import ClusterState, DeploymentState, ReplicaStatus
from holdfast.core.events import Record, ReplicaExited, ReplicaReady, ReplicaStarted
from holdfast.core.reconcile import pause_s

TAKES_SHARE = 0.5
"""How much of a new measurement of how long replicas take to start counts."""


class Comeback:
    """Follows replicas' starts and failures. A replica is forgotten once it is ready, or ended."""

    def __init__(self) -> None:
        self._starting: dict[str, tuple[datetime, float]] = {}
        self._takes_s: dict[str, float] = {}
        self._failed_s: dict[str, float] = {}

    def read(self, record: Record, state: ClusterState) -> None:
        """One more record, and the state after it."""
        payload, now_s = record.event.payload, asyncio.get_running_loop().time()
        if isinstance(payload, ReplicaStarted):
            self._starting[payload.replica] = (record.event.time, now_s)
        elif isinstance(payload, ReplicaReady | ReplicaExited):
            began = self._starting.pop(payload.replica, None)
            replica = state.replicas.get(payload.replica)
            if replica is None:
                return
            if isinstance(payload, ReplicaExited):
                self._failed_s[replica.deployment] = now_s
            elif began is not None:
                took_s = max(0.0, (record.event.time - began[0]).total_seconds())
                known_s = self._takes_s.get(replica.deployment, took_s)
                self._takes_s[replica.deployment] = known_s + (took_s - known_s) * TAKES_SHARE

    def keep(self, state: ClusterState, deployments: set[str]) -> None:
        """Forget all others, and what starts no longer."""
        for known in (self._takes_s, self._failed_s):
            for name in known.keys() - deployments:
                del known[name]
        for replica in [replica for replica in self._starting if not _starts(state, replica)]:
            del self._starting[replica]

    def due_s(self, state: ClusterState, name: str) -> float | None:
        """In how many seconds a replica should be ready where none is; None where nothing says so."""
        takes_s = self._takes_s.get(name)
        deployment = _deployment_of(state, name)
        if takes_s is None or deployment is None:
            return None
        now_s = asyncio.get_running_loop().time()
        starting = [
            max(0.0, since_s + takes_s - now_s)
            for replica, (_time, since_s) in self._starting.items()
            if _starts(state, replica) and state.replicas[replica].deployment == name
        ]
        if starting:
            return min(starting)
        failed_s = self._failed_s.get(name, now_s)
        return max(0.0, failed_s + pause_s(deployment) - now_s) + takes_s


def _starts(state: ClusterState, replica: str) -> bool:
    known = state.replicas.get(replica)
    return known is not None and known.status is ReplicaStatus.STARTING


def _deployment_of(state: ClusterState, name: str) -> DeploymentState | None:
    found = (one.deployments.get(name) for one in state.applications.values())
    return next((deployment for deployment in found if deployment is not None), None)
