"""Which starts of replicas failed, and how many in a row: what the pause before the next one follows from, and where it
goes.

A failed start counts twice. For its deployment: the next start waits a little, and longer with each failure. And
against its node, which then rests: replicas go there only where no other node has room. A node whose GPU is gone has
no replicas, so it would be the emptiest, and be chosen again and again. It rests for the deployment alone whose replica
failed, which may be what is broken; for all once the deployment has started elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

import msgspec

from holdfast.core.cluster import ClusterState, DeploymentState, FailedStarts, ReplicaState, ReplicaStatus
from holdfast.core.endings import ended_by_itself
from holdfast.core.events import ReplicaExited
from holdfast.core.sharing import with_entry, without_entry

STABLE_AFTER_S = 10.0
"""A replica that ends by itself sooner after it was ready than this, in seconds, counts as a failed start."""

CLOCKS_APART_S = 1.0
"""Clocks of machines whose time is kept are closer than this, in seconds."""

NODE_REST_FIRST_S = 300.0
NODE_REST_MAX_S = 3_600.0
"""For how long a node rests after a failed start: doubling from the first to the largest with each further failure
before a replica gets ready there, in seconds. Once rested it is like any other, and the next start there tells."""


def was_stable(replica: ReplicaState, now: datetime) -> bool:
    """Whether it has been ready for long enough by now to call its start a success."""
    return replica.ready_at is not None and (now - replica.ready_at).total_seconds() >= STABLE_AFTER_S


def overdue(replica: ReplicaState) -> bool:
    """Whether it took too long to get ready, and has not since: its start has failed, and its process may go on."""
    return replica.status is ReplicaStatus.STARTING and bool(replica.unhealthy)


def start_failed(replica: ReplicaState, fact: ReplicaExited, now: datetime) -> bool:
    """Whether this end makes a failed start of the replica's.

    A signal from outside to a replica that runs is none; `breakdowns.py` counts those. Of one that took too long it
    was counted before.
    """
    if fact.expected or was_stable(replica, now) or overdue(replica):
        return False
    return replica.status is ReplicaStatus.STARTING or ended_by_itself(fact)


def failed_since(failed_at: datetime, failed_after: datetime | None, now: datetime) -> datetime | None:
    """When what follows from a failure began, by the leader's clock, which shows `now`; None where that can't be told.

    The failure has its node's time. Where that can't be right, as a failure is no earlier than the placement before it,
    at `failed_after`, and not from the future, it is that placement, which a leader timed: so a wait from then on stays
    bounded whatever that clock shows, and does not begin anew with every look, nor with every placement since.
    """
    latest = now + timedelta(seconds=CLOCKS_APART_S)
    plausible = failed_at <= latest and (failed_after is None or failed_at >= failed_after)
    since = failed_at if plausible else failed_after
    return None if since is None or since > latest else since


def count_failure(
    deployment: DeploymentState, replicas: Iterable[ReplicaState], failed: ReplicaState, now: datetime, message: str
) -> DeploymentState:
    """The deployment after one more start failed. A replica that has been stable since the last one ends the row."""
    failed_at = deployment.failed_at
    recovered = any(
        replica.revision == deployment.revision
        and replica.ready_at is not None
        and (failed_at is None or replica.ready_at > failed_at)
        and was_stable(replica, now)
        for replica in replicas
    )
    failures = 1 if recovered else deployment.unstable_starts + 1
    before = deployment.failed_on.get(failed.node)
    on_node = before.failures if before is not None and before.node_incarnation == failed.node_incarnation else 0
    row = FailedStarts(failed.node_incarnation, on_node + 1, now, deployment.placed_at, message)
    return msgspec.structs.replace(
        deployment,
        start_failures=failures,
        unstable_starts=failures,
        failed_at=now,
        failed_after=deployment.placed_at,
        failed_on=with_entry(deployment.failed_on, failed.node, row),
        message=message,
    )


def count_start(deployment: DeploymentState, replica: ReplicaState) -> DeploymentState:
    """The deployment after the replica got ready."""
    failed_on = without_entry(deployment.failed_on, replica.node)
    return msgspec.structs.replace(deployment, start_failures=0, message="", ran=True, failed_on=failed_on)


def rests_until(row: FailedStarts, now: datetime) -> datetime | None:
    """Until when the node rests because of these failures; None if it does not any more."""
    since = failed_since(row.failed_at, row.failed_after, now)
    if since is None:
        return None
    until = since + timedelta(seconds=min(NODE_REST_FIRST_S * 2 ** min(row.failures - 1, 16), NODE_REST_MAX_S))
    return until if now < until else None


def resting_for_all(state: ClusterState, now: datetime) -> dict[str, int]:
    """The nodes that rest whatever is to be placed, and how many starts in a row failed there.

    What failed there has started elsewhere, so that it is not to blame itself.
    """
    found: dict[str, int] = {}
    for application in state.applications.values():
        for deployment in application.deployments.values():
            if deployment.ran:
                for node, row in resting(state, deployment, now):
                    found[node] = max(found.get(node, 0), row.failures)
    return found


def resting_for(
    state: ClusterState, deployment: DeploymentState, for_all: Mapping[str, int], now: datetime
) -> Mapping[str, int]:
    """The nodes that rest when a replica of this deployment is to be placed; `for_all` are those of the function."""
    own = {node: row.failures for node, row in resting(state, deployment, now)}
    return {**for_all, **own} if own else for_all


def resting(state: ClusterState, deployment: DeploymentState, now: datetime) -> Iterator[tuple[str, FailedStarts]]:
    """The nodes that rest because of the deployment's failed starts. One whose process was started anew does not."""
    for name, row in deployment.failed_on.items():
        node = state.nodes.get(name)
        if node is not None and node.incarnation == row.node_incarnation and rests_until(row, now) is not None:
            yield name, row
