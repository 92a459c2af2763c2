"""A simulated group of three NATS servers: elections, members that are cut off, and the production log on them."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from holdfast.core.errors import LogUnavailable
from holdfast.simulations.nats import faults
from holdfast.simulations.nats.jetstream import ELECTION_S
from holdfast.simulations.world.process import SimProcess
from tests.unit.simulations.jetstream_bed import HOSTS, Bed, read, write

BUSY_S = 9.5
"""The first leader is elected by now, and those who write are at it."""

SEEDS = pytest.mark.parametrize("seed", [str(seed) for seed in range(5)])


def leader_of(bed: Bed) -> int:
    assert bed.servers.leader is not None
    return bed.servers.leader.member.index


def others(index: int) -> list[int]:
    return [other for other in range(3) if other != index]


def isolate(bed: Bed, index: int) -> None:
    """Cut a member off from the other two; clients reach it as before."""
    for other in others(index):
        bed.cut(HOSTS[index], HOSTS[other])


def rejoin(bed: Bed, index: int) -> None:
    for other in others(index):
        bed.mend(HOSTS[index], HOSTS[other])


@SEEDS
def test_the_death_of_the_leader_loses_and_doubles_nothing(seed: str) -> None:
    bed = Bed(3, seed)

    async def writer(process: SimProcess) -> None:
        log = await bed.open(process)
        last = 0
        for number in range(60):
            await asyncio.sleep(0.1)
            subject = f"facts.{process.name}"
            last = await log.append(subject, b"", message_id=f"{process.name}-{number}", expected_last=last)

    async def reader(process: SimProcess) -> None:
        entries = await read(await bed.open(process), 180)
        assert [entry.sequence for entry in entries] == list(range(1, 181))

    async def killer(_process: SimProcess) -> None:
        await asyncio.sleep(BUSY_S)
        assert 0 < bed.servers.streams["test"].last < 180
        index = leader_of(bed)
        server = bed.servers.members[index].server
        assert server is not None
        server.process.kill()
        await asyncio.sleep(15)
        bed.servers.start(index)

    bed.run(writer, writer, writer, reader, killer)
    assert len(bed.servers.entries("test")) == 180


def test_a_group_without_a_leader_elects_one_within_its_time() -> None:
    bed = Bed(3)
    waited: list[float] = []

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        await write(log, "facts.a", 1)
        dead = leader_of(bed)
        server = bed.servers.members[dead].server
        assert server is not None
        server.process.kill()
        killed_s = process.world.now_s
        await write(log, "facts.b", 1)
        waited.append(process.world.now_s - killed_s)
        assert leader_of(bed) != dead

    bed.run(body)
    assert ELECTION_S[0] < waited[0] < ELECTION_S[1] + 4


@SEEDS
def test_a_leader_that_steps_down_is_followed_by_another(seed: str) -> None:
    bed = Bed(3, seed)

    async def writer(process: SimProcess) -> None:
        log = await bed.open(process)
        last = 0
        for number in range(60):
            await asyncio.sleep(0.1)
            last = await log.append("facts.a", b"", message_id=str(number), expected_last=last)

    async def reader(process: SimProcess) -> None:
        entries = await read(await bed.open(process), 60)
        assert [entry.message_id for entry in entries] == [str(number) for number in range(60)]

    async def changer(_process: SimProcess) -> None:
        bed.servers.trouble(faults.STALE_READ, 60, bed.rng, max_s=3.0)
        await asyncio.sleep(12)
        for _ in range(3):
            before = leader_of(bed)
            assert bed.servers.change_leader(bed.rng)
            await asyncio.sleep(3)
            assert leader_of(bed) != before

    bed.run(writer, reader, changer)
    assert bed.happened[faults.LEADER_CHANGED] == 3
    assert bed.happened[faults.STALE_READ] == 4


def test_one_server_has_no_leader_to_change() -> None:
    bed = Bed()

    async def body(process: SimProcess) -> None:
        await bed.open(process)
        assert not bed.servers.change_leader(bed.rng)

    bed.run(body)


@SEEDS
def test_who_is_connected_to_a_member_that_is_cut_off_appends_and_follows_elsewhere(seed: str) -> None:
    bed = Bed(3, seed)
    seen_s: list[float] = []
    appended_s: list[float] = []

    async def stranded(process: SimProcess) -> None:
        log = await bed.open(process, *bed.servers.urls)
        reading = asyncio.create_task(read(log, 4))
        await asyncio.sleep(1)
        await write(log, "facts.a", 1)
        home = [member.url for member in bed.servers.members].index((await log.status()).url)
        isolate(bed, home)
        cut_s = process.world.now_s
        await log.append("facts.b", b"", message_id="stranded", expected_last=0)
        appended_s.append(process.world.now_s - cut_s)
        await reading
        seen_s.append(process.world.now_s - cut_s)
        rejoin(bed, home)

    async def elsewhere(process: SimProcess) -> None:
        await asyncio.sleep(30)
        log = await bed.open(process)
        await write(log, "facts.c", 2)

    bed.run(stranded, elsewhere, until_s=200)
    assert appended_s[0] < 20
    assert seen_s[0] < 45


@SEEDS
def test_a_follower_on_a_member_that_is_cut_off_while_the_log_is_quiet_hears_of_news(seed: str) -> None:
    bed = Bed(3, seed)

    async def stranded(process: SimProcess) -> None:
        log = await bed.open(process)
        await write(log, "facts.a", 1)
        reading = asyncio.create_task(read(log, 2))
        await asyncio.sleep(1)
        home = [member.url for member in bed.servers.members].index((await log.status()).url)
        isolate(bed, home)
        cut_s = process.world.now_s
        assert [entry.sequence for entry in await reading] == [1, 2]
        assert process.world.now_s - cut_s < 60
        rejoin(bed, home)

    async def elsewhere(process: SimProcess) -> None:
        await asyncio.sleep(35)
        log = await bed.open(process)
        await write(log, "facts.c", 1)

    bed.run(stranded, elsewhere, until_s=200)


@SEEDS
@pytest.mark.parametrize("of_leader", [False, True])
def test_a_reader_does_not_take_a_member_that_lags_for_a_log_that_lost_history(seed: str, of_leader: bool) -> None:
    bed = Bed(3, seed, read_timeout_s=5.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        last = await write(log, "facts.a", 3)
        isolated = leader_of(bed) if of_leader else others(leader_of(bed))[0]
        isolate(bed, isolated)
        last = await write(log, "facts.a", 10, last=last, tag="more")
        lagging = await bed.open(process, *bed.servers.urls)
        reading = asyncio.create_task(read(lagging, 2, after=last - 1))
        await asyncio.sleep(40)
        rejoin(bed, isolated)
        await log.append("facts.a", b"", message_id="end", expected_last=last)
        assert [entry.sequence for entry in await reading] == [13, 14]

    bed.run(body, until_s=200)


@SEEDS
def test_a_former_leader_that_knows_less_does_not_pass_for_another_writer(seed: str) -> None:
    bed = Bed(3, seed, election_s=(1.0, 3.0))

    async def body(process: SimProcess) -> None:
        everywhere = await bed.open(process)
        await write(everywhere, "facts.a", 1)
        former = leader_of(bed)
        member = bed.servers.members[former]
        stranded = await bed.open(process, member.url)
        isolate(bed, former)
        elsewhere = await bed.open(process, *(bed.servers.members[index].url for index in others(former)))
        assert await elsewhere.append("facts.a", b"", message_id="second", expected_last=1) == 2
        assert member.server is not None
        assert member.server.leads
        assert await stranded.append("facts.a", b"", message_id="third", expected_last=2) == 3

    bed.run(body)


def test_a_duplicate_that_cannot_be_read_yet_is_no_misuse() -> None:
    bed = Bed(3, election_s=(1.0, 3.0))

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        bed.servers.trouble(faults.ACK_LOST, 0.2, bed.rng)
        bed.servers.trouble(faults.STALE_READ, 10, Random("3"), max_s=4.0)
        appending = asyncio.create_task(log.append("facts.a", b"", message_id="m", expected_last=0))
        await asyncio.sleep(0.1)
        assert bed.servers.change_leader(bed.rng)
        assert await appending == 1

    bed.run(body)
    assert bed.happened[faults.STALE_READ] == 1


def test_a_group_without_a_majority_appends_nothing() -> None:
    bed = Bed(3, append_timeout_s=10)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        await write(log, "facts.a", 1)
        for index in others(leader_of(bed)):
            server = bed.servers.members[index].server
            assert server is not None
            server.process.kill()
        with pytest.raises(LogUnavailable):
            await log.append("facts.b", b"", message_id="m", expected_last=0)
        assert [entry.message_id for entry in bed.servers.entries("test")] == ["facts.a-m-0"]

    bed.run(body)


@pytest.mark.parametrize(("failing", "kept"), [([0], 10), ([0, 1, 2], 5)])
def test_a_power_failure_of_all_members_takes_what_none_had_synced(failing: list[int], kept: int) -> None:
    bed = Bed(3, sync_interval_s=30.0)

    async def body(process: SimProcess) -> None:
        log = await bed.open(process)
        last = await write(log, "facts.a", 5)
        await asyncio.sleep(31 - process.world.now_s)
        await write(log, "facts.a", 5, last=last, tag="late")
        bed.power_failure(*failing)
        await asyncio.sleep(30)
        bed.servers.acknowledgements[:] = [told for told in bed.servers.acknowledgements if told.sequence <= kept]
        assert (await log.status()).last_sequence == kept

    bed.run(body)


@SEEDS
def test_a_leader_that_stood_still_acknowledges_nothing_that_its_follower_does_not_have(seed: str) -> None:
    bed = Bed(3, seed)

    async def writer(process: SimProcess) -> None:
        log = await bed.open(process)
        last = 0
        for number in range(80):
            await asyncio.sleep(0.1)
            last = await log.append("facts.a", b"", message_id=str(number), expected_last=last)

    async def freezer(_process: SimProcess) -> None:
        await asyncio.sleep(14)
        server = bed.servers.leader
        assert server is not None
        server.process.freeze()
        await asyncio.sleep(14)
        server.process.thaw()

    bed.run(writer, freezer)
    assert [entry.message_id for entry in bed.servers.entries("test")] == [str(number) for number in range(80)]
