"""What a watch has told so far, and how a fresh listing differs from it.

A watch that fell behind a compaction can't be resumed: the events between are gone. What is left to tell is the
difference in state, and for that the watch must know which keys it told (or was started upon).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.core.ports import KeyChange, KeyValue, Listing


class Told:
    """The keys below a prefix as the reader of one watch knows them, with the revision of each one's last put."""

    def __init__(self, items: Iterable[KeyValue] = ()) -> None:
        self._revisions = {item.key: item.mod_revision for item in items}

    def note(self, changes: Iterable[KeyChange]) -> None:
        for change in changes:
            if change.value is None:
                self._revisions.pop(change.key, None)
            else:
                self._revisions[change.key] = change.revision

    def difference(self, listing: Listing) -> Sequence[KeyChange]:
        """The changes that lead from what was told to `listing`, in order of revision; they count as told.

        A deletion's own revision is unknown by now: it gets the listing's.
        """
        present = {item.key for item in listing.items}
        changes = [
            KeyChange(item.mod_revision, item.key, item.value)
            for item in listing.items
            if self._revisions.get(item.key) != item.mod_revision
        ]
        changes.sort(key=lambda change: change.revision)
        changes += [KeyChange(listing.revision, key, None) for key in sorted(self._revisions) if key not in present]
        self.note(changes)
        return changes
