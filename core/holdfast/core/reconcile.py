"""What should be: from the state and the evidence, the decisions that bring the cluster nearer to its goal.

Pure: called again after every change, it must be quiet (return nothing) once goal and state agree. Each
decision comes with the id of the event that caused it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

import msgspec

from holdfast.core import events as ev
from holdfast.core.barren import NO_TOKEN
from holdfast.core.cluster import (
    LOSS_INTERVAL_S,
    ApplicationState,
    ClusterState,
    DeploymentState,
    MemberStatus,
    PendingDrain,
    ReplicaState,
    ReplicaStatus,
)
from holdfast.core.config import ApplicationConfig, DrainMode
from holdfast.core.drains import Leaving, leaving, nodes_left
from holdfast.core.overloads import threshold_decisions
from holdfast.core.placement import Vacancies, occupancy
from holdfast.core.starts import failed_since, overdue, resting_for, resting_for_all

START_BACKOFF_FIRST_S = 0.5
START_BACKOFF_MAX_S = 30.0
"""Between starts of a replica that fails (`DeploymentState`): doubling from the first to the largest, in seconds."""

START_FAILURES_FATAL = 3
"""Starts in a row that failed before a deployment is called failed (it is tried again all the same)."""

LOSS_FRACTION_MAX = 0.2
"""At most this part of the replicas, but at least one node's, is given up on lease evidence in `LOSS_INTERVAL_S`.
Nodes whose process was seen to end count, and are given up regardless."""

UNHEALTHY_FRACTION_MAX = 0.2
"""At most this part of a deployment's replicas, but at least one, is being taken out for its health at a time: a check
that fails everywhere must not take everything down."""

ROUND_MAX = 100
"""So many decisions are taken in one round: what happens while they are appended is looked at before the next."""


class Proposal(msgspec.Struct, frozen=True):
    """A decision to append, and the event that caused it."""

    payload: ev.Decision
    cause: str


class Plan(msgspec.Struct, frozen=True):
    """What to decide now, and when to look again even if nothing happens (None: no need)."""

    proposals: list[Proposal]
    look_again_at: datetime | None = None


class Evidence(msgspec.Struct, frozen=True):
    """What the leases say: incarnations of nodes and gateways whose lease is gone, as (id, incarnation).

    Only members that had been seen alive under a lease, or that have had a full TTL to get one, belong here, and
    those whose process was seen to end, which are in `ended` as well, or that gave their lease up since they can't
    reach the log, which are in `cut_off`.
    """

    nodes_expired: frozenset[tuple[str, str]] = frozenset()
    gateways_expired: frozenset[tuple[str, str]] = frozenset()
    ended: frozenset[tuple[str, str]] = frozenset()
    cut_off: frozenset[tuple[str, str]] = frozenset()

    def reason(self, member: tuple[str, str]) -> str:
        """Why the member is given up, for people."""
        if member in self.ended:
            return "its process ended"
        return "it can't reach the log and gave up its lease" if member in self.cut_off else "its lease expired"


_Replicas = Mapping[tuple[str, str], list[ReplicaState]]
"""Replicas by (application, deployment), oldest first."""


def reconcile(state: ClusterState, evidence: Evidence, now: datetime) -> Plan:
    """The next decisions. One round's decisions are all derived from `state`; append them in order."""
    goals = [_decide_request(request.application, request.event) for request in state.requests.values()]
    goals += [_decide_drain(request) for request in state.drain_requests.values()]
    if not state.requests:  # what is deployed may take thresholds back; changes are made to those that hold then
        goals += [Proposal(decision, cause) for decision, cause in threshold_decisions(state)]
    look_again: list[datetime] = []
    losses = [*_lost_nodes(state, evidence, now, look_again), *_lost_gateways(state, evidence)]
    if goals or losses:
        # Placement must see these first: it is done in the next round, on the state that includes them.
        return Plan((goals + losses)[:ROUND_MAX])
    replicas: dict[tuple[str, str], list[ReplicaState]] = {}
    for replica in state.replicas.values():
        replicas.setdefault((replica.application, replica.deployment), []).append(replica)
    proposals = itertools.chain(_stop_unwanted(state, replicas), _converge_all(state, replicas, now, look_again))
    return Plan(list(itertools.islice(proposals, ROUND_MAX)), min(look_again, default=None))


def _decide_request(application: ApplicationConfig | str, cause: str) -> Proposal:
    if isinstance(application, str):
        return Proposal(ev.ApplicationDeleted(application), cause)
    return Proposal(ev.ApplicationDeployed(application), cause)


def _decide_drain(request: PendingDrain) -> Proposal:
    if not request.wanted:
        return Proposal(ev.DrainLifted(request.kind, request.name), request.event)
    return Proposal(ev.DrainOrdered(request.kind, request.name, request.mode, request.deadline_s), request.event)


def _lost_nodes(
    state: ClusterState, evidence: Evidence, now: datetime, look_again: list[datetime]
) -> Iterator[Proposal]:
    """Nodes to give up: those whose process was seen to end, and of the others the smallest first, within the blast
    radius: leases alone must not empty the cluster.
    """
    if not evidence.nodes_expired:
        return
    used = occupancy(state)
    recent = state.losses if state.losses is not None and state.losses.recent(now) else None
    given_up = recent.replicas if recent else 0
    budget = LOSS_FRACTION_MAX * (sum(used.values()) + given_up)
    expired = [
        node
        for node in state.nodes.values()
        if node.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)
        and (node.id, node.incarnation) in evidence.nodes_expired
    ]
    certain = {node.id for node in expired if (node.id, node.incarnation) in evidence.ended}
    for node in sorted(expired, key=lambda node: (node.id not in certain, used[node.id], node.id)):
        over_budget = given_up > 0 and used[node.id] and given_up + used[node.id] > budget
        if over_budget and node.id not in certain:
            if recent:
                look_again.append(recent.since + timedelta(seconds=LOSS_INTERVAL_S))
            return
        given_up += used[node.id]
        reason = evidence.reason((node.id, node.incarnation))
        yield Proposal(ev.NodeLost(node.id, node.incarnation, reason), node.event)


def _lost_gateways(state: ClusterState, evidence: Evidence) -> Iterator[Proposal]:
    for gateway in state.gateways.values():
        member = (gateway.id, gateway.incarnation)
        expired = member in evidence.gateways_expired
        if gateway.status in (MemberStatus.ALIVE, MemberStatus.STOPPING) and expired:
            yield Proposal(ev.GatewayLost(*member, evidence.reason(member)), gateway.event)


def _stop_unwanted(state: ClusterState, replicas: _Replicas) -> Iterator[Proposal]:
    """Replicas whose application or deployment is gone."""
    for (name, deployment), members in replicas.items():
        application = state.applications.get(name)
        if application is not None and deployment in application.deployments:
            continue
        for replica in members:
            if replica.status is not ReplicaStatus.STOPPING:
                cause = application.event if application else replica.event
                yield Proposal(ev.ReplicaStopOrdered(replica.id, "its deployment was deleted"), cause)


def _converge_all(
    state: ClusterState, replicas: _Replicas, now: datetime, look_again: list[datetime]
) -> Iterator[Proposal]:
    vacancies: Vacancies | None = None
    rest: Mapping[str, int] = {}
    nodes = nodes_left(state)
    for application in state.applications.values():
        for deployment in application.deployments.values():
            standing = _standing(deployment, replicas.get((application.name, deployment.config.name), ()), nodes)
            missing = standing.missing(deployment.config.num_replicas)
            if missing > 0:
                retry_at = _retry_at(deployment, now)
                if retry_at is not None and retry_at > now:
                    look_again.append(retry_at)
                else:
                    if vacancies is None:
                        vacancies, rest = Vacancies(state, occupancy(state)), resting_for_all(state, now)
                    vacancies.rest(resting_for(state, deployment, rest, now))
                    yield from _fill(application, deployment, standing, missing, vacancies)
            for replica in standing.overdue:
                # It has no streams, so that it needs no time; and what hangs may not even read that it shall stop.
                reason = f"its start failed: {replica.message}"
                yield Proposal(ev.ReplicaStopOrdered(replica.id, reason, deadline_s=0.0), replica.event)
            yield from _stop_surplus(deployment, standing)
            yield from _stop_leaving(deployment, standing, now, look_again)
            if missing <= 0:
                for replica in standing.exited:
                    yield Proposal(ev.ReplicaStopOrdered(replica.id, "it is no longer needed"), replica.event)


class _Standing(msgspec.Struct, frozen=True):
    """A deployment's replicas, oldest first: those of its current revision, of earlier ones, those that ended, and
    those that took too long to get ready.

    Those that shall go for another reason, whatever their revision, are `leaving` and in none of the others.
    """

    current: list[ReplicaState] = []
    outdated: list[ReplicaState] = []
    exited: list[ReplicaState] = []
    overdue: list[ReplicaState] = []
    leaving: list[tuple[ReplicaState, Leaving]] = []

    @property
    def running(self) -> int:
        """How many of those that stay serve already."""
        return sum(replica.status is ReplicaStatus.RUNNING for replica in self.current)

    def missing(self, wanted: int) -> int:
        """How many to start now."""
        missing = wanted - len(self.current)
        if self.outdated:
            # A rolling update: one more than wanted at a time, so that capacity never falls; who leaves is replaced
            # beside that, for whoever sends them away waits.
            at_once = max(1, len(self.leaving))
            missing = min(missing, at_once - (len(self.current) - self.running))
        return missing

    def free_to_go(self, wanted: int) -> frozenset[str]:
        """Those that go and can go now: who leaves before who is outdated, and who does not serve yet before who does.

        As many remain as are wanted, and as many that serve, or all that do.
        """
        going = [*(replica for replica, _why in self.leaving), *self.outdated]
        serving = [replica for replica in going if replica.status is ReplicaStatus.RUNNING]
        idle = [replica for replica in going if replica.status is not ReplicaStatus.RUNNING]
        spare = max(0, self.running + len(going) - wanted)
        spare_serving = max(0, min(spare - len(idle), self.running + len(serving) - wanted))
        return frozenset(replica.id for replica in (*idle[:spare], *serving[:spare_serving]))

    def others_serve(self, replica: ReplicaState, wanted: int) -> bool:
        """Whether any but this one, which leaves, serves and does not go now."""
        going = {replica.id, *self.free_to_go(wanted)}
        others = [*self.current, *self.outdated, *(one for one, _why in self.leaving)]
        return any(one.status is ReplicaStatus.RUNNING and one.id not in going for one in others)


def _standing(deployment: DeploymentState, replicas: Iterable[ReplicaState], nodes: Mapping[str, Leaving]) -> _Standing:
    replicas, standing = list(replicas), _Standing()
    budget = _health_budget(deployment, replicas)
    for replica in replicas:
        if replica.status is ReplicaStatus.EXITED:
            standing.exited.append(replica)
        elif replica.status is ReplicaStatus.STOPPING:
            continue
        elif overdue(replica):
            standing.overdue.append(replica)
        elif (why := leaving(replica, nodes)) is not None:
            standing.leaving.append((replica, why))
        elif replica.unhealthy and budget > 0 and replica.revision == deployment.revision:
            reason = f"it is unhealthy: {replica.message}"
            # From an engine that makes nothing there is nothing to wait for.
            mode: DrainMode | None = "migrate" if replica.unhealthy == NO_TOKEN else None
            standing.leaving.append((replica, Leaving(reason, replica.event, mode, makes_room=True)))
            budget -= 1
        else:
            (standing.current if replica.revision == deployment.revision else standing.outdated).append(replica)
    return standing


def _health_budget(deployment: DeploymentState, replicas: list[ReplicaState]) -> int:
    """How many more unhealthy replicas may be taken out: those that are stopping count until they are gone."""
    sick = [replica for replica in replicas if replica.unhealthy and replica.ready_at is not None]
    going = sum(replica.status is ReplicaStatus.STOPPING for replica in sick)
    return max(1, int(deployment.config.num_replicas * UNHEALTHY_FRACTION_MAX)) - going


def pause_s(deployment: DeploymentState) -> float:
    """How long after its last failure a deployment's next replica is started (seconds); 0 for at once."""
    # The first breakdown is answered at once: what broke down had run.
    row = max(deployment.unstable_starts, deployment.breakdowns - 1)
    return min(START_BACKOFF_FIRST_S * 2 ** min(row - 1, 16), START_BACKOFF_MAX_S) if row > 0 else 0.0


def _retry_at(deployment: DeploymentState, now: datetime) -> datetime | None:
    """When a replica may be started again after failed starts; None for at once."""
    backoff_s = pause_s(deployment)
    if deployment.failed_at is None or not backoff_s:
        return None
    since = failed_since(deployment.failed_at, deployment.failed_after, now)
    if since is None:
        return None
    return since + timedelta(seconds=backoff_s)


def _fill(
    application: ApplicationState,
    deployment: DeploymentState,
    standing: _Standing,
    missing: int,
    vacancies: Vacancies,
) -> Iterator[Proposal]:
    """New replicas, those that exited replaced by name first. Stops when no node has room, but for what can make it.

    Room on nodes that rest is used, and does not keep others from making better room.
    """
    exited, crowded = standing.exited, False
    cause = standing.leaving[0][1].cause if standing.leaving else deployment.event
    for number in range(missing):
        gone = exited[number] if number < len(exited) else None
        node = vacancies.take(avoid=gone.node if gone else None)
        if not crowded and (node is None or node.id in vacancies.resting):
            crowded = True
            yield from _make_room(standing, deployment.config.num_replicas, None if node is None else vacancies.resting)
        if node is None:
            return
        name = f"{application.name}.{deployment.config.name}.{deployment.replicas_placed + number + 1}"
        where = (name, application.name, deployment.config.name, node.id, node.incarnation)
        if gone is None:
            yield Proposal(ev.ReplicaPlaced(*where), cause)
        else:
            yield Proposal(ev.ReplicaReplaced(*where, replaces=gone.id, reason=gone.message), gone.event)


def _stop_surplus(deployment: DeploymentState, standing: _Standing) -> Iterator[Proposal]:
    """Stop what is too many: outdated replicas as current ones get ready, of the current those that don't run yet and
    then the newest.

    Those that leave for another reason go first.
    """
    wanted = deployment.config.num_replicas
    free = standing.free_to_go(wanted)
    for replica in standing.outdated:
        if replica.id in free:
            yield Proposal(ev.ReplicaStopOrdered(replica.id, "a newer revision runs"), deployment.event)
    for replica in sorted(standing.current, key=lambda one: one.status is not ReplicaStatus.RUNNING)[wanted:]:
        yield Proposal(ev.ReplicaStopOrdered(replica.id, "fewer replicas are wanted"), deployment.event)


def _stop_leaving(
    deployment: DeploymentState, standing: _Standing, now: datetime, look_again: list[datetime]
) -> Iterator[Proposal]:
    """Stop who leaves as the others are enough, or because the time for that is over."""
    free = standing.free_to_go(deployment.config.num_replicas)
    for replica, why in standing.leaving:
        if replica.id in free or why.expired(now):
            reason = f"{why.reason}, and {'it is replaced' if replica.id in free else 'its time is over'}"
            stop = ev.ReplicaStopOrdered(replica.id, reason, why.mode, why.left_s(now))
            yield Proposal(stop, why.cause)
        elif why.ends is not None:
            look_again.append(why.ends)


def _make_room(standing: _Standing, wanted: int, resting: Mapping[str, int] | None) -> Iterator[Proposal]:
    """Who serves nothing, or badly, goes before its replacement is there, where that would find no room.

    Where there is room on nodes that rest, which are then given, only one whose node does not rest makes better room;
    and the last that serves, however badly, waits for the start there.
    """
    for replica, why in standing.leaving:
        serves = replica.unhealthy != NO_TOKEN
        last = serves and resting is not None and not standing.others_serve(replica, wanted)
        if why.makes_room and not last and replica.node not in (resting or ()):
            reason = f"{why.reason}, and it makes room for its replacement"
            yield Proposal(ev.ReplicaStopOrdered(replica.id, reason, why.mode), why.cause)
            return
