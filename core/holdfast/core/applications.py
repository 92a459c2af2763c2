"""The fold of the events of applications: what operators ask for, and the goal that the leader sets."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.core import events as ev
from holdfast.core.cluster import (
    ApplicationState,
    ClusterState,
    DeploymentState,
    PendingRequest,
    Reducers,
    ReplicaStatus,
)
from holdfast.core.config import DeploymentConfig
from holdfast.core.sharing import with_entry, without_entry
from holdfast.core.thresholds import NONE_SET


def _deploy_requested(state: ClusterState, event: ev.Event, fact: ev.DeployRequested) -> ClusterState:
    request = PendingRequest(event.id, fact.application)
    return msgspec.structs.replace(state, requests=with_entry(state.requests, fact.application.name, request))


def _delete_requested(state: ClusterState, event: ev.Event, fact: ev.DeleteRequested) -> ClusterState:
    request = PendingRequest(event.id, fact.application)
    return msgspec.structs.replace(state, requests=with_entry(state.requests, fact.application, request))


def _application_deployed(state: ClusterState, event: ev.Event, decision: ev.ApplicationDeployed) -> ClusterState:
    name = decision.application.name
    before = state.applications.get(name)
    state = _forget_exited(_remember_numbers(state, before), name)
    deployments = {
        config.name: _deployment(state, before, name, config, event) for config in decision.application.deployments
    }
    application = ApplicationState(name, event.time, event.id, deployments)
    return msgspec.structs.replace(
        state,
        applications=with_entry(state.applications, name, application),
        requests=_without_decided(state, event, name),
    )


def _deployment(
    state: ClusterState, application: ApplicationState | None, name: str, config: DeploymentConfig, event: ev.Event
) -> DeploymentState:
    before = application.deployments.get(config.name) if application else None
    if before is None:
        # Replicas of a deployment of this name that was deleted may still be there, and are outdated.
        revision = 1 + max((replica.revision for replica in state.replicas_of(name, config.name)), default=0)
        return DeploymentState(config, event.id, revision, state.numbered.get(f"{name}.{config.name}", 0))
    revision = before.revision + (config.engine != before.config.engine)
    ran = before.ran and revision == before.revision
    failed_on = before.failed_on if revision == before.revision else {}
    thresholds = before.thresholds if config.thresholds == before.config.thresholds else NONE_SET
    return DeploymentState(
        config, event.id, revision, before.replicas_placed, failed_on=failed_on, ran=ran, thresholds=thresholds
    )


def _application_deleted(state: ClusterState, event: ev.Event, decision: ev.ApplicationDeleted) -> ClusterState:
    state = _remember_numbers(state, state.applications.get(decision.application))
    state = _forget_exited(state, decision.application)
    return msgspec.structs.replace(
        state,
        applications=without_entry(state.applications, decision.application),
        requests=_without_decided(state, event, decision.application),
    )


def _without_decided(state: ClusterState, event: ev.Event, application: str) -> Mapping[str, PendingRequest]:
    """The requests without the one that this decides. One that came in between waits for its own decision."""
    request = state.requests.get(application)
    if request is not None and request.event == event.cause:
        return without_entry(state.requests, application)
    return state.requests


def _remember_numbers(state: ClusterState, application: ApplicationState | None) -> ClusterState:
    if application is None:
        return state
    numbers = {
        f"{application.name}.{name}": deployment.replicas_placed for name, deployment in application.deployments.items()
    }
    return msgspec.structs.replace(state, numbered={**state.numbered, **numbers})


def _forget_exited(state: ClusterState, application: str) -> ClusterState:
    """A new goal is a new count: what exited under the old one needs no replacement by name."""
    replicas = {
        replica.id: replica
        for replica in state.replicas.values()
        if replica.application != application or replica.status is not ReplicaStatus.EXITED
    }
    return msgspec.structs.replace(state, replicas=replicas)


REDUCERS: Reducers = {
    ev.ApplicationDeployed: _application_deployed,
    ev.ApplicationDeleted: _application_deleted,
    ev.DeployRequested: _deploy_requested,
    ev.DeleteRequested: _delete_requested,
}
