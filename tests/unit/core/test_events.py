"""Events survive the log byte for byte, and what is no event of ours is refused with the right error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import events as ev
from holdfast.core.entries import GENESIS, SCHEMA_VERSION, UPCASTERS, decode_record, digest, encode_event
from holdfast.core.errors import CorruptLog, UnknownEventVersion
from holdfast.core.ports import LogEntry
from tests.unit.support.strategies import FEW, SOME, TEXT, of_type
from tests.unit.support.virtual_time import EPOCH

PAYLOADS = get_args(ev.FactTypes) + get_args(ev.DecisionTypes)
ENVELOPES = of_type(ev.Event)

Lift = Callable[[dict[str, Any]], dict[str, Any]]


def event_of(payload: ev.Payload, schema: int = SCHEMA_VERSION) -> ev.Event:
    return msgspec.structs.replace(RAW_EVENT, payload=payload, schema=schema)


RAW_EVENT = ev.Event(
    id="node-1.ab.f1",
    time=EPOCH,
    writer="node-1",
    incarnation="ab",
    epoch=0,
    cause=None,
    schema=SCHEMA_VERSION,
    previous=GENESIS,
    payload=ev.NodeLeft("node-1"),
)


def record_of(data: bytes) -> ev.Record:
    return decode_record(LogEntry(7, "facts.node.a", data, "id"))


def raw_event(**changes: Any) -> dict[str, Any]:
    return {**msgspec.json.decode(encode_event(RAW_EVENT)), **changes}


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_comes_back_from_the_log_as_it_was(payload: type[ev.Payload]) -> None:
    @FEW
    @given(st.builds(msgspec.structs.replace, ENVELOPES, schema=st.just(SCHEMA_VERSION), payload=of_type(payload)))
    def round_trip(event: ev.Event) -> None:
        data = encode_event(event)
        record = record_of(data)
        assert record == ev.Record(7, "facts.node.a", event, digest(data))
        assert encode_event(record.event) == data
        assert msgspec.json.decode(data)["payload"]["type"] == ev.type_name(event.payload) == payload.__name__

    round_trip()


def test_every_payload_class_is_in_the_union_that_is_read() -> None:
    def leaves(kind: type[ev.Payload]) -> Iterator[type[ev.Payload]]:
        below = kind.__subclasses__()
        yield from [kind] if not below else [leaf for child in below for leaf in leaves(child)]

    assert set(leaves(ev.Payload)) == set(PAYLOADS)
    assert all(issubclass(kind, ev.Fact) for kind in get_args(ev.FactTypes))
    assert all(issubclass(kind, ev.Decision) for kind in get_args(ev.DecisionTypes))


@pytest.mark.parametrize(
    "raw",
    [
        raw_event(colour="blue"),
        raw_event(payload={"type": "NodeLeft", "node": "a", "colour": "blue"}),
        raw_event(payload={"type": "NodeLeft"}),
        raw_event(payload={"type": "NodeLeft", "node": 5}),
        raw_event(payload={"type": "NodeVanished", "node": "a"}),
        raw_event(payload=None),
        raw_event(epoch="1"),
        {name: value for name, value in raw_event().items() if name != "previous"},
        raw_event(schema="1"),
        raw_event(schema=None),
    ],
    ids=str,
)
def test_an_event_of_our_schema_with_a_wrong_field_is_corruption(raw: dict[str, Any]) -> None:
    with pytest.raises(CorruptLog, match=r"sequence 7 on facts\.node\.a"):
        record_of(msgspec.json.encode(raw))


@SOME
@given(st.binary(max_size=40) | TEXT.map(str.encode) | st.integers().map(lambda n: str(n).encode()))
def test_bytes_that_are_no_event_are_corruption(data: bytes) -> None:
    with pytest.raises(CorruptLog):
        record_of(data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"schema":' * 100_000, b'{"id": "\xff"}', b'{"id": "\\ud800"}'])
def test_hostile_bytes_are_corruption_too(data: bytes) -> None:
    with pytest.raises(CorruptLog):
        record_of(data)


@pytest.mark.parametrize("changes", [{}, {"colour": "blue"}, {"payload": {"type": "NodeVanished"}}])
def test_an_event_of_a_newer_schema_asks_for_an_upgrade_whatever_it_says(changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownEventVersion, match=f"has schema {SCHEMA_VERSION + 1}.*upgrade"):
        record_of(msgspec.json.encode(raw_event(schema=SCHEMA_VERSION + 1, **changes)))


@pytest.fixture
def lift(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lift], None]:
    def register(upcaster: Lift) -> None:
        monkeypatch.setitem(UPCASTERS, 0, upcaster)

    return register


def test_an_event_of_the_first_schema_means_what_it_did() -> None:
    data = msgspec.json.encode(raw_event(schema=1))
    assert record_of(data).event == record_of(msgspec.json.encode(raw_event())).event


def test_an_old_event_is_lifted_to_what_it_means_today(lift: Callable[[Lift], None]) -> None:
    lift(lambda raw: {**raw, "payload": {"type": "NodeLeft", "node": raw["payload"]["name"]}})
    data = msgspec.json.encode(raw_event(schema=0, payload={"type": "NodeGone", "name": "a"}))
    record = record_of(data)
    assert record.event == event_of(ev.NodeLeft("a"))
    assert record.digest == digest(data), "the chain is over the bytes in the log, not over what they mean today"


def test_an_old_event_is_lifted_even_if_it_looks_like_one_of_today(lift: Callable[[Lift], None]) -> None:
    lift(lambda raw: {**raw, "payload": {**raw["payload"], "node": "lifted"}})
    assert record_of(encode_event(event_of(ev.NodeLeft("a"), schema=0))).event.payload == ev.NodeLeft("lifted")


@pytest.mark.parametrize("schema", [0, -1])
def test_an_old_event_that_nothing_can_lift_is_an_unknown_version(schema: int) -> None:
    with pytest.raises(UnknownEventVersion, match=f"has schema {schema}"):
        record_of(encode_event(event_of(ev.NodeLeft("a"), schema=schema)))


@pytest.mark.parametrize(
    "upcaster",
    [lambda raw: {**raw, "payload": {"type": "Nonsense"}}, lambda raw: {**raw, "payload": raw["payload"]["name"]}],
    ids=["gives no event", "misses a field"],
)
def test_an_old_event_that_does_not_lift_is_corruption(lift: Callable[[Lift], None], upcaster: Lift) -> None:
    lift(upcaster)
    with pytest.raises(CorruptLog, match="sequence 7"):
        record_of(encode_event(event_of(ev.NodeLeft("a"), schema=0)))
