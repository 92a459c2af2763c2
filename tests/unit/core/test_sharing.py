"""Large mappings whose copies share: they are what dicts would be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.sharing import SMALL_MAX, SharedMap, with_entry, without_entry
from tests.unit.support.strategies import MANY

KEYS = st.integers(0, 3 * SMALL_MAX).map(str)
STEPS = st.lists(st.tuples(KEYS, st.none() | st.integers(0, 9)), max_size=200)


def large(size: int = 2 * SMALL_MAX) -> tuple[Mapping[str, int], dict[str, int]]:
    plain = {str(number): number for number in range(size)}
    return with_entry(dict(plain), "0", 0), plain


@MANY
@given(STEPS, st.integers(1, 50))
def test_every_version_stays_what_a_dict_would_be_in_the_same_order(
    steps: list[tuple[str, int | None]], look_every: int
) -> None:
    shared, plain = large()
    versions: list[tuple[Mapping[str, int], dict[str, int]]] = []
    for number, (key, value) in enumerate(steps):
        if value is None:
            shared, plain = without_entry(shared, key), {name: one for name, one in plain.items() if name != key}
        else:
            shared, plain = with_entry(shared, key, value), {**plain, key: value}
        assert (shared.get(key), key in shared) == (plain.get(key), key in plain)
        versions.append((shared, plain))
        if number % look_every == 0:
            assert len(shared) == len(plain)
    for version, expected in versions:
        assert list(version.items()) == list(expected.items())
        assert version == expected


def test_a_missing_entry_is_missing_whether_it_was_removed_or_never_there() -> None:
    shared, _plain = large()
    shared = without_entry(shared, "7")
    for key in ("7", "never"):
        assert shared.get(key) is None
        assert key not in shared
        with pytest.raises(KeyError):
            shared[key]


def test_an_entry_that_comes_back_stands_at_the_end() -> None:
    shared, _plain = large()
    assert list(with_entry(without_entry(shared, "7"), "7", 7))[-1] == "7"


def test_a_small_dict_is_copied_and_a_large_one_is_shared() -> None:
    assert type(with_entry({"a": 1}, "b", 2)) is dict
    assert type(large()[0]) is SharedMap


def test_a_change_copies_no_more_than_the_few_entries_that_differ() -> None:
    size = 10_000
    shared, _plain = large(size)
    assert isinstance(shared, SharedMap)
    merges, base = 0, shared._base
    for number in range(size):
        shared = shared.with_entry(str(number), -1)
        assert len(shared._changes) ** 2 <= 2 * size
        merges += shared._base is not base
        base = shared._base
    assert merges < size / 100
