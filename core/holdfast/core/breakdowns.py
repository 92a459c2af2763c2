"""Replicas that were ready and then broke down: which of them make a row, so that replacing them slows down.

One breakdown after another counts only where a replacement breaks down as well: many replicas that fail at once, for
one reason, are one. A row ends when a replica has been well for `proven_s`.

A signal from outside is no breakdown by itself: whoever kills replicas at random shall find them replaced at once. The
kernel that is short of memory sends the same signal, though, and kills every replacement too. So such ends make a row
of their own, by how soon and whom they strike, and count as breakdowns once it is longer than chance makes it.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from holdfast.core.cluster import DeploymentState, ReplicaState
from holdfast.core.config import DeploymentConfig
from holdfast.core.endings import ended_by_itself
from holdfast.core.events import ReplicaExited
from holdfast.core.starts import STABLE_AFTER_S

BREAKDOWNS_FATAL = 3
"""Breakdowns in a row before a deployment is called unhealthy, whatever runs at that moment."""

KILLED_AT_ONCE_S = 1.0
"""A replica that was ready for less than this when it was killed, in seconds, is in a row whichever it was. Those who
test a cluster with kills leave more time between them."""

KILLS_FREE = 3
"""Kills in such a row that count for nothing."""


def proven_s(config: DeploymentConfig) -> float:
    """How long a replica must have been well to end a row (seconds): all checks had the time to fail."""
    checks_s = config.health_check_failures * (config.health_check_period_s + config.health_check_timeout_s)
    return STABLE_AFTER_S + checks_s + config.canary_wait_s + config.canary_timeout_s


def broke_down(replica: ReplicaState, fact: ReplicaExited) -> bool:
    """Whether this end is a breakdown that has not been counted yet."""
    return ended_by_itself(fact) and replica.ready_at is not None and not replica.unhealthy


def was_killed(replica: ReplicaState, fact: ReplicaExited) -> bool:
    """Whether a replica that was ready, and well, got a signal from outside."""
    outside = fact.signal is not None and not fact.expected and not ended_by_itself(fact)
    return outside and replica.ready_at is not None and not replica.unhealthy


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


def count_kill(deployment: DeploymentState, replica: ReplicaState, now: datetime, message: str) -> DeploymentState:
    """The deployment after a signal from outside ended the replica.

    It is in the row if it struck the replica that was placed last, soon after that was ready, so that all kills in the
    row befell one place and what was put there; or any, at once. Of replicas placed before the last one in the row it
    is the same kill again. Another end is the row's.
    """
    ready_s = (now - replica.ready_at).total_seconds() if replica.ready_at is not None else 0.0
    last = replica.number == deployment.replicas_placed
    if ready_s >= (STABLE_AFTER_S if last else KILLED_AT_ONCE_S):
        return msgspec.structs.replace(deployment, kills=0)
    if replica.number <= deployment.killed_after:
        return deployment
    kills = deployment.kills + 1
    deployment = msgspec.structs.replace(deployment, kills=kills, killed_after=deployment.replicas_placed)
    if kills <= KILLS_FREE:
        return deployment
    return msgspec.structs.replace(
        deployment,
        breakdowns=max(deployment.breakdowns, kills - KILLS_FREE),
        broken_after=deployment.replicas_placed,
        breakdown_message=message,
        failed_at=now,
        failed_after=deployment.placed_at,
    )
