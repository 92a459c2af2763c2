"""What each fault of the simulated etcd does to a client, and that it heals."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from holdfast.core.errors import LeaseGone, LeasesUnavailable
from holdfast.core.ports import KeyChange
from holdfast.simulations.etcd import faults as etcd_faults
from holdfast.simulations.etcd import trouble as etcd_trouble
from holdfast.simulations.etcd.faults import EtcdFaults
from holdfast.simulations.etcd.group import EtcdKnobs
from tests.contract.helpers import Reading
from tests.unit.simulations.etcd_cases import Etcd, lives, run

KINDS = list(EtcdFaults(Etcd("kinds", 1).servers).kinds)
NEED_OTHERS = {etcd_faults.EXPIRY_EARLY, etcd_faults.LEADER_CHANGED, etcd_faults.CUT_OFF}


def rng() -> random.Random:
    return random.Random("faults")


def flat(reading: Reading[Any]) -> list[tuple[str, bytes | None]]:
    changes: list[KeyChange] = [change for batch in reading.items for change in batch]
    return [(change.key, change.value) for change in changes]


def hit_of(etcd: Etcd, kind: str, rng: random.Random, lasts_s: float = 0.0) -> str | None:
    """The member that a fault hits."""
    hit = etcd.faults.begin(kind, rng, lasts_s)
    return hit.name if hit is not None else None


WINDOWS = {
    etcd_faults.ANSWERS_LOST, etcd_faults.REQUESTS_DROPPED, etcd_faults.REQUESTS_REPEATED, etcd_faults.COMPACTED_AHEAD,
    etcd_faults.REQUESTS_TIMED_OUT, etcd_faults.EXPIRY_LATE, etcd_faults.DISK_SLOW, etcd_faults.SPACE_OUT,
}  # fmt: skip
"""Those that do nothing unless somebody asks for something."""


@pytest.mark.parametrize("kind", sorted(WINDOWS))
def test_a_window_strikes_only_what_is_asked_for_in_it(kind: str) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=20.0, watch_silence_s=30.0)
        lasting, short = (await leases.grant(60)).id, (await leases.grant(4)).id
        await leases.put("before", b"", lasting)
        async with Reading(leases.watch("", after=1)) as reading:
            await reading.count(1)
            await asyncio.sleep(0.1)  # its requests are all through
            quiet = etcd.faults.begin(kind, rng(), 1.5)
            await asyncio.sleep(2.4)
            busy = etcd.faults.begin(kind, rng(), 3.0)
            for number in range(5):
                with contextlib.suppress(LeasesUnavailable, LeaseGone):
                    await leases.put(f"{number}", b"", short)
            await asyncio.sleep(6.0)
        assert quiet is not None
        assert busy is not None
        assert quiet.struck() == 0
        struck = busy.struck()
        assert struck > 0
        await leases.put("after", b"", lasting)
        assert busy.struck() == struck

    run(case)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_heals(kind: str, members: int) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=20.0)
        lease = (await leases.grant(60)).id
        await leases.put("before", b"", lease)
        async with Reading(leases.watch("", after=1)) as reading:
            await reading.count(1)
            hit = etcd.faults.begin(kind, rng(), 2.0)
            assert (hit is None) == (members == 1 and kind in NEED_OTHERS)
            await asyncio.sleep(10.0)
            began_s = etcd.world.now_s
            assert await leases.keep_alive(lease) == 60
            await leases.put("after", b"", lease)
            assert etcd.world.now_s - began_s < 0.1
            await reading.until(lambda _: flat(reading)[-1] == ("after", b""))

    run(case, members)


def test_a_lost_answer_has_had_its_effect() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        heal = etcd.trouble(etcd_trouble.UNANSWERED)
        putting = asyncio.create_task(leases.put("k", b"1", lease))
        await asyncio.sleep(0.1)
        assert etcd.told("created") == ["k"]
        assert not putting.done()
        heal()
        await putting
        assert etcd.told("put") == ["k"]

    run(case)


def test_a_dropped_request_has_no_effect_until_it_is_sent_again() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        heal = etcd.trouble(etcd_trouble.DROPPED)
        putting = asyncio.create_task(leases.put("k", b"1", lease))
        await asyncio.sleep(0.1)
        assert etcd.told("created") == []
        heal()
        await putting
        assert (etcd.told("created"), etcd.told("put")) == (["k"], [])

    run(case)


def test_a_repeated_request_has_its_effect_once_more_and_later() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        heal = etcd.trouble(etcd_trouble.REPEATED)
        revision = await leases.put("k", b"1", lease)
        heal()
        await asyncio.sleep(4.0)
        (item,) = (await leases.list("k")).items
        assert (item.create_revision, item.mod_revision) == (revision, revision + 1)

    run(case)


def test_a_timeout_may_have_had_its_effect_or_not() -> None:
    effects = set()
    for seed in range(8):

        async def case(etcd: Etcd) -> None:
            leases = await etcd.client(request_timeout_s=0.5, retry_wait_min_s=1.0)
            lease = (await leases.grant(60)).id
            etcd.trouble(etcd_trouble.TIMED_OUT)
            with pytest.raises(LeasesUnavailable, match="request timed out"):
                await leases.put("k", b"1", lease)
            await asyncio.sleep(0.1)

        effects.add("k" in run(case, seed=str(seed)).told("created"))
    assert effects == {True, False}


def test_a_watch_that_is_cut_misses_nothing() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        async with Reading(leases.watch("", after=1)) as reading:
            for number in range(20):
                await leases.put(f"{number}", b"", lease)
                await reading.until(lambda _: flat(reading)[-1:] == [(f"{number}", b"")])  # noqa: B023
                assert hit_of(etcd, etcd_faults.WATCHES_CUT, random.Random(number)) == "etcd-1"
        assert flat(reading) == [(f"{number}", b"") for number in range(20)]

    run(case)


@pytest.mark.parametrize("members", [1, 3])
def test_a_watch_that_fell_behind_a_compaction_tells_the_difference(members: int) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(watch_silence_s=30.0)
        lease = (await leases.grant(60)).id
        gone = await leases.put("gone", b"", lease)
        async with Reading(leases.watch("", after=1)) as reading:
            await reading.count(1)
            etcd.faults.begin(etcd_faults.COMPACTED_AHEAD, rng(), 2.0)
            await leases.put("changed", b"1", lease)
            await leases.put("changed", b"2", lease)
            await leases.delete("gone", create_revision=gone)
            await reading.until(lambda _: ("gone", None) in flat(reading))
        assert flat(reading) == [("gone", b""), ("changed", b"2"), ("gone", None)]

    run(case, members)


def test_a_deletion_at_the_very_revision_that_was_compacted_is_told() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(watch_silence_s=30.0)
        lease = (await leases.grant(60)).id
        created = await leases.put("k", b"", lease)
        async with Reading(leases.watch("", after=1)) as reading:
            await reading.count(1)
            etcd.faults.begin(etcd_faults.COMPACTED_AHEAD, rng(), 2.0)
            await leases.delete("k", create_revision=created)
            while etcd.servers.group.state.compacted <= created:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            etcd.faults.begin(etcd_faults.WATCHES_CUT, rng(), 0.0)
            await reading.until(lambda _: flat(reading) == [("k", b""), ("k", None)])

    run(case)


def test_a_deletion_at_the_compacted_revision_is_kept_from_watches_that_start_there() -> None:
    """As etcd 3.5.1 does it; the adapter must not start there."""

    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        revision = await leases.put("k", b"", lease)
        await leases.delete("k", create_revision=revision)
        await etcd.compact()
        create = {"key": "AA==", "range_end": "AA==", "start_revision": str(revision + 1)}
        gateway = etcd.gateway(watch_silence_s=1.0)
        lines = gateway.lines(etcd.settings.endpoints[0], "watch", {"create_request": create})
        assert (await anext(lines))["created"]
        with pytest.raises(Exception, match="ReadTimeout"):
            await anext(lines)
        async with Reading(leases.watch("", after=revision)) as reading:
            await leases.put("new", b"", lease)
            await reading.until(lambda _: ("new", b"") in flat(reading))

    run(case)


def test_leases_may_expire_late() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(2)).id
        etcd.faults.begin(etcd_faults.EXPIRY_LATE, rng(), 5.0)
        await asyncio.sleep(4.5)
        assert etcd.told("expired") == []
        await asyncio.sleep(1.5)
        assert etcd.told("expired") == [str(lease)]
        assert await leases.inspect(lease) is None

    run(case)


def test_a_lease_that_has_ended_and_is_not_revoked_yet_is_not_renewed() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(2)).id
        etcd.faults.begin(etcd_faults.EXPIRY_LATE, rng(), 2.5)
        await asyncio.sleep(2.2)
        assert not await lives(leases, lease)
        assert etcd.told("expired") == [str(lease)]

    run(case)


@pytest.mark.parametrize("mended", [False, True])
def test_a_leader_that_freezes_and_thaws_expires_leases_that_were_renewed_elsewhere(mended: bool) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=10.0)
        lease = (await leases.grant(4)).id
        assert hit_of(etcd, etcd_faults.EXPIRY_EARLY, rng(), 1.0) == etcd.leader
        for _ in range(8):
            await asyncio.sleep(0.3)
            assert await lives(leases, lease)
        await asyncio.sleep(2.5)
        assert await lives(leases, lease) == mended

    run(case, 3, knobs=EtcdKnobs(revokes_when_deposed=not mended))


def test_a_new_leader_gives_all_leases_their_full_time() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(4)).id
        await asyncio.sleep(3.5)
        former = etcd.leader
        assert hit_of(etcd, etcd_faults.LEADER_CHANGED, rng()) == former
        await asyncio.sleep(0.1)
        assert etcd.leader != former
        info = await leases.inspect(lease)
        assert info is not None
        assert info.remaining_s == 4
        await asyncio.sleep(3.5)
        assert etcd.told("expired") == []
        await asyncio.sleep(2.0)
        assert etcd.told("expired") == [str(lease)]

    run(case, 3)


def test_a_slow_disk_delays_what_is_written_and_nothing_else() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(try_timeout_s=3.0, request_timeout_s=5.0)
        lease = (await leases.grant(60)).id
        etcd.faults.begin(etcd_faults.DISK_SLOW, rng(), 10.0)
        began_s = etcd.world.now_s
        await leases.keep_alive(lease)
        await leases.list("")
        assert etcd.world.now_s - began_s < 0.02
        await leases.put("k", b"", lease)
        assert etcd.world.now_s - began_s > etcd_faults.SLOW_DISK_S[0]

    run(case)


def test_without_space_leases_live_and_end_but_nothing_is_written() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client()
        lease = (await leases.grant(60)).id
        await leases.put("k", b"", lease)
        etcd.faults.begin(etcd_faults.SPACE_OUT, rng(), 5.0)
        for refused in (leases.put("k", b"", lease), leases.grant(5), leases.create("new", b"", lease)):
            with pytest.raises(LeasesUnavailable, match="out of space"):
                await refused
        assert await leases.keep_alive(lease) == 60
        await leases.revoke(lease)
        assert (await leases.list("")).items == ()

    run(case)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_what_was_acknowledged_is_there_after_a_crash(power: bool, members: int) -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=30.0)
        lease = (await leases.grant(60)).id
        revisions = []
        for number in range(10):
            revisions.append(await leases.create(f"{number}", b"", lease))
            if power:
                etcd.lose_power(etcd.servers.names, 0.5)
            else:
                etcd.kill(etcd.leader, 0.5)
        assert [item.create_revision for item in (await leases.list("")).items] == revisions

    run(case, members)


def test_without_syncing_a_power_failure_takes_what_was_acknowledged() -> None:
    async def case(etcd: Etcd) -> None:
        leases = await etcd.client(request_timeout_s=30.0)
        await asyncio.sleep(3.0)
        await leases.grant(60)
        lease = (await leases.grant(60)).id
        await leases.put("k", b"", lease)
        etcd.lose_power(etcd.servers.names, 0.5)
        await asyncio.sleep(3.0)
        with pytest.raises(LeaseGone):
            await leases.put("k", b"", lease)
        assert (await leases.list("")).items == ()
        assert etcd.told("lost")

    run(case, knobs=EtcdKnobs(syncs=False))
