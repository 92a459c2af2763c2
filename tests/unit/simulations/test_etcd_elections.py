"""Who leads a simulated etcd, what a member without the others can still do, and what becomes of its entries."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable
from holdfast.core.ports import Leases
from holdfast.simulations.etcd.group import EtcdKnobs
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import encoded, prefix_range
from tests.contract.helpers import Reading, eventually
from tests.unit.simulations.etcd_cases import Etcd, lives, run

APART_S = 4.0


def block(etcd: Etcd, *names: str) -> None:
    """Cut these members off from all others, in both directions."""
    for way in _ways(etcd, names):
        etcd.world.network.block(*way)


def unblock(etcd: Etcd, *names: str) -> None:
    for way in _ways(etcd, names):
        etcd.world.network.unblock(*way)


def unblock_each(etcd: Etcd, one: str, other: str) -> None:
    """Let two members meet, whatever keeps them from the rest."""
    for way in ((one, other), (other, one)):
        etcd.world.network.unblock(*way)
        etcd.world.network.unblock(*way)  # each of the two may have been cut off


def _ways(etcd: Etcd, names: tuple[str, ...]) -> list[tuple[str, str]]:
    others = [name for name in etcd.servers.names if name not in names]
    return [way for name in names for other in others for way in ((name, other), (other, name))]


async def only_at(etcd: Etcd, name: str, **changes: float) -> EtcdLeases:
    """A client of one member."""
    return EtcdLeases(etcd.gateway(endpoints=(etcd.endpoint(name),), **changes))


async def keys(leases: Leases) -> list[str]:
    return [item.key for item in (await leases.list("")).items]


def test_a_leader_that_is_cut_off_is_followed_by_another_and_requests_go_on() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=10.0)
        lease = (await leases.grant(60)).id
        former = etcd.leader
        block(etcd, former)
        began_s = etcd.world.now_s
        await leases.put("k", b"", lease)
        assert 1.0 < etcd.world.now_s - began_s < APART_S
        assert etcd.leader != former
        unblock(etcd, former)
        await asyncio.sleep(1.0)
        assert await keys(await only_at(etcd, former)) == ["k"]

    run(case, 3)


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_member_that_is_cut_off_answers_no_linearizable_read_and_no_write(which: str) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=10.0)
        lease = (await leases.grant(60)).id
        name = getattr(etcd, which)
        block(etcd, name)
        await leases.put("k", b"", lease)
        alone = await only_at(etcd, name)
        for call in (alone.list(""), alone.put("k2", b"", lease)):
            with pytest.raises(LeasesUnavailable):
                await call
        assert await keys(leases) == ["k"]

    run(case, 3)


def test_stale_reads_of_a_member_that_is_cut_off_reach_no_reader() -> None:
    """The member itself would tell old things to whoever asked for them; the adapter does not."""

    async def case(etcd: Etcd) -> None:
        stale = etcd.follower
        endpoints = (etcd.endpoint(stale), *(end for end in etcd.servers.endpoints if end != etcd.endpoint(stale)))
        reader, writer = await etcd.client(endpoints=endpoints), await etcd.client(request_timeout_s=10.0)
        lease = (await writer.grant(60)).id
        old = await writer.create("leader", b"old", lease)
        async with Reading(reader.watch("", after=1)) as reading:
            await reading.count(1)
            block(etcd, stale)
            await writer.delete("leader", create_revision=old)
            new = await writer.create("leader", b"new", lease)
            stale_read = {**prefix_range(etcd.settings.prefix), "serializable": True}
            bare = etcd.gateway(endpoints=(etcd.endpoint(stale),))
            (told,) = (await bare.call("kv/range", stale_read)).body["kvs"]
            assert told["value"] == encoded("old")
            (item,) = (await reader.list("leader")).items
            assert (item.create_revision, item.value) == (new, b"new")
            await reading.until(lambda batches: batches[-1][-1].value == b"new")
            with pytest.raises(KeyTaken):
                await reader.create("leader", b"mine", lease)

    run(case, 3)


def test_a_watch_at_a_member_without_a_leader_is_cut_and_resumes_at_another() -> None:
    async def case(etcd: Etcd) -> None:
        name = etcd.follower
        endpoints = (etcd.endpoint(name), etcd.endpoint(etcd.leader))
        reader = await etcd.client(endpoints=endpoints, watch_silence_s=60.0, request_timeout_s=10.0)
        writer = await etcd.client()
        lease = (await writer.grant(60)).id
        async with Reading(reader.watch("", after=1)) as reading:
            await writer.put("k", b"1", lease)
            await reading.count(1)
            member = etcd.servers.members[name]
            assert len(member.watches) == 1
            block(etcd, name)
            await writer.put("k", b"2", lease)
            began_s = etcd.world.now_s
            await reading.count(2)
            assert 2.5 < etcd.world.now_s - began_s < 8.0
            assert not member.watches

    run(case, 3)


def test_what_a_leader_without_a_quorum_took_lands_once_it_has_one_again() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        leader, others = etcd.leader, [name for name in etcd.servers.names if name != etcd.leader]
        alone = await only_at(etcd, leader, request_timeout_s=0.4)
        block(etcd, *others[:1])
        block(etcd, *others[1:])
        with pytest.raises(LeasesUnavailable):
            await alone.create("late", b"", lease)
        assert etcd.told("created") == []
        for name in others:
            unblock(etcd, name)
        await eventually(lambda: etcd.told("created") == ["late"])
        assert etcd.leader == leader

    run(case, 3)


def test_what_a_former_leader_took_alone_is_dropped_when_it_hears_of_the_next() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        former = etcd.leader
        alone = await only_at(etcd, former, request_timeout_s=0.4)
        block(etcd, former)
        with pytest.raises(LeasesUnavailable):
            await alone.create("never", b"", lease)
        await asyncio.sleep(APART_S)
        unblock(etcd, former)
        await asyncio.sleep(APART_S)
        assert etcd.told("created") == []
        assert etcd.servers.group.disks[former].tail == []

    run(case, 3)


def test_a_member_that_lacks_entries_is_not_ahead_by_later_ones_that_nobody_agreed_upon() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        leader = etcd.leader
        behind, other = (name for name in etcd.servers.names if name != leader)
        block(etcd, behind)
        await leases.put("agreed", b"", lease)
        etcd.world.network.unblock(leader, behind)
        block(etcd, other)
        alone = await only_at(etcd, leader, request_timeout_s=0.3)
        for call in [asyncio.create_task(alone.put(f"alone-{number}", b"", lease)) for number in range(3)]:
            with pytest.raises(LeasesUnavailable):
                await call
        assert len(etcd.servers.group.disks[leader].tail) == 3
        block(etcd, leader)
        unblock_each(etcd, behind, other)
        await asyncio.sleep(2 * APART_S)
        assert etcd.leader == other
        assert await keys(await only_at(etcd, behind)) == ["agreed"]

    run(case, 3)


def test_a_request_that_a_frozen_leader_took_from_its_kernel_lands_at_the_next_leader() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        former = etcd.leader
        process = etcd.servers.members[former].process
        alone = await only_at(etcd, former, request_timeout_s=4.0, try_timeout_s=4.0)
        process.freeze()
        creating = asyncio.create_task(alone.create("late", b"", lease))
        await asyncio.sleep(3.5)
        assert etcd.leader != former
        assert etcd.told("created") == []
        process.thaw()
        await creating
        assert etcd.told("created") == ["late"]

    run(case, 3)


def test_old_news_of_a_leader_deposes_nobody() -> None:
    async def case(etcd: Etcd) -> None:
        leader = etcd.servers.group.leader()
        assert leader is not None
        other = etcd.servers.group.voters[etcd.follower]
        for term in (leader.term, leader.term - 1):
            leader.hear(other, term)
            assert leader.leads
        leader.hear(other, leader.term + 1)
        assert not leader.leads

    run(case, 3)


def test_two_members_of_three_that_are_down_leave_nobody_to_lead() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(2)).id
        down = [etcd.leader, etcd.follower]
        for name in down:
            etcd.servers.members[name].process.kill()
        for call in (leases.keep_alive(lease), leases.list("")):
            with pytest.raises(LeasesUnavailable):
                await call
        await asyncio.sleep(5.0)
        assert etcd.servers.group.leader() is None
        assert etcd.told("expired") == []
        etcd.servers.start(down[0])
        patient = await etcd.client(request_timeout_s=10.0)
        assert await lives(patient, lease)

    run(case, 3)


def test_a_member_that_comes_back_catches_up() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        name = etcd.follower
        etcd.servers.members[name].process.kill()
        await leases.put("k", b"", lease)
        etcd.servers.start(name)
        alone = await only_at(etcd, name, request_timeout_s=10.0)
        assert await keys(alone) == ["k"]
        async with Reading(alone.watch("", after=1)) as reading:
            await reading.count(1)

    run(case, 3)


def test_leases_are_told_as_a_member_that_is_behind_knows_them() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        kept, ended = (await leases.grant(60)).id, (await leases.grant(60)).id
        name = etcd.follower
        await asyncio.sleep(0.1)
        block(etcd, name)
        await leases.revoke(ended)
        await leases.grant(60)
        answer = await etcd.gateway(endpoints=(etcd.endpoint(name),)).call("lease/leases", {})
        assert sorted(int(lease["ID"]) for lease in answer.body["leases"]) == sorted((kept, ended))
        with pytest.raises(LeaseGone):
            await leases.keep_alive(ended)

    run(case, 3)


def test_without_syncing_a_quorum_that_loses_power_loses_entries_and_the_rest_follows() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        await asyncio.sleep(3.0)
        lease = (await leases.grant(60)).id
        for number in range(5):
            await leases.put(f"{number}", b"", lease)
        for name in etcd.servers.names:
            etcd.world.power_off(name)
        for name in etcd.servers.names:
            etcd.world.power_on(name)
            etcd.servers.start(name)
        patient = EtcdLeases(etcd.gateway(request_timeout_s=20.0))
        fresh = (await patient.grant(60)).id
        await patient.put("new", b"", fresh)
        for name in etcd.servers.names:
            assert (await keys(await only_at(etcd, name)))[-1:] == ["new"]
        assert etcd.told("lost")

    run(case, 3, knobs=EtcdKnobs(syncs=False))
