"""Everything at once befalls simulated JetStream, as drawn from a seed; what the log promises holds all the same."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest

from holdfast.core.errors import LogFull, LogUnavailable
from holdfast.simulations.nats import faults
from holdfast.simulations.world.process import SimProcess
from holdfast.store.jetstream import JetStreamLog
from tests.unit.simulations.jetstream_bed import HOSTS, Bed, Body, read

WRITERS = 4
APPENDS = 25
STORM_S = 40.0
WINDOWS = (
    faults.ACK_LOST, faults.LATE, faults.TWICE, faults.REFUSED, faults.REFUSED_YET_LANDS, faults.FULL, faults.SLOW_DISK,
    faults.SLOW_DELIVERY, faults.MUTE_API, faults.NO_RESPONDERS, faults.STALE_READ,
)  # fmt: skip


async def opened(bed: Bed, process: SimProcess) -> JetStreamLog:
    """A log, for as long as it takes."""
    while True:
        with contextlib.suppress(LogUnavailable):
            return await bed.open(process)


async def insist(log: JetStreamLog, subject: str, message_id: str, last: int) -> int:
    """Append, again and again while the outcome is unknown or there is no room."""
    while True:
        with contextlib.suppress(LogUnavailable, LogFull):
            return await log.append(subject, message_id.encode(), message_id=message_id, expected_last=last)
        await asyncio.sleep(0.5)


def writer(bed: Bed, told: dict[str, int]) -> Body:
    async def body(process: SimProcess) -> None:
        log = await opened(bed, process)
        last = 0
        for number in range(APPENDS):
            await asyncio.sleep(process.rng.random() * 2)
            message_id = f"{process.name}-{number}"
            told[message_id] = last = await insist(log, f"facts.{process.name}", message_id, last)

    return body


def reader(bed: Bed, seen: list[str]) -> Body:
    async def body(process: SimProcess) -> None:
        entries = await read(await opened(bed, process), WRITERS * APPENDS)
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
        seen.extend(entry.message_id for entry in entries)

    return body


async def befall(bed: Bed, rng: Random) -> None:
    """Something that is over after some seconds."""
    servers, index = bed.servers, rng.randrange(len(bed.servers.members))
    server, lasts_s = servers.members[index].server, rng.uniform(0.5, 6)
    kind = rng.randrange(10)
    if kind < 4:
        servers.trouble(rng.choice(WINDOWS), lasts_s, rng, part=rng.choice((0.3, 1.0)), max_s=rng.uniform(0.1, 4.0))
    elif kind == 4:
        rng.choice((servers.end_pulls, servers.delete_consumers, servers.skip_deliveries))(rng)
        servers.stall_consumers(lasts_s, rng, 0.5)
    elif kind == 5:
        servers.change_leader(rng)
    elif kind == 6 and server is not None:
        server.process.freeze()
        await asyncio.sleep(lasts_s)
        server.process.thaw()
    elif kind == 7 and server is not None:
        bed.world.power_off(HOSTS[index]) if rng.random() < 0.5 else server.process.kill()
        await asyncio.sleep(lasts_s)
        bed.world.power_on(HOSTS[index])
        servers.start(index)
    elif kind > 7:
        one, other = rng.sample([*HOSTS[: len(servers.members)], "h0", "h1", "h4"], 2)
        bed.world.network.block(one, other)
        if rng.random() < 0.7:
            bed.world.network.block(other, one)
            await asyncio.sleep(lasts_s * 3)
            bed.world.network.unblock(other, one)
        else:
            await asyncio.sleep(lasts_s * 3)
        bed.world.network.unblock(one, other)


def weather(bed: Bed) -> Body:
    async def body(process: SimProcess) -> None:
        rng = Random(f"{bed.world.seed}/storm")
        async with asyncio.TaskGroup() as group:
            while process.world.now_s < STORM_S:
                await asyncio.sleep(rng.expovariate(0.8))
                group.create_task(befall(bed, rng))

    return body


def storm(seed: str, servers: int) -> Bed:
    """One run. It ends well within two minutes of calm, or fails."""
    bed = Bed(servers, seed)
    told: dict[str, int] = {}
    readers: list[list[str]] = [[], [], []]
    writers = [writer(bed, told) for _ in range(WRITERS)]
    bed.run(*writers, *(reader(bed, seen) for seen in readers), weather(bed), until_s=STORM_S + 160)
    entries = bed.servers.entries("test")
    assert {entry.message_id: entry.sequence for entry in entries} == told
    assert all(seen == [entry.message_id for entry in entries] for seen in readers)
    return bed


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_doubled_or_out_of_order(seed: int, servers: int) -> None:
    assert len(storm(str(seed), servers).happened) > 2
