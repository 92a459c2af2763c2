"""Replicas that were ready and then broke down: which of them make a row, so that replacing them slows down.

One breakdown after another counts only where a replacement breaks down as well: many replicas that fail at once, for
one reason, are one. A row ends when a replica has been well for `proven_s`.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from holdfast.core.cluster import DeploymentState, ReplicaState
from holdfast.core.config import DeploymentConfig
from holdfast.core.events import ReplicaExited
from holdfast.core.starts import STABLE_AFTER_S

BREAKDOWNS_FATAL = 3
"""Breakdowns in a row before a deployment is called unhealthy, whatever runs at that moment."""


def proven_s(config: DeploymentConfig) -> float:
    """How long a replica must have been well to end a row (seconds): all checks had the time to fail."""
    checks_s = config.health_check_failures * (config.health_check_period_s + config.health_check_timeout_s)
    return STABLE_AFTER_S + checks_s + config.canary_wait_s + config.canary_timeout_s


def broke_down(replica: ReplicaState, fact: ReplicaExited) -> bool:
    """Whether this end is a breakdown that has not been counted yet.

    A signal comes from outside: the replica is none the worse for it.
    """
    by_itself = fact.exit_code is not None and not fact.expected
    return by_itself and replica.ready_at is not None and not replica.unhealthy


def count_breakdown(deployment: DeploymentState, replica: ReplicaState, now: datetime, message: str) -> DeploymentState:
    """The deployment after the replica broke down."""
    row = deployment.breakdowns
    well_s = (now - replica.ready_at).total_seconds() if replica.ready_at is not None else 0.0
    if row and well_s < proven_s(deployment.config) and replica.number <= deployment.broken_after:
        return deployment
    return msgspec.structs.replace(
        deployment,
        breakdowns=1 if well_s >= proven_s(deployment.config) else row + 1,
        broken_after=deployment.replicas_placed,
        breakdown_message=message,
        failed_at=now,
        failed_after=deployment.placed_at,
    )
