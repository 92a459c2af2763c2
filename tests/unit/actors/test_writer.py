"""Facts reach the log once, in order, through any outage; and of two incarnations only the newer one writes on."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.actors.identity import DECISIONS
from holdfast.actors.writer import NOTES_MAX, OUTBOX_FACTS_MAX, RETRY_MAX_S, DecisionWriter, FactWriter
from holdfast.core.cluster import ClusterState, Head
from holdfast.core.entries import GENESIS, decode_record
from holdfast.core.errors import WrongLastSequence
from holdfast.core.events import LeaderElected, NodeLeft, NodeStopping, Record, StreamsMigrated
from holdfast.core.state import apply
from holdfast.store.memory import MemoryLog, MemoryLogServer
from tests.unit.support.virtual_time import VirtualClock, now_s, settle, virtual_time
from tests.unit.support.world import identity_of

LATENCY_S = 0.1


def slow(server: MemoryLogServer) -> MemoryLog:
    """A connection whose messages can be caught under way."""
    return server.client(append_timeout_s=1.0, read_timeout_s=1.0, latency=lambda: LATENCY_S)


def records(server: MemoryLogServer) -> list[Record]:
    entries = map(server.entry, range(1, server.last_sequence + 1))
    return [decode_record(entry) for entry in entries if entry is not None]


def nodes_named(server: MemoryLogServer) -> list[str]:
    return [record.event.payload.node for record in records(server) if isinstance(record.event.payload, NodeLeft)]


class Writer:
    """A fact writer that runs."""

    def __init__(self, log: MemoryLog, incarnation: str = "1") -> None:
        self.facts = FactWriter(log, VirtualClock(), identity_of("a", incarnation))

    async def __aenter__(self) -> FactWriter:
        self._task = asyncio.create_task(self.facts.run())
        return self.facts

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@virtual_time
async def test_facts_come_in_the_order_in_which_they_were_recorded_and_chain() -> None:
    server = MemoryLogServer()
    async with Writer(server.client()) as facts:
        ids = [facts.record(NodeLeft(str(number)), "why") for number in range(5)]
        await facts.flush()
    assert [record.event.id for record in records(server)] == ids
    assert len(set(ids)) == 5
    assert {record.event.cause for record in records(server)} == {"why"}
    state = ClusterState()
    for record in records(server):
        state = apply(state, record)


@virtual_time
async def test_nothing_recorded_is_nothing_to_flush() -> None:
    async with Writer(MemoryLogServer().client()) as facts:
        await facts.flush()
    assert now_s() == 0


@virtual_time
async def test_facts_wait_for_a_log_that_is_away_and_keep_the_time_at_which_they_happened() -> None:
    server = MemoryLogServer()
    async with Writer(slow(server)) as facts:
        await asyncio.sleep(1)
        server.stop()
        facts.record(NodeLeft("1"), None)
        await asyncio.sleep(100)
        facts.record(NodeLeft("2"), None)
        server.start()
        back_s = now_s()
        await facts.flush()
        assert now_s() - back_s < 1.0 + RETRY_MAX_S + 4 * LATENCY_S
    assert nodes_named(server) == ["1", "2"]
    first, second = (record.event.time for record in records(server))
    assert (second - first).total_seconds() == pytest.approx(100)


@virtual_time
async def test_a_log_that_was_away_from_the_beginning_is_waited_for() -> None:
    server = MemoryLogServer()
    server.stop()
    async with Writer(slow(server)) as facts:
        facts.record(NodeLeft("1"), None)
        await asyncio.sleep(30)
        server.start()
        await facts.flush()
    assert nodes_named(server) == ["1"]


@pytest.mark.parametrize("after_s", [0.05, 0.15], ids=["request lost", "answer lost"])
def test_a_fact_whose_fate_is_unknown_is_written_exactly_once(after_s: float) -> None:
    @virtual_time
    async def check() -> None:
        server = MemoryLogServer()
        log = slow(server)
        async with Writer(log) as facts:
            await asyncio.sleep(1)
            facts.record(NodeLeft("1"), None)
            facts.record(NodeLeft("2"), None)
            await asyncio.sleep(after_s)
            log.link.cut()
            await asyncio.sleep(10)
            log.link.heal()
            await facts.flush()
        assert nodes_named(server) == ["1", "2"]

    check()


@virtual_time
async def test_a_newer_incarnation_goes_on_after_the_older_one_and_shuts_it_out() -> None:
    server = MemoryLogServer()
    older = FactWriter(server.client(), VirtualClock(), identity_of("a", "1"))
    running = asyncio.create_task(older.run())
    older.record(NodeLeft("old"), None)
    await older.flush()
    async with Writer(server.client(), "2") as newer:
        newer.record(NodeLeft("new"), None)
        await newer.flush()
        older.record(NodeLeft("late"), None)
        with pytest.raises(WrongLastSequence):
            await running
        newer.record(NodeLeft("newest"), None)
        await newer.flush()
    assert nodes_named(server) == ["old", "new", "newest"]


@virtual_time
async def test_an_older_incarnations_fact_that_was_under_way_is_refused() -> None:
    """It is cut off with a fact in flight, is replaced, and comes back."""
    server = MemoryLogServer()
    log = slow(server)
    older = FactWriter(log, VirtualClock(), identity_of("a", "1"))
    running = asyncio.create_task(older.run())
    await asyncio.sleep(1)
    older.record(NodeLeft("late"), None)
    await asyncio.sleep(LATENCY_S / 2)
    log.link.cut()
    async with Writer(server.client(), "2") as newer:
        newer.record(NodeLeft("new"), None)
        await newer.flush()
    log.link.heal()
    with pytest.raises(WrongLastSequence):
        await running
    assert nodes_named(server) == ["new"]


@virtual_time
async def test_the_outbox_is_bounded() -> None:
    server = MemoryLogServer()
    facts = FactWriter(server.client(), VirtualClock(), identity_of("a"))
    for _ in range(OUTBOX_FACTS_MAX):
        facts.record(NodeStopping("a"), None)
    with pytest.raises(OverflowError, match="wait for the log"):
        facts.record(NodeStopping("a"), None)


@virtual_time
async def test_notes_leave_room_in_the_outbox_for_what_somebody_acts_on() -> None:
    server = MemoryLogServer()
    facts = FactWriter(server.client(), VirtualClock(), identity_of("a"))
    note = StreamsMigrated("a", "r", 1, "lost")
    ids = [facts.note(note, None) for _ in range(NOTES_MAX + 3)]
    assert ids[-4] is not None
    assert ids[-3:] == [None] * 3
    assert facts.dropped == 3
    facts.record(NodeStopping("a"), None)


@virtual_time
async def test_a_decision_after_a_head_that_is_no_longer_the_last_is_refused() -> None:
    server = MemoryLogServer()
    one, other = (DecisionWriter(server.client(), VirtualClock(), identity_of(name)) for name in "ab")
    nothing = Head(0, GENESIS)
    head = await one.append(LeaderElected("a", "1"), None, epoch=1, head=nothing)
    with pytest.raises(WrongLastSequence):
        await other.append(LeaderElected("b", "1"), None, epoch=2, head=nothing)
    await other.append(LeaderElected("b", "1"), None, epoch=2, head=head)
    with pytest.raises(WrongLastSequence):
        await one.append(LeaderElected("a", "1"), None, epoch=1, head=head)
    assert [(record.subject, record.event.epoch) for record in records(server)] == [(DECISIONS, 1), (DECISIONS, 2)]
    await settle()
