"""What operators ask for: it is decided as they asked, the last wish last, and holds until somebody asks for another.

What should be is worked out anew from what the events of the log say, without the production fold, which is then held
against it: a fold that forgets a wish, a drain or a change of engines does so in every process alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, DeploymentState
from holdfast.core.events import Event
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History

WISHES: Final = "wishes"

APPLICATION: Final = "application"

Subject = tuple[str, str]
"""What a wish is about: an application, a node, a replica or a gateway, by its kind and name."""

Wish = ev.DeployRequested | ev.DeleteRequested | ev.DrainRequested | ev.UndrainRequested
Answer = ev.ApplicationDeployed | ev.ApplicationDeleted | ev.DrainOrdered | ev.DrainLifted


def wishes(history: History, judged: Judged) -> list[Violation]:
    """Each decision on a wish is what its wish asked for, and its only one; the last wish about anybody is decided once
    nothing breaks any more. What was decided is in the state: configurations, a new revision exactly where the engine
    changed, and drains, through all restarts. Who stops by a drain does so in its way.
    """
    log = final_log(history)
    walk = _Walk()
    effective = {place for place, _record in log.effective()}
    found: list[Violation] = []
    for place, record in enumerate(log.records):
        event, before, after = record.event, log.states[place], log.states[place + 1]
        judged["decisions"] += place in effective and isinstance(event.payload, Answer)
        told = list(walk.step(event, before, after, counts=place in effective))
        found += [Violation(WISHES, log.times[place], f"sequence {record.sequence}: {text}") for text in told]
    return [*found, *_undecided(history, log, walk, judged)]


class _Walk:
    """The wishes and decisions of the log, one after the other. `last` has the last wish about each subject."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Subject, Wish]] = {}
        self.last: dict[Subject, str] = {}
        self.decided: set[str] = set()
        self._drains: dict[Subject, str] = {}
        self._orders: dict[str, ev.DrainOrdered] = {}

    def step(self, event: Event, before: ClusterState, after: ClusterState, *, counts: bool) -> Iterator[str]:
        """Take an event in, which `counts` if it is a decision that is valid; what is wrong with it."""
        match event.payload:
            case ev.DeployRequested() | ev.DeleteRequested() | ev.DrainRequested() | ev.UndrainRequested() as wish:
                subject = _subject(wish)
                self.asked[event.id] = (subject, wish)
                self.last[subject] = event.id
            case ev.ApplicationDeployed() | ev.ApplicationDeleted() | ev.DrainOrdered() | ev.DrainLifted() as answer:
                if counts:
                    yield from self._answered(event, answer, before, after)
            case ev.ReplicaPlaced() | ev.ReplicaReplaced() as placed:
                if counts:
                    yield from _revision_of(placed, after)
            case ev.ReplicaStopOrdered() as order:
                if counts:
                    yield from self._stopped(event.cause or "", order)
        yield from self._drained(before, after)

    def _answered(self, event: Event, answer: Answer, before: ClusterState, after: ClusterState) -> Iterator[str]:
        cause, what = event.cause or "", ev.type_name(answer)
        subject = _subject(answer)
        if cause not in self.asked or self.asked[cause][0] != subject:
            yield f"{what} of {subject[1]}, for which nobody had asked"
        else:
            if cause in self.decided:
                yield f"{what} of {subject[1]} is the second decision on {cause}"
            if not _grants(answer, self.asked[cause][1]):
                yield f"{what} of {subject[1]} is not what {cause} asks for"
        self.decided.add(cause)
        if isinstance(answer, ev.ApplicationDeployed | ev.ApplicationDeleted):
            yield from _applied(answer, before, after)
        else:
            self._drain(event.id, answer, before)

    def _drain(self, event: str, answer: ev.DrainOrdered | ev.DrainLifted, before: ClusterState) -> None:
        subject = _subject(answer)
        self._drains.pop(subject, None)
        if isinstance(answer, ev.DrainOrdered):
            self._orders[event] = answer
            if subject in _drains(before):
                self._drains[subject] = event

    def _stopped(self, cause: str, order: ev.ReplicaStopOrdered) -> Iterator[str]:
        drain = self._orders.get(cause)
        if drain is None:
            return
        how, asked = (order.mode, order.deadline_s), (drain.mode, drain.deadline_s)
        in_time = order.deadline_s is None if drain.deadline_s is None else (order.deadline_s or 0.0) >= 0
        in_time = in_time and (order.deadline_s or 0.0) <= (drain.deadline_s or 0.0)
        if order.mode != drain.mode or not in_time:
            yield f"{order.replica} stops by a drain, with {how}, and {asked} was ordered"

    def _drained(self, before: ClusterState, after: ClusterState) -> Iterator[str]:
        """Nobody is drained, or back, but by a decision."""
        same = before.nodes is after.nodes and before.gateways is after.gateways and before.replicas is after.replicas
        if same:
            return
        for subject, drain in _drains(after).items():
            if drain != self._drains.get(subject):
                by, due = drain or "nothing", self._drains.get(subject, "nothing")
                yield f"{subject[0]} {subject[1]} is drained by {by}, and should be by {due}"
                self._drains.pop(subject, None)
                if drain is not None:
                    self._drains[subject] = drain


def _subject(what: Wish | Answer) -> Subject:
    match what:
        case ev.DeployRequested(application=application) | ev.ApplicationDeployed(application=application):
            return APPLICATION, application.name
        case ev.DeleteRequested(application=name) | ev.ApplicationDeleted(application=name):
            return APPLICATION, name
        case drain:
            return drain.kind, drain.name


def _grants(answer: Answer, wish: Wish) -> bool:
    match answer, wish:
        case ev.ApplicationDeployed(), ev.DeployRequested():
            return answer.application == wish.application
        case ev.DrainOrdered(), ev.DrainRequested():
            return (answer.mode, answer.deadline_s) == (wish.mode, wish.deadline_s)
        case (ev.ApplicationDeleted(), ev.DeleteRequested()) | (ev.DrainLifted(), ev.UndrainRequested()):
            return True
    return False


def _drains(state: ClusterState) -> dict[Subject, str | None]:
    """By which decision each is drained, of those that can be."""
    found: dict[Subject, str | None] = {}
    for node in state.nodes.values():
        found["node", node.id] = node.drain.event if node.drain is not None else None
    for gateway in state.gateways.values():
        found["gateway", gateway.id] = gateway.drain.event if gateway.drain is not None else None
    for replica in state.replicas.values():
        if replica.live:
            found["replica", replica.id] = replica.drain.event if replica.drain is not None else None
    return found


def _applied(
    answer: ev.ApplicationDeployed | ev.ApplicationDeleted, before: ClusterState, after: ClusterState
) -> Iterator[str]:
    name = _subject(answer)[1]
    application = after.applications.get(name)
    held = {one.config.name: one.config for one in application.deployments.values()} if application else {}
    wanted = answer.application.deployments if isinstance(answer, ev.ApplicationDeployed) else ()
    if held != {one.name: one for one in wanted} or (application is None) != isinstance(answer, ev.ApplicationDeleted):
        yield f"application {name} is not as it was decided to be"
        return
    if application is not None and name in before.applications:
        yield from _revised(before.applications[name].deployments, application.deployments)


def _revised(before: Mapping[str, DeploymentState], after: Mapping[str, DeploymentState]) -> Iterator[str]:
    for name, deployment in after.items():
        known = before.get(name)
        if known is not None:
            due = known.revision + (known.config.engine != deployment.config.engine)
            if deployment.revision != due:
                yield f"{name} has revision {deployment.revision}, and should have {due}, by its engine"


def _revision_of(placed: ev.ReplicaPlaced | ev.ReplicaReplaced, after: ClusterState) -> Iterator[str]:
    application = after.applications.get(placed.application)
    deployment = application.deployments.get(placed.deployment) if application is not None else None
    replica = after.replicas.get(placed.replica)
    if deployment is not None and replica is not None and replica.revision != deployment.revision:
        yield f"{placed.replica} has revision {replica.revision}, and {deployment.revision} was current"


def _undecided(history: History, log: FinalLog, walk: _Walk, judged: Judged) -> Iterator[Violation]:
    """Last wishes that nobody decided, though there was time for it while nothing broke."""
    settle = history.settle
    if settle is None:
        return
    due_s = settle.began_s + settle.bound_s
    times = {record.event.id: log.times[place] for place, record in enumerate(log.records)}
    for (kind, name), wish in walk.last.items():
        if times[wish] > settle.began_s:
            continue
        judged["last wishes"] += 1
        if wish not in walk.decided:
            yield Violation(WISHES, due_s, f"what {wish} asks of {kind} {name} is the last wish, and was never decided")
