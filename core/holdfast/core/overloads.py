"""The fold of the events of overload: which thresholds are asked for, and which hold."""

from __future__ import annotations

import msgspec

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, PendingThresholds
from holdfast.core.sharing import with_entry, without_entry


def threshold_requested(state: ClusterState, event: ev.Event, fact: ev.BusyThresholdRequested) -> ClusterState:
    """The last that is asked for a model is what is decided."""
    request = PendingThresholds(event.id, fact.thresholds)
    requests = with_entry(state.threshold_requests, fact.model, request)
    return msgspec.structs.replace(state, threshold_requests=requests)


def threshold_set(state: ClusterState, event: ev.Event, decision: ev.BusyThresholdSet) -> ClusterState:
    """It holds for all deployments of that name. A request that came in between waits for its own decision."""
    request = state.threshold_requests.get(decision.model)
    if request is not None and request.event == event.cause:
        requests = without_entry(state.threshold_requests, decision.model)
        state = msgspec.structs.replace(state, threshold_requests=requests)
    for application in state.applications.values():
        deployment = application.deployments.get(decision.model)
        if deployment is not None:
            changed = msgspec.structs.replace(deployment, thresholds=decision.thresholds)
            deployments = with_entry(application.deployments, decision.model, changed)
            application = msgspec.structs.replace(application, deployments=deployments)
            state = msgspec.structs.replace(
                state, applications=with_entry(state.applications, application.name, application)
            )
    return state
