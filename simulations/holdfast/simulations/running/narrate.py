"""Tells a run as a story: at what virtual time, who, and what, a line for each thing that happened."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from holdfast.actors.identity import LOG_KEY
from holdfast.core.entries import decode_record
from holdfast.core.errors import HoldfastError
from holdfast.core.events import type_name
from holdfast.core.ports import LogEntry
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import TOKEN, Appended, Fault, LeaseEvent, Process, Request

FAULT: Final = "fault"
VIOLATION: Final = "violation"
PROCESS: Final = "process"
LEASE: Final = "lease"
LOG: Final = "log"
STREAM: Final = "stream"
NOTE: Final = "note"
"""What a line is about."""

LOG_ACTOR: Final = "log"
LEASES_ACTOR: Final = "leases"
FAULTS_ACTOR: Final = "faults"
CHECKERS_ACTOR: Final = "checkers"

VALUE_MAX = 60
"""Characters of an event's field that are shown."""


class Line(msgspec.Struct, frozen=True):
    """Something that happened, at a true virtual time (seconds), to an actor."""

    at_s: float
    actor: str
    about: str
    text: str


def narrate(history: History, violations: Iterable[Violation] = ()) -> list[Line]:
    """All that was recorded and is worth telling."""
    lines = [
        *(line for process in history.processes for line in _process(process)),
        *(line for fault in history.faults for line in _fault(fault)),
        *(_appended(entry) for entry in history.appended),
        *(Line(lost.at_s, LOG_ACTOR, LOG, f"lost all entries above {lost.after}") for lost in history.lost),
        *(line for event in history.leases if (line := _lease(event)) is not None),
        *(line for request in history.requests for line in _request(request)),
        *(Line(note.at_s, note.actor, NOTE, note.text) for note in history.notes),
        *(Line(item.at_s, item.process, NOTE, f"not handled: {item.text}") for item in history.unhandled),
        *_terms(history),
        *_settling(history),
        *(Line(item.at_s, CHECKERS_ACTOR, VIOLATION, f"{item.checker}: {item.message}") for item in violations),
    ]
    # Sorting keeps what happened at one time in the order of the list above: causes come before what they led to.
    return sorted(lines, key=lambda line: line.at_s)


def _process(process: Process) -> Iterator[Line]:
    runs = f", runs {process.replica}" if process.replica else ""
    yield Line(process.began_s, process.name, PROCESS, f"starts as pid {process.pid} on {process.host}{runs}")
    for from_s, until_s in process.frozen:
        yield Line(from_s, process.name, PROCESS, "stands still")
        if until_s is not None:
            yield Line(until_s, process.name, PROCESS, "goes on")
    if process.ended_s is not None:
        by = f", ended by {process.by}" if process.by else ""
        yield Line(process.ended_s, process.name, PROCESS, f"ends with status {process.status}{by}")


def _fault(fault: Fault) -> Iterator[Line]:
    what = f"{fault.kind} of {fault.target}" if fault.target else fault.kind
    details = f": {fault.details}" if fault.details else ""
    yield Line(fault.from_s, FAULTS_ACTOR, FAULT, f"{what}{details}")
    if fault.until_s is not None and fault.until_s > fault.from_s:
        yield Line(fault.until_s, FAULTS_ACTOR, FAULT, f"{what} is over")


def _appended(entry: Appended) -> Line:
    """A log entry as its event, if it is one."""
    try:
        record = decode_record(LogEntry(entry.sequence, entry.subject, entry.data, entry.message_id))
    except HoldfastError as error:
        return Line(entry.at_s, LOG_ACTOR, LOG, f"{entry.sequence} on {entry.subject} can't be read: {error}")
    fields = msgspec.to_builtins(record.event.payload)
    shown = [
        f"{name}={_short(value)}"
        for name, value in fields.items()
        if name != "type" and value is not None and value != "" and not isinstance(value, dict)
    ]
    epoch = f" [epoch {record.event.epoch}]" if record.event.epoch else ""
    text = f"appends {entry.sequence} {type_name(record.event.payload)} {' '.join(shown)}{epoch}"
    return Line(entry.at_s, record.event.writer, LOG, text)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 1]}…"


def _lease(event: LeaseEvent) -> Line | None:
    if event.kind == "kept" or (event.kind == "put" and event.key.rpartition("/")[2] == LOG_KEY):
        return None  # every other second, and never a surprise
    words = [event.key, f"lease {event.lease:x}" if event.lease else "", event.kind]
    holder = _holder(event.holder)
    if holder:
        words.append(f"for {holder}")
    return Line(event.at_s, LEASES_ACTOR, LEASE, " ".join(word for word in words if word))


def _holder(value: str) -> str:
    """Who holds a key. What stands at keys of leases is a record of its holder, in base64 as etcd's JSON has it."""
    try:
        record = msgspec.json.decode(base64.b64decode(value, validate=True))
    except (ValueError, msgspec.DecodeError):
        return value
    return str(record["holder"]) if isinstance(record, dict) and "holder" in record else value


def _request(request: Request) -> Iterator[Line]:
    actor = f"request {request.id}"
    for number, sent in enumerate(request.tries):
        again = " again" if number else ""
        resumes = f", from event {sent.resumes} on" if sent.resumes else ""
        yield Line(sent.at_s, actor, STREAM, f"asks {sent.gateway}{again}{resumes}")
    for attempt in request.attempts:
        yield Line(attempt.at_s, actor, STREAM, f"runs on {attempt.replica} from token {attempt.accepted} on")
    if request.first_s is not None:
        yield Line(request.first_s, actor, STREAM, "gets its first event")
    if request.ended_s is not None:
        tokens = sum(kind == TOKEN for kind, *_ in request.events)
        code = " ".join(part for part in (request.code, str(request.status or "")) if part)
        reason = f" ({code})" if code else ""
        yield Line(request.ended_s, actor, STREAM, f"ends: {request.how}{reason}, {tokens} tokens")


def _terms(history: History) -> Iterator[Line]:
    for term in history.terms:
        yield Line(term.began_s, term.node, LEASE, f"leads with epoch {term.epoch}")
        if term.ended_s is not None:
            yield Line(term.ended_s, term.node, LEASE, f"leads no more, epoch {term.epoch}")


def _settling(history: History) -> Iterator[Line]:
    settle = history.settle
    if settle is not None:
        core = f" with {', '.join(settle.core)}" if settle.core else ""
        until_s = settle.began_s + settle.bound_s
        yield Line(settle.began_s, FAULTS_ACTOR, NOTE, f"the goal must be reached by {until_s:.3f} s{core}")
