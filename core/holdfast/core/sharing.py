"""Mappings that are never changed, of which a copy with one entry changed costs little however large they are.

The fold of the log makes a new state of every event. Copying a dict for it is the fastest way while the dict is small;
with 10,000 replicas it would cost more than all the rest. A large mapping is therefore a `SharedMap`: a base that its
copies share, and the few entries that differ from it. What differs is merged into a new base when it has grown to
about the square root of the base's size, which spreads the cost of that over as many events, and whenever somebody
looks at all entries. Order is a dict's: by first insertion.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")

SMALL_MAX = 128
"""A dict of up to so many entries is copied."""

_GONE: Any = object()
"""Stands in the changes for an entry of the base that was removed."""

_AS_BEFORE: Any = object()
"""What the changes say of an entry that is as in the base."""


def with_entry(mapping: Mapping[str, V], key: str, value: V) -> Mapping[str, V]:
    """The mapping with this entry added or replaced."""
    if type(mapping) is SharedMap:
        return mapping.with_entry(key, value)
    if len(mapping) < SMALL_MAX:
        return {**mapping, key: value}
    return SharedMap(dict(mapping)).with_entry(key, value)


def without_entry(mapping: Mapping[str, V], key: str) -> Mapping[str, V]:
    """The mapping without this entry, if it has it."""
    if type(mapping) is SharedMap:
        return mapping.without_entry(key)
    if len(mapping) <= SMALL_MAX:
        return {name: value for name, value in mapping.items() if name != key}
    return SharedMap(dict(mapping)).without_entry(key)


class SharedMap(Mapping[str, V]):
    """A large mapping. Whoever makes one gives its dict away: it must not be changed any more."""

    __slots__ = ("_base", "_changes")

    def __init__(self, base: dict[str, V], changes: dict[str, V] | None = None) -> None:
        self._base = base
        self._changes: dict[str, V] = {} if changes is None else changes

    def with_entry(self, key: str, value: V) -> SharedMap[V]:
        """As the function."""
        if self._changes.get(key) is _GONE:
            self.merged()  # it comes back at the end, not where it was
        return self._changed({**self._changes, key: value})

    def without_entry(self, key: str) -> SharedMap[V]:
        """As the function."""
        if key not in self:
            return self
        changes = self._changes.copy()
        if key in self._base:
            changes[key] = _GONE
        else:
            del changes[key]
        return self._changed(changes)

    def merged(self) -> dict[str, V]:
        """All entries; not to be changed. What was merged is kept: the mapping is the same before and after."""
        if self._changes:
            base = self._base.copy()
            for key, value in self._changes.items():
                if value is _GONE:
                    del base[key]
                else:
                    base[key] = value
            self._base, self._changes = base, {}
        return self._base

    def _changed(self, changes: dict[str, V]) -> SharedMap[V]:
        changed = SharedMap(self._base, changes)
        if len(changes) ** 2 > 2 * len(self._base):
            changed.merged()
        return changed

    def __getitem__(self, key: str) -> V:
        value: V = self._changes.get(key, _AS_BEFORE)
        if value is _AS_BEFORE:
            return self._base[key]
        if value is _GONE:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: str, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: str, default: V | D, /) -> V | D: ...
    def get(self, key: str, default: V | D | None = None, /) -> V | D | None:
        value = self._changes.get(key, _AS_BEFORE)
        if value is _AS_BEFORE:
            return self._base.get(key, default)
        return default if value is _GONE else value

    def __contains__(self, key: object) -> bool:
        if key in self._changes:
            return self._changes[key] is not _GONE
        return key in self._base

    def __len__(self) -> int:
        return len(self.merged())

    def __iter__(self) -> Iterator[str]:
        return iter(self.merged())

    def keys(self) -> KeysView[str]:
        return self.merged().keys()

    def values(self) -> ValuesView[V]:
        return self.merged().values()

    def items(self) -> ItemsView[str, V]:
        return self.merged().items()

    def __repr__(self) -> str:
        return repr(self.merged())
