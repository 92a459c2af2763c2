"""Which starts of replicas failed, and how many in a row: what the pause before the next one follows from."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from holdfast.core.cluster import DeploymentState, ReplicaState, ReplicaStatus
from holdfast.core.events import ReplicaExited

STABLE_AFTER_S = 10.0
"""A replica that ends by itself sooner after it was ready than this, in seconds, counts as a failed start."""


def was_stable(replica: ReplicaState, now: datetime) -> bool:
    """Whether it has been ready for long enough by now to call its start a success."""
    return replica.ready_at is not None and (now - replica.ready_at).total_seconds() >= STABLE_AFTER_S


def start_failed(replica: ReplicaState, fact: ReplicaExited, now: datetime) -> bool:
    """Whether this end makes a failed start of the replica's.

    A signal to a replica that runs comes from outside: its engine is none the worse for it.
    """
    if fact.expected or was_stable(replica, now):
        return False
    return replica.status is ReplicaStatus.STARTING or fact.exit_code is not None


def count_failure(
    deployment: DeploymentState, replicas: Iterable[ReplicaState], now: datetime, message: str
) -> DeploymentState:
    """The deployment after one more failed start. A replica that has been stable since the last one ends the row."""
    failed_at = deployment.failed_at
    recovered = any(
        replica.revision == deployment.revision
        and replica.ready_at is not None
        and (failed_at is None or replica.ready_at > failed_at)
        and was_stable(replica, now)
        for replica in replicas
    )
    failures = 1 if recovered else deployment.unstable_starts + 1
    return msgspec.structs.replace(
        deployment,
        start_failures=failures,
        unstable_starts=failures,
        failed_at=now,
        failed_after=deployment.placed_at,
        message=message,
    )
