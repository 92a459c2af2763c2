"""A lease is renewed in good time, and one that is gone is replaced and told of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from holdfast.actors.leasing import JITTER, LeaseSession
from holdfast.core.ports import Lease
from holdfast.store.memory_leases import MemoryLeases, MemoryLeasesServer
from tests.unit.support.virtual_time import now_s, settle, virtual_time

TTL_S = 10.0
MEMBERS = 200
KEYS = {"nodes/a/1": b"a", "other": b"o"}


class Renewals:
    """Notes when a server is asked to renew."""

    def __init__(self, server: MemoryLeasesServer) -> None:
        self.times_s: list[float] = []
        self._keep_alive = server.keep_alive
        server.keep_alive = self._note  # type: ignore[method-assign]

    def _note(self, lease_id: int) -> float:
        self.times_s.append(now_s())
        return self._keep_alive(lease_id)


@asynccontextmanager
async def session_on(leases: MemoryLeases, seed: int = 1) -> AsyncIterator[LeaseSession]:
    session = LeaseSession(leases, TTL_S, dict(KEYS), random.Random(seed))
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        task.cancel()
        await asyncio.wait([task])


def keys(server: MemoryLeasesServer) -> dict[str, bytes]:
    return {item.key: item.value for item in server.list("").items}


@virtual_time
async def test_renewals_come_at_half_of_the_remaining_time_or_a_little_earlier() -> None:
    server = MemoryLeasesServer()
    renewals = Renewals(server)
    async with session_on(server.client()) as session:
        assert await session.held() == session.lease
        await asyncio.sleep(200)
    times = [0.0, *renewals.times_s]
    gaps = [later - sooner for sooner, later in zip(times, times[1:])]  # noqa: B905, RUF007
    assert max(gaps) <= TTL_S / 2 + 1e-6
    assert min(gaps) >= TTL_S / 2 * (1 - JITTER)
    assert max(gaps) - min(gaps) > 0.1, "sessions must not come in step"


@virtual_time
async def test_the_lease_and_its_keys_stay_for_as_long_as_the_session_runs() -> None:
    server = MemoryLeasesServer()
    async with session_on(server.client()) as session:
        lease = await session.held()
        await asyncio.sleep(1000)
        assert session.lease == lease
        assert keys(server) == KEYS
    await asyncio.sleep(TTL_S + 1)
    assert keys(server) == {}, "without renewals it ends by itself"


@virtual_time
async def test_a_lease_that_was_revoked_is_told_of_and_granted_anew_with_its_keys() -> None:
    server = MemoryLeasesServer()
    losses: list[float] = []
    async with session_on(server.client()) as session:
        session.observe_loss(lambda: losses.append(now_s()))
        lease = await session.held()
        await settle()
        server.revoke(lease)
        await settle()
        assert losses == [0.0], "sooner than anybody may hold the absence against it"
        assert session.lease not in (None, lease)
        assert keys(server) == KEYS
        await asyncio.sleep(10 * TTL_S)
        assert len(losses) == 1


@virtual_time
async def test_a_key_that_was_taken_alone_is_put_back() -> None:
    server = MemoryLeasesServer()
    async with session_on(server.client()) as session:
        lease = await session.held()
        await settle()
        key = next(iter(KEYS))
        (item,) = server.list(key).items
        assert server.delete(key, item.create_revision, again=False)
        await settle()
        assert keys(server) == KEYS
        assert session.lease == lease


@virtual_time
async def test_a_session_that_was_cut_off_for_longer_than_its_lease_gets_another_when_it_is_back() -> None:
    server = MemoryLeasesServer()
    leases = server.client(request_timeout_s=1.0)
    losses: list[float] = []
    async with session_on(leases) as session:
        session.observe_loss(lambda: losses.append(now_s()))
        lease = await session.held()
        leases.link.cut()
        await asyncio.sleep(2 * TTL_S)
        assert keys(server) == {}
        assert not losses, "it can't know yet"
        leases.link.heal()
        back_s = now_s()
        await asyncio.sleep(1.0)
        assert losses
        assert losses[0] - back_s < 1.0
        assert session.lease not in (None, lease)
        assert keys(server) == KEYS


@virtual_time
async def test_members_whose_leases_all_ended_in_an_outage_do_not_come_back_at_once() -> None:
    """As when etcd froze and thawed: every call is answered at the same moment, and no lease is left."""
    server = MemoryLeasesServer()
    grants_s: list[float] = []
    grant = server.grant

    def noted(ttl_s: float) -> Lease:
        grants_s.append(now_s())
        return grant(ttl_s)

    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(session_on(server.client(), seed)) for seed in range(MEMBERS)]
        leases = [await session.held() for session in sessions]
        server.grant = noted  # type: ignore[method-assign]
        server.stop()
        await asyncio.sleep(0.6 * TTL_S)
        for lease in leases:
            server.revoke(lease)
        server.start()
        await asyncio.sleep(1.0)
        assert all(session.lease not in (None, lease) for session, lease in zip(sessions, leases, strict=True))
    assert len(grants_s) == MEMBERS
    busiest = max(sum(start <= other < start + 0.05 for other in grants_s) for start in grants_s)
    assert busiest < MEMBERS / 5, "a twentieth of a second would see a tenth of them if they were spread evenly"


@virtual_time
async def test_lease_servers_that_restart_cost_nobody_his_lease() -> None:
    server = MemoryLeasesServer()
    async with session_on(server.client(request_timeout_s=1.0)) as session:
        lease = await session.held()
        server.stop()
        await asyncio.sleep(20 * TTL_S)
        server.start()
        await asyncio.sleep(20 * TTL_S)
        assert session.lease == lease
        assert keys(server) == KEYS


@virtual_time
async def test_waiting_for_a_lease_ends_when_there_is_one() -> None:
    server = MemoryLeasesServer()
    leases = server.client(request_timeout_s=1.0)
    leases.link.cut()
    async with session_on(leases) as session:
        waiting = [asyncio.create_task(session.held()) for _ in range(2)]
        await asyncio.sleep(30)
        assert not any(task.done() for task in waiting)
        leases.link.heal()
        assert len(set(await asyncio.gather(*waiting))) == 1


@virtual_time
async def test_a_lease_that_is_given_back_is_gone_at_once() -> None:
    server = MemoryLeasesServer()
    async with session_on(server.client()) as session:
        await session.held()
    await session.release()
    await session.release()
    assert keys(server) == {}
    assert session.lease is None


@virtual_time
async def test_giving_back_to_servers_that_are_away_takes_one_bounded_try() -> None:
    server = MemoryLeasesServer()
    async with session_on(server.client(request_timeout_s=1.0)) as session:
        await session.held()
    server.stop()
    began_s = now_s()
    await session.release()
    assert now_s() - began_s == 1.0
    await settle()


@virtual_time
async def test_a_lease_that_is_withheld_is_gone_at_once_and_taken_again_with_its_keys() -> None:
    server = MemoryLeasesServer()
    losses: list[float] = []
    async with session_on(server.client()) as session:
        session.observe_loss(lambda: losses.append(now_s()))
        lease = await session.held()
        await asyncio.sleep(3 * TTL_S)
        session.withhold()
        await settle()
        assert (keys(server), session.lease, session.withheld) == ({}, None, True)
        assert losses == [3 * TTL_S]
        await asyncio.sleep(3 * TTL_S)
        assert keys(server) == {}
        session.resume()
        await settle()
        assert keys(server) == KEYS
        assert session.lease not in (None, lease)
        assert not session.withheld


@virtual_time
async def test_a_lease_that_is_withheld_while_no_server_answers_ends_with_its_ttl() -> None:
    server = MemoryLeasesServer()
    leases = server.client(request_timeout_s=1.0)
    async with session_on(leases) as session:
        await session.held()
        leases.link.cut()
        session.withhold()
        await asyncio.sleep(2.0)
        leases.link.heal()
        await asyncio.sleep(TTL_S)
        assert keys(server) == {}
