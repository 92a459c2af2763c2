"""One fold for all followers of a simulated log: what a thousand processes would each work out is worked out once.

`decode_record` and `apply` are pure: of the same entry, and of the same state and record, they always make the same.
Within `shared_folding` followers get what was made for the first of them. Every follower still asks for every entry.
"""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator, Sequence

from holdfast.actors import follower
from holdfast.core.cluster import ClusterState
from holdfast.core.entries import decode_record
from holdfast.core.events import Record
from holdfast.core.ports import LogEntry
from holdfast.core.state import apply

KEPT_MAX = 4096
"""Records and states that are kept for those who come later; whoever is further behind works them out anew."""


class _Fold:
    """The last records, and the states after them, by sequence."""

    def __init__(self) -> None:
        self.decoded = 0
        self._records: dict[int, tuple[LogEntry, Record]] = {}
        self._states: dict[int, tuple[ClusterState, Record, ClusterState]] = {}
        self._beginning = ClusterState()

    def decode(self, entry: LogEntry) -> Record:
        """As `decode_record`."""
        kept = self._records.get(entry.sequence)
        if kept is not None and kept[0] is entry:
            return kept[1]
        record = decode_record(entry)
        self.decoded += 1
        self._records[entry.sequence] = (entry, record)
        self._records.pop(entry.sequence - KEPT_MAX, None)
        return record

    def apply(self, state: ClusterState, record: Record) -> ClusterState:
        """As `apply`."""
        if state.sequence == 0:
            state = self._beginning
        kept = self._states.get(record.sequence)
        if kept is not None and kept[0] is state and kept[1] is record:
            return kept[2]
        after = apply(state, record)
        self._states[record.sequence] = (state, record, after)
        self._states.pop(record.sequence - KEPT_MAX, None)
        return after


@contextlib.contextmanager
def shared_folding() -> Iterator[_Fold]:
    """Within this, followers of one log share their folds."""
    fold = _Fold()
    names = vars(follower)
    names.update(decode_record=fold.decode, apply=fold.apply)
    try:
        yield fold
    finally:
        names.update(decode_record=decode_record, apply=apply)


def state_bytes(entries: Sequence[LogEntry]) -> int:
    """The memory that one follower's state takes after it has folded these entries by itself."""
    gc.collect()
    tracemalloc.start()
    try:
        state = ClusterState()
        for entry in entries:
            state = apply(state, decode_record(entry))
        gc.collect()
        taken, _peak = tracemalloc.get_traced_memory()
        assert state.sequence == len(entries)
    finally:
        tracemalloc.stop()
    return taken
