"""Values of any type that msgspec can describe: every event and every frame, without a list to keep up to date."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from msgspec import inspect

FEW = settings(max_examples=20, deadline=None)
SOME = settings(max_examples=60, deadline=None)
MANY = settings(max_examples=200, deadline=None)
"""How many examples a property is tried with. No deadlines: a busy machine is no failure."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def of_type(kind: object) -> st.SearchStrategy[Any]:
    """Values that fit a type annotation, bounds and patterns included."""
    return _values(inspect.type_info(kind))


def _values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern.replace("$", r"\Z"))
        case inspect.StrType(min_length=shortest):
            return TEXT.filter(bool) if shortest else TEXT
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=low, le=high):
            return st.integers(INT_MIN if low is None else low, INT_MAX if high is None else high)
        case inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case inspect.BytesType():
            return st.binary(max_size=12)
        case inspect.NoneType():
            return st.none()
        case inspect.DateTimeType():
            return st.datetimes(timezones=st.just(UTC))
        case inspect.AnyType():
            return JSON
        case _:
            return _compounds(kind)


def _compounds(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.UnionType(types=types):
            return st.one_of(*map(_values, types))
        case inspect.ListType(item_type=item, min_length=shortest):
            return st.lists(_values(item), min_size=shortest or 0, max_size=3)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(_values, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_values(key), _values(value), max_size=3)
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: _values(field.type) for field in fields})
        case _:
            raise NotImplementedError(f"no strategy for {kind}")
