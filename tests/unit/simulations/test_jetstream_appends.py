"""Faults of simulated JetStream that befall appends: they happen, and the production log makes the right of them."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from holdfast.core.errors import LogFull, LogUnavailable, WrongLastSequence
from holdfast.simulations.nats import faults
from holdfast.simulations.nats.client import dialler
from holdfast.simulations.world.process import SimProcess
from holdfast.store.jetstream import JetStreamLog
from tests.unit.simulations.jetstream_bed import Bed, read, write

SERVERS = pytest.mark.parametrize("servers", [1, 3])


@SERVERS
def test_an_append_whose_acknowledgement_is_lost_returns_its_sequence(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.ACK_LOST, 0.3, bed.rng)
        assert await write(log, "facts.a", 2) == 2
        assert (await log.status()).messages == 2

    bed.run(body)
    assert bed.happened[faults.ACK_LOST] == 1


@SERVERS
def test_it_finds_itself_though_another_appended_behind_it(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log, other = await bed.open(process), await bed.open(process)
        bed.servers.trouble(faults.ACK_LOST, 0.2, bed.rng)
        appending = asyncio.create_task(log.append("facts.a", b"", message_id="first", expected_last=0))
        await asyncio.sleep(0.3)
        assert await other.append("facts.a", b"", message_id="behind", expected_last=1) == 2
        assert await appending == 1

    bed.run(body)


@SERVERS
def test_a_late_append_lands_once_though_it_was_sent_again(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.LATE, 0.3, Random("5"), max_s=4.0)
        assert await log.append("facts.a", b"", message_id="late", expected_last=0) == 1
        assert process.world.now_s > 1
        await asyncio.sleep(5)
        assert (await log.status()).messages == 1

    bed.run(body)
    assert bed.happened[faults.LATE] == 1


def test_an_append_lands_after_its_writer_has_given_up() -> None:
    bed = Bed(append_timeout_s=1.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.LATE, 0.1, Random("5"), max_s=5.0)
        with pytest.raises(LogUnavailable):
            await log.append("facts.a", b"", message_id="late", expected_last=0)
        assert (await log.status()).messages == 0
        await asyncio.sleep(5)
        assert (await log.status()).messages == 1
        assert await log.append("facts.a", b"", message_id="late", expected_last=0) == 1

    bed.run(body)


def test_a_late_append_whose_place_is_taken_meanwhile_does_not_land() -> None:
    bed = Bed(append_timeout_s=1.0)

    async def body(process: SimProcess) -> None:
        log, other = await bed.open(process), await bed.open(process)
        bed.servers.trouble(faults.LATE, 0.1, Random("5"), max_s=5.0)
        with pytest.raises(LogUnavailable):
            await log.append("facts.a", b"", message_id="late", expected_last=0)
        assert await other.append("facts.a", b"", message_id="other", expected_last=0) == 1
        await asyncio.sleep(5)
        assert [entry.message_id for entry in bed.servers.entries("test")] == ["other"]
        with pytest.raises(WrongLastSequence):
            await log.append("facts.a", b"", message_id="late", expected_last=0)

    bed.run(body)


@SERVERS
@pytest.mark.parametrize("duplicate_window_s", [120.0, 0.1])
def test_an_append_that_comes_twice_lands_once(servers: int, duplicate_window_s: float) -> None:
    bed = Bed(servers, duplicate_window_s=duplicate_window_s)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.TWICE, 30, bed.rng, max_s=2.0)
        assert await write(log, "facts.a", 10) == 10
        await asyncio.sleep(3)
        assert (await log.status()).messages == 10

    bed.run(body)
    assert bed.happened[faults.TWICE] == 10


@SERVERS
@pytest.mark.parametrize("kind", [faults.REFUSED, faults.REFUSED_YET_LANDS, faults.NO_RESPONDERS, faults.MUTE_API])
def test_what_passes_delays_appends_and_doubles_none(servers: int, kind: str) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(kind, 4, bed.rng, part=0.6)
        bed.servers.trouble(faults.ACK_LOST, 4, bed.rng, part=0.3)
        assert await write(log, "facts.a", 30) == 30
        assert (await log.status()).messages == 30

    bed.run(body)
    assert bed.happened[kind] > 0


@SERVERS
def test_a_full_log_refuses_until_it_has_room(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.FULL, 5, bed.rng)
        with pytest.raises(LogFull):
            await log.append("facts.a", b"", message_id="m", expected_last=0)
        await asyncio.sleep(5)
        assert await log.append("facts.a", b"", message_id="m", expected_last=0) == 1

    bed.run(body)


@SERVERS
def test_a_slow_disk_delays_appends_and_keeps_their_order(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.SLOW_DISK, 10, bed.rng, max_s=1.5)
        before_s = process.world.now_s
        await asyncio.gather(*(write(log, f"facts.{number}", 3) for number in range(4)))
        assert process.world.now_s - before_s > 1
        assert [entry.sequence for entry in await read(log, 12)] == list(range(1, 13))

    bed.run(body)
    assert bed.happened[faults.SLOW_DISK] > 0


@pytest.mark.parametrize("seed", range(10))
def test_a_crash_loses_nothing_that_was_acknowledged(seed: int) -> None:
    bed = Bed(seed=str(seed))

    async def writer(process: SimProcess) -> None:
        await write(await bed.open(process), f"facts.{process.name}", 60)

    async def crasher(process: SimProcess) -> None:
        for _ in range(6):
            await asyncio.sleep(0.1 + 0.3 * process.rng.random())
            server = bed.servers.members[0].server
            assert server is not None
            server.process.kill()
            await asyncio.sleep(process.rng.random())
            bed.servers.start()

    bed.run(writer, writer, writer, crasher)
    assert len(bed.servers.entries("test")) == 180


def test_appends_under_way_at_a_crash_land_now_and_then() -> None:
    landed = 0
    for seed in range(12):
        bed = Bed(seed=f"crash {seed}")

        async def body(process: SimProcess, bed: Bed = bed) -> None:
            log = await bed.open(process)
            bed.servers.trouble(faults.SLOW_DISK, 1, Random("1"), max_s=2.0)
            appending = asyncio.create_task(log.append("facts.a", b"", message_id="m", expected_last=0))
            await asyncio.sleep(0.1)
            server = bed.servers.members[0].server
            assert server is not None
            server.process.kill()
            bed.servers.start()
            assert await appending == 1

        bed.run(body)
        landed += bed.happened.get(faults.ORPHAN_LANDED, 0)
    assert 0 < landed < 12


@pytest.mark.parametrize("sync_interval_s", [0.0, 10.0])
def test_a_power_failure_takes_what_was_not_synced(sync_interval_s: float) -> None:
    bed = Bed(sync_interval_s=sync_interval_s)
    told: list[int] = []

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        last = await write(log, "facts.a", 5)
        await asyncio.sleep(12 - process.world.now_s)
        told.append(await write(log, "facts.a", 5, last=last, tag="late"))
        bed.power_failure(0)
        told.append((await log.status()).last_sequence)

    if sync_interval_s == 0:
        bed.run(body)
        assert told == [10, 10]
        assert bed.history.lost == []
    else:
        with pytest.raises(KeyError):
            bed.run(body)
        assert told == [10, 5]
        assert [(lost.after, lost.appended) for lost in bed.history.lost] == [(5, 10)]
        assert bed.happened[faults.UNSYNCED_LOST] == 1


def test_the_history_has_every_entry_by_its_subject_in_the_log() -> None:
    bed = Bed()

    async def body(process: SimProcess) -> None:
        await write(await bed.open(process), "facts.a", 3)

    bed.run(body)
    assert [(entry.sequence, entry.subject) for entry in bed.history.appended] == [(n, "facts.a") for n in (1, 2, 3)]
    assert [told.subject for told in bed.servers.acknowledgements] == ["facts.a"] * 3


def test_a_seed_replays_the_same_run() -> None:
    def trace(seed: str) -> tuple[int, list[Any]]:
        bed = Bed(3, seed)

        async def body(process: SimProcess) -> None:
            log = await JetStreamLog.open(bed.settings, dial=dialler(process, process.rng), chance=process.rng)
            for kind in (faults.ACK_LOST, faults.REFUSED, faults.NO_RESPONDERS):
                bed.servers.trouble(kind, 5, bed.rng, part=0.5)
            await write(log, "facts.a", 20)

        bed.run(body, body_reader(bed))
        return bed.world.scheduler.trace, bed.servers.acknowledgements

    assert trace("7") == trace("7")
    assert trace("7") != trace("8")


def body_reader(bed: Bed) -> Any:
    async def body(process: SimProcess) -> None:
        assert len(await read(await bed.open(process), 20)) == 20

    return body
