"""Faults of simulated JetStream that befall deliveries: they happen, and the production log reads on without a hole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from holdfast.simulations.nats import faults
from holdfast.simulations.world.process import SimProcess
from holdfast.store.jetstream_follow import BEHIND_S, _Consumer
from holdfast.store.nats_link import Message
from tests.unit.simulations.jetstream_bed import Bed, Body, read, write

SERVERS = pytest.mark.parametrize("servers", [1, 3])
COUNT = 60


def reader(bed: Bed, seen: list[int], count: int = COUNT) -> Body:
    async def body(process: SimProcess) -> None:
        seen.extend(entry.sequence for entry in await read(await bed.open(process), count))

    return body


def writer(bed: Bed, count: int = COUNT, pause_s: float = 0.1) -> Body:
    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        last = 0
        for number in range(count):
            await asyncio.sleep(pause_s)
            last = await log.append("facts.a", b"", message_id=str(number), expected_last=last)

    return body


def every(seconds: float, times: int, happen: Callable[[], object]) -> Body:
    async def body(_process: SimProcess) -> None:
        for _ in range(times):
            await asyncio.sleep(seconds)
            happen()

    return body


def happenings(bed: Bed, kind: str) -> Callable[[], object]:
    servers, rng = bed.servers, bed.rng
    return {
        faults.PULL_ENDED: lambda: servers.end_pulls(rng, 0.7),
        faults.CONSUMER_DELETED: lambda: servers.delete_consumers(rng, 0.7),
        faults.STALLED: lambda: servers.stall_consumers(3.0, rng, 0.7),
        faults.SKIPPED: lambda: servers.skip_deliveries(rng),
        faults.SLOW_DELIVERY: lambda: servers.trouble(faults.SLOW_DELIVERY, 0.5, rng, max_s=2.0),
        "clients disconnected": lambda: servers.disconnect_clients(),
    }[kind]


@SERVERS
@pytest.mark.parametrize(
    "kind",
    [
        faults.PULL_ENDED,
        faults.CONSUMER_DELETED,
        faults.STALLED,
        faults.SKIPPED,
        faults.SLOW_DELIVERY,
        "clients disconnected",
    ],
)
def test_a_follower_misses_nothing(servers: int, kind: str) -> None:
    bed = Bed(servers)
    one: list[int] = []
    two: list[int] = []
    bed.run(reader(bed, one), reader(bed, two), writer(bed), every(1.0, 6, happenings(bed, kind)))
    assert one == two == list(range(1, COUNT + 1))
    if kind in faults.KINDS:
        assert bed.happened[kind] > 0


@SERVERS
def test_a_follower_on_a_quiet_log_lives_on_heartbeats(servers: int) -> None:
    bed = Bed(servers)
    connections: list[object] = []

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        reading = asyncio.create_task(read(log, 2))
        await log.append("facts.a", b"", message_id="1", expected_last=0)
        connections.append(log._session._connection)
        await asyncio.sleep(100)
        connections.append(log._session._connection)
        assert len(bed.servers.homes) == 1
        await log.append("facts.a", b"", message_id="2", expected_last=1)
        assert [entry.sequence for entry in await reading] == [1, 2]

    bed.run(body)
    assert connections[0] is connections[1]


@SERVERS
def test_the_last_delivery_before_a_silence_is_missed_and_the_next_heartbeat_tells(servers: int) -> None:
    bed = Bed(servers)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        reading = asyncio.create_task(read(log, 2))
        await write(log, "facts.a", 1)
        await asyncio.sleep(1)
        bed.servers.skip_deliveries(bed.rng)
        await log.append("facts.b", b"", message_id="skipped", expected_last=0)
        before_s = process.world.now_s
        assert [entry.sequence for entry in await reading] == [1, 2]
        assert process.world.now_s - before_s < 2

    bed.run(body)
    assert bed.happened[faults.SKIPPED] == 1


def test_a_consumer_that_died_with_its_server_is_missed_as_soon_as_an_answer_tells_of_more() -> None:
    bed = Bed(3, follow_heartbeat_s=30.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        reading = asyncio.create_task(read(log, 3))
        last = await write(log, "facts.a", 1)
        await asyncio.sleep(40)
        bed.servers.homes.clear()  # they are gone, and nobody is told
        for member in bed.servers.members:
            assert member.server is not None
            member.server.consumers.clear()
        before_s = process.world.now_s
        await write(log, "facts.a", 2, last=last, tag="late")
        assert [entry.sequence for entry in await reading] == [1, 2, 3]
        assert process.world.now_s - before_s < BEHIND_S + 1

    bed.run(body)


class Always(Random):
    """The longest that chance may bring."""

    def random(self) -> float:
        return 1.0


@SERVERS
def test_a_follower_gets_on_though_deliveries_take_longer_than_answers_that_tell_of_more(servers: int) -> None:
    bed = Bed(servers, follow_heartbeat_s=2.3)
    slow_s = 2 * BEHIND_S + 1

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        window = bed.servers.trouble(faults.SLOW_DELIVERY, 100.0, Always(), max_s=slow_s)
        reading = asyncio.create_task(read(log, 3))
        last = 0
        while not reading.done():
            assert window.until_s > process.world.now_s
            last = await log.append("facts.a", b"", message_id=str(last), expected_last=last)
            await asyncio.sleep(0.5)
        assert [entry.sequence for entry in await reading] == [1, 2, 3]
        assert window.struck >= 3

    bed.run(body)


def test_what_comes_while_a_silent_connection_is_probed_is_taken() -> None:
    late = SimpleNamespace(subject="test.facts.a", reply="$JS.ACK.test.c.1.1.1.0.0", data=b"late", headers=None)

    made: list[_Consumer] = []

    class Silent:
        """Its server's first message comes with the answer to a ping."""

        def new_inbox(self) -> str:
            return "inbox"

        async def publish(self, *_told: object) -> None:
            return

        async def probe(self, _timeout_s: float) -> None:
            await made[0]._deliver(cast(Message, late))

    settings = SimpleNamespace(
        stream="test", follow_batch_messages=1, follow_heartbeat_s=0.001, publish_timeout_s=1.0, max_message_bytes=1
    )

    async def take() -> Message:
        made.append(_Consumer(cast(Any, SimpleNamespace(settings=settings)), cast(Any, Silent()), "c", 1, BEHIND_S))
        return await made[0].next()

    assert asyncio.run(take()).data == b"late"


def test_a_follower_goes_on_where_it_was_after_a_crash_and_a_power_failure() -> None:
    bed = Bed()
    seen: list[int] = []

    async def breaker(_process: SimProcess) -> None:
        await asyncio.sleep(1.5)
        server = bed.servers.members[0].server
        assert server is not None
        server.process.kill()
        await asyncio.sleep(1)
        bed.servers.start()
        await asyncio.sleep(1)
        bed.power_failure(0)

    bed.run(reader(bed, seen), writer(bed), breaker)
    assert seen == list(range(1, COUNT + 1))


def test_a_consumer_that_nobody_uses_is_forgotten() -> None:
    bed = Bed()

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        reading = asyncio.create_task(read(log, 1))
        await asyncio.sleep(1)
        bed.servers.disconnect_clients()
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.sleep(100)
        names = await log._api.call("CONSUMER.NAMES.test", timeout_s=5)
        assert names["consumers"] == []

    bed.run(body, until_s=150)
