"""The difference between what a watch told and a fresh listing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.ports import KeyChange, KeyValue, Listing
from holdfast.store.changes import Told


def item(key: str, revision: int) -> KeyValue:
    return KeyValue(key, str(revision).encode(), revision, revision, 0)


def test_only_what_differs_is_told() -> None:
    told = Told([item("same", 1), item("changed", 2), item("deleted", 3)])
    listing = Listing(9, [item("same", 1), item("changed", 8), item("new", 5)])
    assert told.difference(listing) == [
        KeyChange(5, "new", b"5"),
        KeyChange(8, "changed", b"8"),
        KeyChange(9, "deleted", None),
    ]
    assert told.difference(listing) == []


KEYS = st.sampled_from("abc")
ITEMS = st.dictionaries(KEYS, st.integers(1, 50)).map(lambda found: [item(key, found[key]) for key in sorted(found)])


@given(before=ITEMS, events=st.lists(st.tuples(KEYS, st.booleans())), after=ITEMS)
def test_whoever_applies_it_has_the_listing(
    before: list[KeyValue], events: list[tuple[str, bool]], after: list[KeyValue]
) -> None:
    reader = {each.key: each.value for each in before}
    told = Told(before)
    changes = [KeyChange(100 + n, key, b"x" if put else None) for n, (key, put) in enumerate(events)]
    told.note(changes)
    for change in (*changes, *told.difference(Listing(1000, after))):
        if change.value is None:
            reader.pop(change.key, None)
        else:
            reader[change.key] = change.value
    assert reader == {each.key: each.value for each in after}
