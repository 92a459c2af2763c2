"""The log: nothing acknowledged is lost, it folds to the same state everywhere, and one leader at a time decides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec

from holdfast.actors.identity import LEADER_KEY
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.entries import GENESIS
from holdfast.core.errors import HoldfastError
from holdfast.core.state import apply, state_hash
from holdfast.simulations.checkers.folding import FinalLog, final_log
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History

DURABILITY: Final = "durability"
FOLD: Final = "fold"
LEADERS: Final = "leaders"
FENCES: Final = "fences"

_MEMBERS: Final = ("facts.node.", "facts.gateway.")
_SNAPSHOT_AT: Final = (0.5, 0.9)
"""The log is folded again from states at these parts of its length, after a round trip through JSON."""

_CHANGED_BY_ALL: Final = frozenset({"sequence", "heads", "ignored"})
"""What of a state a decision of a deposed leader may change."""

_FIELDS: Final = tuple(name for name in ClusterState.__struct_fields__ if name not in _CHANGED_BY_ALL)
_STATES: Final = msgspec.json.Decoder(ClusterState)


# --- durability -----------------------------------------------------------------------------------------


def durability(history: History, judged: Judged) -> list[Violation]:
    """What a process was told to be in the log is there at the end, unchanged and once; sequences have no hole."""
    log = final_log(history)
    judged["acknowledged events"] += len(history.acknowledged)
    judged["entries"] += len(log.entries)
    return [*_holes(log), *_acknowledged(history, log), *_doubles(log)]


def _holes(log: FinalLog) -> Iterator[Violation]:
    for due, entry in enumerate(log.entries, 1):
        if entry.sequence != due:
            yield Violation(DURABILITY, entry.at_s, f"the log has sequence {entry.sequence} where {due} is due")
            return


def _acknowledged(history: History, log: FinalLog) -> Iterator[Violation]:
    stands = {entry.sequence: entry for entry in log.entries}
    for told in history.acknowledged:
        entry = stands.get(told.sequence)
        if entry is not None and entry.message_id == told.message_id and entry.at_s <= told.at_s:
            continue
        there = f"{entry.message_id}, of {entry.at_s:.3f} s," if entry is not None else "nothing"
        message = f"{told.process} was told that {told.message_id} stands at sequence {told.sequence}; {there} does"
        yield Violation(DURABILITY, told.at_s, message)


def _doubles(log: FinalLog) -> Iterator[Violation]:
    sequence_of: dict[str, int] = {}
    for entry in log.entries:
        first = sequence_of.setdefault(entry.message_id, entry.sequence)
        if first != entry.sequence:
            message = f"{entry.message_id} stands in the log twice, at sequences {first} and {entry.sequence}"
            yield Violation(DURABILITY, entry.at_s, message)
    for record, entry in zip(log.records, log.entries, strict=False):
        if record.event.id != entry.message_id:
            message = f"sequence {entry.sequence} holds event {record.event.id} under the id {entry.message_id}"
            yield Violation(DURABILITY, entry.at_s, message)


# --- fold -----------------------------------------------------------------------------------------------


def fold(history: History, judged: Judged) -> list[Violation]:
    """Folding the log from its beginning, or from a state on the way, gives the state that every process had there."""
    log = final_log(history)
    found = []
    if log.broken is not None:
        sequence, why = log.broken
        found.append(Violation(FOLD, log.times[len(log.records)], f"the log can't be folded at {sequence}: {why}"))
    judged["states of processes"] += len(history.folded)
    judged["states on the way"] += len(_SNAPSHOT_AT)
    return [*found, *_same_everywhere(history, log), *_same_from_snapshots(log)]


def _same_everywhere(history: History, log: FinalLog) -> Iterator[Violation]:
    hashes: dict[int, str] = {}
    for seen in history.folded:
        sequence = seen.state.sequence
        if sequence >= len(log.states):
            message = f"{seen.actor} has folded up to sequence {sequence}; the log ends at {len(log.records)}"
            yield Violation(FOLD, seen.at_s, message)
            continue
        if sequence not in hashes:
            hashes[sequence] = state_hash(log.states[sequence])
        if state_hash(seen.state) != hashes[sequence]:
            differs = ", ".join(_differences(log.states[sequence], seen.state))
            message = f"at sequence {sequence} the state of {seen.actor} is not the fold of the log: {differs} differ"
            yield Violation(FOLD, seen.at_s, message)


def _differences(one: ClusterState, other: ClusterState) -> list[str]:
    return [name for name in ClusterState.__struct_fields__ if getattr(one, name) != getattr(other, name)]


def _same_from_snapshots(log: FinalLog) -> Iterator[Violation]:
    for part in _SNAPSHOT_AT:
        begin = int(len(log.records) * part)
        state = _STATES.decode(msgspec.json.encode(log.states[begin], enc_hook=dict))
        try:
            for record in log.records[begin:]:
                state = apply(state, record)
        except HoldfastError as error:
            message = f"the log can't be folded from a snapshot at sequence {begin}: {error}"
            yield Violation(FOLD, log.times[begin], message)
            continue
        if state_hash(state) != state_hash(log.state):
            differs = ", ".join(_differences(log.state, state))
            message = f"a snapshot at sequence {begin} with the log behind it is not the fold of the log: {differs}"
            yield Violation(FOLD, log.times[begin], message)


# --- leaders --------------------------------------------------------------------------------------------


class _Decided:
    """Which decisions count, worked out anew: by epochs and elections alone, without the production fold."""

    def __init__(self) -> None:
        self.epoch = 0
        self.leader = ("", "")
        self.void = 0

    def take(self, event: ev.Event) -> tuple[bool, str]:
        """Whether this decision counts, and what is wrong with it ("" for nothing)."""
        payload, writer = event.payload, (event.writer, event.incarnation)
        if event.epoch < self.epoch:
            self.void += 1
            return False, ""
        if isinstance(payload, ev.LeaderElected):
            if (payload.node, payload.node_incarnation) != writer:
                return True, f"{event.writer} elects {payload.node} of incarnation {payload.node_incarnation}"
            if event.epoch == self.epoch and writer != self.leader:
                return True, f"epoch {event.epoch} has two leaders, {self.leader[0]} and {event.writer}"
            self.epoch, self.leader = event.epoch, writer
            return True, ""
        if event.epoch > self.epoch:
            return True, f"{event.writer} decides with epoch {event.epoch}, which nobody was elected to"
        if writer != self.leader:
            return True, f"{event.writer} decides in epoch {event.epoch}, which is {self.leader[0]}'s"
        return True, ""


def leaders(history: History, judged: Judged) -> list[Violation]:
    """One leader per epoch, epochs rise, and what a deposed leader decides changes nothing.

    The events of a subject chain, and an incarnation of a node or gateway that a newer one followed writes no more.
    """
    log = final_log(history)
    judged["entries"] += len(log.records)
    judged["decisions"] += sum(isinstance(record.event.payload, ev.Decision) for record in log.records)
    return [*_decisions(log), *_chains(log), *_epochs(history, log, judged)]


def _decisions(log: FinalLog) -> Iterator[Violation]:
    model = _Decided()
    for place, record in enumerate(log.records):
        before, after = log.states[place], log.states[place + 1]
        counts, wrong = True, ""
        if isinstance(record.event.payload, ev.Decision):
            counts, wrong = model.take(record.event)
        if wrong:
            yield Violation(LEADERS, log.times[place], f"sequence {record.sequence}: {wrong}")
        if not counts and (changed := _changed(before, after)):
            what = f"{ev.type_name(record.event.payload)} of deposed {record.event.writer} changed {', '.join(changed)}"
            yield Violation(LEADERS, log.times[place], f"sequence {record.sequence}: {what}")
        if after.ignored != model.void or (after.epoch, after.leader or "") != (model.epoch, model.leader[0]):
            told = f"epoch {after.epoch}, leader {after.leader}, {after.ignored} void"
            due = f"epoch {model.epoch}, leader {model.leader[0]}, {model.void} void"
            yield Violation(LEADERS, log.times[place], f"sequence {record.sequence}: the fold has {told}, not {due}")
            return


def _changed(before: ClusterState, after: ClusterState) -> list[str]:
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in _FIELDS)
    return [name for name, one, other in pairs if one is not other and one != other]


def _chains(log: FinalLog) -> Iterator[Violation]:
    heads: dict[str, str] = {}
    writing: dict[str, str] = {}
    former: set[tuple[str, str]] = set()
    for record, entry in zip(log.records, log.entries, strict=False):
        event, subject = record.event, record.subject
        if event.previous != heads.get(subject, GENESIS):
            message = f"sequence {record.sequence} does not chain to the event before it on {subject}"
            yield Violation(LEADERS, entry.at_s, message)
        heads[subject] = hashlib.sha256(entry.data).hexdigest()
        if not subject.startswith(_MEMBERS):
            continue
        if (subject, event.incarnation) in former:
            message = f"sequence {record.sequence}: incarnation {event.incarnation} writes on {subject} after a newer"
            yield Violation(LEADERS, entry.at_s, message)
        if writing.get(subject, event.incarnation) != event.incarnation:
            former.add((subject, writing[subject]))
        writing[subject] = event.incarnation


def _epochs(history: History, log: FinalLog, judged: Judged) -> Iterator[Violation]:
    """An epoch is the revision of a leader key, or one more than the last where the lease servers began anew."""
    revisions = {
        event.revision: event.at_s
        for event in history.leases
        if event.kind == "created" and event.key.rpartition("/")[2] == LEADER_KEY
    }
    if not revisions:
        return
    epoch = 0
    for place, record in log.effective():
        if not isinstance(record.event.payload, ev.LeaderElected):
            continue
        judged["elections"] += 1
        event, before = record.event, epoch
        epoch = event.epoch
        if epoch != before + 1 and revisions.get(epoch, float("inf")) > log.times[place]:
            message = f"{event.writer} was elected with epoch {epoch}, which no leader key was created at"
            yield Violation(LEADERS, log.times[place], message)


# --- fences ---------------------------------------------------------------------------------------------


def fences(history: History, judged: Judged) -> list[Violation]:
    """What a deposed leader decides is not even in the log, which refuses it; unless the log itself lost something."""
    if history.lost:
        return []
    log, model, found = final_log(history), _Decided(), []
    for place, record in enumerate(log.records):
        if not isinstance(record.event.payload, ev.Decision):
            continue
        judged["decisions"] += 1
        if not model.take(record.event)[0]:
            what = f"{ev.type_name(record.event.payload)} of deposed {record.event.writer} was appended"
            found.append(Violation(FENCES, log.times[place], f"sequence {record.sequence}: {what}"))
    return found
