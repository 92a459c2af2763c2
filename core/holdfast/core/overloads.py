"""The fold of the events of overload: which thresholds are asked for, and which hold."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, PendingThresholds, Reducers
from holdfast.core.sharing import with_entry, without_entry
from holdfast.core.thresholds import NONE_SET, Thresholds

REQUESTS_MAX = 256
"""So many changes may wait to be decided. More are passed over: while nobody leads, none of them is decided in time."""


def _threshold_requested(state: ClusterState, event: ev.Event, fact: ev.BusyThresholdRequested) -> ClusterState:
    """It waits for its decision, behind those that were asked for before."""
    if len(state.threshold_requests) >= REQUESTS_MAX:
        return state
    requests = with_entry(state.threshold_requests, event.id, PendingThresholds(fact.model, fact.changes))
    return msgspec.structs.replace(state, threshold_requests=requests)


def threshold_decisions(state: ClusterState) -> Iterator[tuple[ev.BusyThresholdSet, str]]:
    """What is to be decided, with the request that is the cause: one decision for each, in order, upon the last one."""
    after: dict[str, Thresholds] = {}
    for request, pending in state.threshold_requests.items():
        before = after.get(pending.model) or _held(state, pending.model)
        after[pending.model] = pending.changes.made_to(before)
        yield ev.BusyThresholdSet(pending.model, after[pending.model]), request


def _held(state: ClusterState, model: str) -> Thresholds:
    applications = state.applications.values()
    return next((one.deployments[model].thresholds for one in applications if model in one.deployments), NONE_SET)


def _threshold_set(state: ClusterState, event: ev.Event, decision: ev.BusyThresholdSet) -> ClusterState:
    """It holds for all deployments of that name. A request that came in between waits for its own decision."""
    state = _without_decided(state, event.cause, decision.model)
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


def _without_decided(state: ClusterState, cause: str | None, model: str) -> ClusterState:
    """Without the request, and those for the model before it: until schema 3 only the last one was decided."""
    requests = state.threshold_requests
    if cause is None or cause not in requests:
        return state
    for request, pending in list(requests.items()):
        if pending.model == model:
            requests = without_entry(requests, request)
        if request == cause:
            break
    return msgspec.structs.replace(state, threshold_requests=requests)


REDUCERS: Reducers = {
    ev.BusyThresholdRequested: _threshold_requested,
    ev.BusyThresholdSet: _threshold_set,
}
