"""What a node counts, and shows on its system port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

from holdfast.actors.follower import Follower
from holdfast.actors.identity import Identity
from holdfast.actors.leasing import LeaseSession
from holdfast.actors.metric_families import (
    NODE,
    NODE_HEALTH_TRANSITIONS,
    NODE_INFO,
    NODE_LEADS,
    NODE_LEASE_AGE,
    NODE_LOG_SEQUENCE,
    NODE_REPLICAS,
    NODE_SLOTS,
    NODE_TASKS,
    REPLICA_EXITS,
    REPLICA_START,
)
from holdfast.actors.metrics import Ledger, Samples
from holdfast.core.events import Fact, ReplicaExited, ReplicaHealthy, ReplicaUnhealthy


class NodeMetrics:
    """A node's ledger, and what it counts in it."""

    def __init__(self, identity: Identity, version: str, slots: int) -> None:
        self.ledger = Ledger(NODE)
        self._identity = identity
        self._unhealthy: set[str] = set()
        self.ledger.read(NODE_INFO, lambda: [((identity.name, version), 1)])
        self.ledger.read(NODE_SLOTS, lambda: [((), slots)])
        self.ledger.read(NODE_TASKS, lambda: [((), len(asyncio.all_tasks()))])

    def show(self, follower: Follower, session: LeaseSession, replicas: Sized) -> None:
        """Have the ledger read what the node knows, its lease, and the replicas that it runs."""
        identity = self._identity

        def leads() -> Samples:
            state = follower.state
            return [((), (state.leader, state.leader_incarnation) == (identity.name, identity.incarnation))]

        self.ledger.read(NODE_LEADS, leads)
        self.ledger.read(NODE_REPLICAS, lambda: [((), len(replicas))])
        self.ledger.read(NODE_LOG_SEQUENCE, lambda: [((), follower.state.sequence)])
        self.ledger.read(NODE_LEASE_AGE, lease_age(session))

    def ready(self, after_s: float) -> None:
        """A replica is ready so long after its start."""
        self.ledger.observe(REPLICA_START, after_s)

    def judged(self, model: str, fact: Fact) -> None:
        """The log is told how a replica of this model is. That it is well may be told again; that is no transition."""
        if isinstance(fact, ReplicaUnhealthy):
            self._unhealthy.add(fact.replica)
            self.ledger.add(NODE_HEALTH_TRANSITIONS, model, "unhealthy", fact.kind)
        elif isinstance(fact, ReplicaHealthy) and fact.replica in self._unhealthy:
            self._unhealthy.discard(fact.replica)
            self.ledger.add(NODE_HEALTH_TRANSITIONS, model, "healthy", "well_again")

    def exited(self, fact: ReplicaExited) -> None:
        """A replica's process ended."""
        self._unhealthy.discard(fact.replica)
        self.ledger.add(REPLICA_EXITS, _how(fact))


def lease_age(session: LeaseSession) -> Callable[[], Samples]:
    """Reads how old the lease is; nothing before there is one."""
    return lambda: [] if session.age_s is None else [((), session.age_s)]


def _how(fact: ReplicaExited) -> str:
    if fact.expected:
        return "stopped"
    if fact.signal is not None:
        return "killed"
    return "unstarted" if fact.exit_code is None else "failed"
