"""The log of a run as it stands at its end, decoded and folded once for all checkers."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.entries import decode_record
from holdfast.core.errors import HoldfastError
from holdfast.core.events import Record
from holdfast.core.ports import LogEntry
from holdfast.core.state import apply
from holdfast.simulations.history import History
from holdfast.simulations.records import Appended, Process

_KEY: Final = "log"


class Member(NamedTuple):
    """A node's or gateway's life as the log has it; `slots` is 0 for gateways."""

    name: str
    incarnation: str
    slots: int


class FinalLog:
    """What the log holds at the end of a run.

    `entries[i]` has sequence `i + 1`, unless the log itself has a hole. `records` and `states` go as far as production
    code can read it: `states[i]` is the fold of the first `i` records. `broken` is the sequence at which that ended
    and why, if it did not reach the end. `members` finds by process id who joined as what.
    """

    def __init__(self, history: History) -> None:
        self.entries = surviving(history)
        self.times = [entry.at_s for entry in self.entries]
        self.records: list[Record] = []
        self.states = [ClusterState()]
        self.broken: tuple[int, str] | None = None
        self.members: dict[int, Member] = {}
        for entry in self.entries:
            try:
                record = decode_record(LogEntry(entry.sequence, entry.subject, entry.data, entry.message_id))
                self.states.append(apply(self.states[-1], record))
            except HoldfastError as error:
                self.broken = (entry.sequence, str(error))
                break
            self.records.append(record)
            self._note_member(record)

    @property
    def state(self) -> ClusterState:
        """The fold of all that can be read."""
        return self.states[-1]

    def at(self, at_s: float) -> int:
        """How many records had been appended by then."""
        return min(bisect_right(self.times, at_s), len(self.records))

    def effective(self) -> list[tuple[int, Record]]:
        """Decisions that counted, each with its place in `records`."""
        return [
            (place, record)
            for place, record in enumerate(self.records)
            if isinstance(record.event.payload, ev.Decision)
            and self.states[place + 1].ignored == self.states[place].ignored
        ]

    def member_of(self, process: Process) -> Member | None:
        """What the process joined as, if it did."""
        return self.members.get(process.pid)

    def _note_member(self, record: Record) -> None:
        payload = record.event.payload
        if isinstance(payload, ev.NodeJoined):
            self.members[payload.pid] = Member(payload.node, record.event.incarnation, payload.slots)
        elif isinstance(payload, ev.GatewayJoined):
            self.members[payload.pid] = Member(payload.gateway, record.event.incarnation, 0)


def surviving(history: History) -> list[Appended]:
    """The entries that the servers hold at the end: all that were appended, less those that power failures took."""
    entries: list[Appended] = []
    done = 0
    for loss in history.lost:
        entries += history.appended[done : loss.appended]
        done = loss.appended
        entries = [entry for entry in entries if entry.sequence <= loss.after]
    return entries + history.appended[done:]


def final_log(history: History) -> FinalLog:
    """The run's log, folded at the first call and kept with the history, which must not change any more."""
    known = history.derived.get(_KEY)
    if not isinstance(known, FinalLog):
        known = history.derived[_KEY] = FinalLog(history)
    return known
