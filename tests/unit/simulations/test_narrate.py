"""A run's story."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from holdfast.core.entries import SCHEMA_VERSION, encode_event
from holdfast.core.events import Event, NodeJoined
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.records import COMPLETE, TOKEN, Request, Settle
from holdfast.simulations.running.narrate import narrate


def told(history: History, *violations: Violation) -> list[str]:
    return [f"{line.at_s:g} {line.actor}: {line.text}" for line in narrate(history, violations)]


def test_lines_are_in_the_order_of_time_and_name_who_it_was() -> None:
    history = History(narrating=True)
    process = history.process_began(1.0, "n1", "node", "host-1", 101)
    history.note(1.5, "n1", "looks around")
    process.froze(2.0)
    process.thawed(3.0)
    process.ended(5.0, -9, "node crash")
    history.fault(2.0, "freeze", "n1", "for good").until_s = 3.0
    history.fault(5.0, "node crash", "n1", until_s=5.0)
    history.settle = Settle(4.0, 18.0)
    history.not_handled(1.25, "g1", "KeyError")
    history.log_lost(1.75, 8)
    assert told(history, Violation("liveness", 22.0, "nobody leads")) == [
        "1 n1: starts as pid 101 on host-1",
        "1.25 g1: not handled: KeyError",
        "1.5 n1: looks around",
        "1.75 log: lost all entries above 8",
        "2 n1: stands still",
        "2 faults: freeze of n1: for good",
        "3 n1: goes on",
        "3 faults: freeze of n1 is over",
        "4 faults: the goal must be reached by 22.000 s",
        "5 n1: ends with status -9, ended by node crash",
        "5 faults: node crash of n1",
        "22 checkers: liveness: nobody leads",
    ]


def test_a_request_is_told_with_its_tries_its_replicas_and_its_end() -> None:
    history = History()
    request = history.request(Request(7, "alpha", "say something", 1.0, 31.0))
    request.sent(1.0, "g1")
    history.attempt(1.5, "app.alpha.1", "say something", 0)
    request.got(2.0, TOKEN, 0, "a", "1")
    request.sent(3.0, "g2", "1")
    request.got(4.0, TOKEN, 0, "b", "2")
    request.ended(5.0, COMPLETE)
    assert told(history) == [
        "1 request 7: asks g1",
        "1.5 request 7: runs on app.alpha.1 from token 0 on",
        "2 request 7: gets its first event",
        "3 request 7: asks g2 again, from event 1 on",
        "5 request 7: ends: complete, 2 tokens",
    ]


def test_entries_are_told_as_events_and_what_is_none_as_unreadable() -> None:
    history = History()
    payload = NodeJoined(node="n1", host="h", pid=101, version="0.1.0", slots=4, system_port=9101)
    event = Event(
        id="n1.0.f1",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        writer="n1",
        incarnation="0",
        epoch=3,
        cause=None,
        schema=SCHEMA_VERSION,
        previous="",
        payload=payload,
    )
    history.log_appended(1.0, 1, "events.n1", encode_event(event), "m1")
    history.log_appended(2.0, 2, "events.n1", b"?", "m2")
    first, second = told(history)
    assert first == "1 n1: appends 1 NodeJoined node=n1 host=h pid=101 version=0.1.0 slots=4 system_port=9101 [epoch 3]"
    assert second.startswith("2 log: 2 on events.n1 can't be read: ")


def test_leases_are_told_by_their_holders_but_not_that_they_are_kept() -> None:
    history = History()
    holder = base64.b64encode(b'{"holder": "n3", "role": "node"}').decode()
    history.lease_event(1.0, "granted", 0x1F)
    history.lease_event(2.0, "created", 0x1F, "/holdfast/leader", 3, holder)
    history.lease_event(3.0, "kept", 0x1F)
    history.lease_event(4.0, "expired", 0x1F, holder="n3")
    term = history.term_began(5.0, "n2", "0", 9)
    term.ended_s = 6.0
    assert told(history) == [
        "1 leases: lease 1f granted",
        "2 leases: /holdfast/leader lease 1f created for n3",
        "4 leases: lease 1f expired for n3",
        "5 n2: leads with epoch 9",
        "6 n2: leads no more, epoch 9",
    ]
