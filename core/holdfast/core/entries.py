"""How events stand in the log: as JSON, each with the hash of the one before it in its subject.

Readers decode strictly: an event that does not fit its schema is a broken log. Events of older schemas are lifted by
`UPCASTERS` first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.core.decoding import UNDECODABLE
from holdfast.core.errors import CorruptLog, UnknownEventVersion
from holdfast.core.events import Event, Record
from holdfast.core.ports import LogEntry
from holdfast.core.shedding import whole_as_changes

SCHEMA_VERSION = 3
GENESIS = "0" * 64
"""What stands for the previous hash in a subject's first event."""


def encode_event(event: Event) -> bytes:
    """The event as JSON, in one fixed order of fields."""
    return msgspec.json.encode(event)


def digest(data: bytes) -> str:
    """The SHA-256 of an event's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: dict[int, Upcaster] = {1: lambda raw: raw, 2: whole_as_changes}
"""From a schema version to the function that lifts a raw event of it to the next version.

2 has more types of events, and fields that have defaults: an event of 1 means today what it meant then.
3 has changes of thresholds, where 2 had all thresholds."""


def decode_record(entry: LogEntry) -> Record:
    """The event in a log entry.

    Raises `UnknownEventVersion` for a schema newer than ours, `CorruptLog` for bytes that are no event.
    """
    try:
        event = _DECODER.decode(entry.data)
    except UNDECODABLE as error:
        event = _lift(entry, error)
    if event.schema != SCHEMA_VERSION:
        event = _lift(entry, None)
    return Record(entry.sequence, entry.subject, event, digest(entry.data))


def _lift(entry: LogEntry, error: Exception | None) -> Event:
    where = f"event at sequence {entry.sequence} on {entry.subject}"
    try:
        raw = msgspec.json.decode(entry.data, type=dict[str, Any])
        version = msgspec.convert(raw.get("schema"), int)
    except UNDECODABLE as cause:
        raise CorruptLog(f"{where} is not an event: {cause}") from cause
    if version > SCHEMA_VERSION:
        raise UnknownEventVersion(
            f"{where} has schema {version}, this Holdfast reads up to {SCHEMA_VERSION}: upgrade this process"
        )
    if version == SCHEMA_VERSION:
        raise CorruptLog(f"{where} does not fit schema {version}: {error}") from error
    while version < SCHEMA_VERSION:
        if version not in UPCASTERS:
            raise UnknownEventVersion(f"{where} has schema {version}, which nothing here can lift")
        raw = _lift_once(where, raw, version)
        version += 1
    try:
        return msgspec.convert({**raw, "schema": version}, Event)
    except msgspec.ValidationError as cause:
        raise CorruptLog(f"{where} does not fit schema {version} after it was lifted: {cause}") from cause


def _lift_once(where: str, raw: dict[str, Any], version: int) -> dict[str, Any]:
    try:
        return UPCASTERS[version](raw)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise CorruptLog(f"{where} does not fit schema {version}: {cause!r}") from cause


_DECODER = msgspec.json.Decoder(Event)
