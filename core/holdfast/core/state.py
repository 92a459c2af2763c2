"""What is: the fold of the log, and nothing but.

`apply` reads no clock, no randomness and no environment: the same records give the same state everywhere, which
`state_hash` makes comparable. Every type of event has one small reducer, which stands in the module of what it is
about: members, replicas, applications, drains, overloads.
"""

from __future__ import annotations

import hashlib

import msgspec

from holdfast.core import applications, drains, membership, overloads, replica_life
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState, Head, Reducers
from holdfast.core.errors import CorruptLog
from holdfast.core.sharing import SharedMap, with_entry


def apply(state: ClusterState, record: ev.Record) -> ClusterState:
    """The state after one more record.

    Raises `CorruptLog` when the record is not the next one, or does not chain to the one before it in its
    subject.
    """
    _check_order(state, record)
    state = msgspec.structs.replace(
        state,
        sequence=record.sequence,
        heads=with_entry(state.heads, record.subject, Head(record.sequence, record.digest)),
    )
    event = record.event
    if isinstance(event.payload, ev.Decision):
        if event.epoch < state.epoch:
            return msgspec.structs.replace(state, ignored=state.ignored + 1)
        if event.epoch > state.epoch and not isinstance(event.payload, ev.LeaderElected):
            raise CorruptLog(f"sequence {record.sequence}: epoch {event.epoch} decides before its election")
    return _REDUCERS[type(event.payload)](state, event, event.payload)


def state_hash(state: ClusterState) -> str:
    """SHA-256 over the state in canonical form: equal states have equal hashes on every machine."""
    return hashlib.sha256(msgspec.json.encode(state, enc_hook=_plain, order="deterministic")).hexdigest()


def _plain(value: object) -> object:
    return value.merged() if isinstance(value, SharedMap) else value


def _check_order(state: ClusterState, record: ev.Record) -> None:
    if record.sequence != state.sequence + 1:
        raise CorruptLog(f"sequence {record.sequence} follows {state.sequence}: the log has a hole")
    if record.event.previous != state.head(record.subject).digest:
        raise CorruptLog(
            f"sequence {record.sequence} on {record.subject} does not chain to the event before it there: "
            f"somebody changed, removed or forged an event"
        )


def _leader_elected(state: ClusterState, event: ev.Event, decision: ev.LeaderElected) -> ClusterState:
    return msgspec.structs.replace(
        state, epoch=event.epoch, leader=decision.node, leader_incarnation=decision.node_incarnation
    )


def _for_people(state: ClusterState, event: ev.Event, fact: ev.Fact) -> ClusterState:
    """For people to read: what is remembered of a request is in its gateway, and who leads was decided before."""
    return state


_REDUCERS: Reducers = {
    **membership.REDUCERS,
    **replica_life.REDUCERS,
    **applications.REDUCERS,
    **drains.REDUCERS,
    **overloads.REDUCERS,
    ev.LeaderElected: _leader_elected,
    ev.StreamsMigrated: _for_people,
    ev.RejectionsBegan: _for_people,
    ev.RejectionsEnded: _for_people,
    ev.ReplicaEjected: _for_people,
    ev.ReplicaReinstated: _for_people,
    ev.StreamsFenced: _for_people,
    ev.LeaderDeposed: _for_people,
}
