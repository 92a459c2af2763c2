"""What the `Leases` port promises, over the in-memory leases and over etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable
from holdfast.core.ports import KeyChange, Leases
from tests.contract.helpers import Reading, eventually
from tests.contract.worlds import LeasesWorld

LONG_S = 60
SHORT_S = 2
GIVE_UP_S = 4.0
"""Whose call is to fail waits no longer (seconds)."""


def flat(batches: Sequence[Sequence[KeyChange]]) -> list[tuple[str, bytes | None]]:
    return [(change.key, change.value) for batch in batches for change in batch]


async def granted(leases: Leases, ttl_s: float = LONG_S) -> int:
    return (await leases.grant(ttl_s)).id


async def test_a_lease_is_granted_for_at_least_what_was_asked(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    for asked_s in (0.5, 2, 10.2):
        lease = await leases.grant(asked_s)
        assert asked_s <= lease.ttl_s <= max(2.0, asked_s + 1)
    assert (await leases.grant(10.2)).ttl_s == 11


async def test_put_and_list_in_key_order(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    last = [await leases.put(key, key.encode(), lease) for key in ("nodes/b", "nodes/a", "other/c")][-1]
    listing = await leases.list("nodes/")
    assert [(item.key, item.value, item.lease) for item in listing.items] == [
        ("nodes/a", b"nodes/a", lease),
        ("nodes/b", b"nodes/b", lease),
    ]
    assert listing.revision >= last
    assert (await leases.list("none/")).items == ()


async def test_a_second_put_keeps_the_create_revision(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    first = await leases.put("k", b"1", lease)
    second = await leases.put("k", b"2", lease)
    (item,) = (await leases.list("k")).items
    assert second > first
    assert (item.create_revision, item.mod_revision, item.value) == (first, second, b"2")


async def test_any_bytes_are_kept_as_they_are(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    for value in (b"", bytes(range(256))):
        await leases.put("k", value, await granted(leases))
        assert [item.value for item in (await leases.list("k")).items] == [value]


async def test_create_gives_its_revision_and_names_the_holder_to_others(leases_world: LeasesWorld) -> None:
    leases, rival = await leases_world.client(), await leases_world.client()
    revision = await leases.create("leader", b"me", await granted(leases))
    assert [item.create_revision for item in (await leases.list("leader")).items] == [revision]
    with pytest.raises(KeyTaken) as caught:
        await rival.create("leader", b"you", await granted(rival))
    assert (caught.value.key, caught.value.holder) == ("leader", b"me")


async def test_create_of_ones_own_key_is_refused_too(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    await leases.create("leader", b"me", lease)
    with pytest.raises(KeyTaken):
        await leases.create("leader", b"me", lease)


async def test_of_concurrent_creates_exactly_one_wins(leases_world: LeasesWorld) -> None:
    clients = [await leases_world.client() for _ in range(8)]

    async def attempt(number: int) -> bool:
        try:
            await clients[number].create("leader", str(number).encode(), await granted(clients[number]))
        except KeyTaken:
            return False
        return True

    won = [number for number, result in enumerate(await asyncio.gather(*map(attempt, range(8)))) if result]
    assert [item.value for item in (await clients[0].list("leader")).items] == [str(won[0]).encode()]
    assert len(won) == 1


async def test_a_later_create_has_a_higher_revision(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    first = await leases.create("leader", b"1", lease)
    assert await leases.delete("leader", create_revision=first)
    assert await leases.create("leader", b"2", lease) > first


async def test_delete_only_takes_the_key_that_was_meant(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    first = await leases.create("leader", b"1", lease)
    await leases.delete("leader", create_revision=first)
    second = await leases.create("leader", b"2", lease)
    assert not await leases.delete("leader", create_revision=first)
    assert [item.create_revision for item in (await leases.list("leader")).items] == [second]
    assert await leases.delete("leader", create_revision=second)
    assert not await leases.delete("leader", create_revision=second)
    assert (await leases.list("leader")).items == ()


async def test_an_unknown_lease_is_gone(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    await leases.put("mine", b"", lease)
    await leases.revoke(lease)
    await leases.revoke(lease)
    with pytest.raises(LeaseGone):
        await leases.keep_alive(lease)
    with pytest.raises(LeaseGone):
        await leases.put("k", b"", lease)
    with pytest.raises(LeaseGone):
        await leases.create("k", b"", lease)
    assert await leases.inspect(lease) is None
    assert (await leases.list("")).items == ()


async def test_inspect_tells_the_remaining_time_and_the_keys(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease, empty = await granted(leases, 30), await granted(leases, 40)
    for key in ("b", "a"):
        await leases.put(key, b"", lease)
    info = await leases.inspect(lease)
    assert info is not None
    assert (info.id, info.ttl_s, tuple(info.keys)) == (lease, 30, ("a", "b"))
    assert 25 < info.remaining_s <= 30
    every = {info.id: info for info in await leases.inspect_all()}
    assert tuple(every[lease].keys) == ("a", "b")
    assert tuple(every[empty].keys) == ()


async def test_a_key_put_anew_hangs_on_the_new_lease_alone(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    old, new = await granted(leases), await granted(leases)
    await leases.put("k", b"1", old)
    await leases.put("k", b"2", new)
    await leases.revoke(old)
    assert [item.lease for item in (await leases.list("k")).items] == [new]


async def test_a_watch_tells_changes_after_a_revision_in_order(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    first = await leases.put("n/1", b"a", lease)
    await leases.put("n/2", b"b", lease)
    async with Reading(leases.watch("n/", after=first)) as reading:
        await reading.until(lambda batches: len(flat(batches)) == 1)
        await leases.put("m/1", b"elsewhere", lease)
        created = await leases.put("n/3", b"c", lease)
        await leases.delete("n/3", create_revision=created)
        await reading.until(lambda batches: len(flat(batches)) == 3)
        assert flat(reading.items) == [("n/2", b"b"), ("n/3", b"c"), ("n/3", None)]
        revisions = [change.revision for batch in reading.items for change in batch]
    assert revisions == sorted(revisions)
    assert revisions[0] > first


async def test_two_watches_see_the_same(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    lease = await granted(leases)
    after = (await leases.list("")).revision
    async with Reading(leases.watch("", after=after)) as one, Reading(leases.watch("", after=after)) as two:
        for number in range(20):
            await leases.put(f"k{number}", b"", lease)
        for reading in (one, two):
            await reading.until(lambda batches: len(flat(batches)) == 20)
    assert flat(one.items) == flat(two.items)


async def test_an_expired_lease_takes_its_keys_along_and_watchers_hear_of_it(leases_world: LeasesWorld) -> None:
    leases, watcher = await leases_world.client(), await leases_world.client()
    lease, other = await granted(leases, SHORT_S), await granted(leases)
    for key in ("n/2", "n/1"):
        await leases.put(key, b"", lease)
    after = await leases.put("n/other", b"", other)
    async with Reading(watcher.watch("n/", after=after)) as reading:
        await reading.count(1)
        # All keys of a lease go in one revision, in one batch.
        assert sorted(flat(reading.items)) == [("n/1", None), ("n/2", None)]
        assert len({change.revision for change in reading.items[0]}) == 1
    with pytest.raises(LeaseGone):
        await leases.keep_alive(lease)
    assert await leases.inspect(lease) is None
    assert [item.key for item in (await leases.list("n/")).items] == ["n/other"]


async def test_a_lease_that_is_kept_alive_outlives_its_ttl(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    kept, left = await granted(leases, SHORT_S), await granted(leases, SHORT_S)
    await leases.put("kept", b"", kept)

    async def left_expired() -> bool:
        assert 0 < await leases.keep_alive(kept) <= SHORT_S
        return await leases.inspect(left) is None

    await eventually(left_expired)
    assert [item.key for item in (await leases.list("kept")).items] == ["kept"]


async def test_status_names_the_server(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    before = await leases.status()
    assert before.url
    assert before.version
    after = await leases.put("k", b"", await granted(leases))
    assert (await leases.status()).revision >= after > before.revision


async def test_closed_leases_say_so(leases_world: LeasesWorld) -> None:
    leases = await leases_world.client()
    await leases.close()
    with pytest.raises(LeasesUnavailable, match="closed"):
        await leases.list("")
    with pytest.raises(LeasesUnavailable, match="closed"):
        await anext(leases.watch("", after=0))
    await leases.close()


async def test_a_watch_resumes_over_a_crash_without_hole_or_repeat(frail_leases_world: LeasesWorld) -> None:
    leases, watcher = await frail_leases_world.client(), await frail_leases_world.client()
    lease = await granted(leases)
    after = (await leases.list("")).revision
    async with Reading(watcher.watch("", after=after)) as reading:
        await leases.put("k", b"1", lease)
        await reading.count(1)
        await frail_leases_world.crash()
        await frail_leases_world.recover()
        await leases.put("k", b"2", lease)
        await reading.until(lambda batches: flat(batches)[-1] == ("k", b"2"))
    assert flat(reading.items) == [("k", b"1"), ("k", b"2")]


async def test_a_crash_forgets_no_lease_and_no_key(frail_leases_world: LeasesWorld) -> None:
    leases = await frail_leases_world.client(request_timeout_s=GIVE_UP_S)
    lease = await granted(leases)
    revision = await leases.create("leader", b"me", lease)
    await frail_leases_world.crash()
    with pytest.raises(LeasesUnavailable):
        await leases.keep_alive(lease)
    assert not leases.connected
    assert leases.down_since is not None
    await frail_leases_world.recover()
    assert await leases.keep_alive(lease) > 0
    assert leases.connected
    assert leases.down_since is None
    assert [item.create_revision for item in (await leases.list("leader")).items] == [revision]


async def test_a_watch_from_a_compacted_revision_tells_what_is_there(frail_leases_world: LeasesWorld) -> None:
    leases = await frail_leases_world.client()
    lease = await granted(leases)
    for value in (b"1", b"2"):
        await leases.put("k", value, lease)
    await frail_leases_world.compact()
    async with Reading(leases.watch("", after=1)) as reading:
        await reading.count(1)
        await leases.put("k", b"3", lease)
        await reading.until(lambda batches: flat(batches)[-1] == ("k", b"3"))
    assert flat(reading.items) == [("k", b"2"), ("k", b"3")]
