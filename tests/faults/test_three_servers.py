"""Three log servers and three lease servers: any one dies or freezes, then each in turn, and nobody notices.

A writer of our own appends to the log all the while, so that there is much that was acknowledged around each failure.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest

from holdfast.actors.clock import SystemClock
from holdfast.actors.identity import LEADER_KEY
from holdfast.actors.writer import EventAppender
from holdfast.core.cluster import Head
from holdfast.core.entries import GENESIS, digest
from holdfast.core.errors import LeasesUnavailable
from holdfast.core.events import StreamsMigrated
from holdfast.gateway.processes import identify, open_leases, open_log
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.etcd import EtcdLeases
from tests.acceptance.conftest import Cluster, Start, Status
from tests.contract.helpers import eventually
from tests.faults.test_replica_faults import PACE, assert_right, running, under_streams

BETWEEN_APPENDS_S = 0.02
PATIENCE_S = 60.0
LEASE_S = 5.0


@pytest.fixture(scope="module")
def cluster(start_cluster: Start) -> Cluster:
    return start_cluster("--servers", "3", "--lease-ttl-s", f"{LEASE_S:g}", engine_args=PACE, nodes=2)


# --- what is done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nats", "etcd"])
async def test_nobody_notices_that_each_server_is_killed_in_turn_beginning_with_the_leader(
    cluster: Cluster, kind: str
) -> None:
    before = await healthy(cluster)
    leader = leader_of(before, kind)
    others = [one for one in servers(before, kind) if one != leader]
    async with appending(cluster) as acknowledged:
        for victim in (leader, *others):
            assert_right(await under_streams(cluster, partial(os.kill, victim["pid"], signal.SIGKILL)))
            assert_right(await under_streams(cluster, lambda: None))
            await appended_on(acknowledged)
            await healthy(cluster, restarted(kind, victim))
    after = cluster.status()
    assert_nothing_was_restarted(before, after)
    assert after["controller"]["epoch"] == before["controller"]["epoch"]
    assert_all_is_in_the_log_once(cluster, acknowledged)


async def test_the_log_goes_on_while_the_server_that_leads_it_is_frozen(cluster: Cluster) -> None:
    before = await healthy(cluster)
    frozen = leader_of(before, "nats")
    victim = running(before)[0]
    async with appending(cluster) as acknowledged:
        try:
            assert_right(await under_streams(cluster, lambda: os.kill(frozen["pid"], signal.SIGSTOP)))
            assert_right(await under_streams(cluster, lambda: None))
            await appended_on(acknowledged)
            os.kill(victim["pid"], signal.SIGKILL)  # the cluster decides: a replacement
            await asyncio.to_thread(cluster.wait, replaced(victim), PATIENCE_S)
            await asyncio.to_thread(cluster.wait, told_missing("nats", frozen), PATIENCE_S)
        finally:
            os.kill(frozen["pid"], signal.SIGCONT)
        after = await healthy(cluster)
        await appended_on(acknowledged)
    assert pid_of(after, "nats", frozen) == frozen["pid"]
    assert {one["pid"] for one in running(before)} - {one["pid"] for one in running(after)} == {victim["pid"]}
    assert_all_is_in_the_log_once(cluster, acknowledged)


async def test_nobody_is_held_for_dead_when_the_server_that_leads_the_leases_is_frozen_for_longer_than_they_last(
    cluster: Cluster,
) -> None:
    before = await healthy(cluster)
    frozen = leader_of(before, "etcd")
    async with appending(cluster) as acknowledged, open_leases(settings_of(cluster)) as leases:
        held = await members(leases)
        try:
            assert_right(await under_streams(cluster, lambda: os.kill(frozen["pid"], signal.SIGSTOP)))
            ours = await eventually(lambda: granted(leases), timeout_s=PATIENCE_S)
            assert_right(await under_streams(cluster, lambda: None))
            # Nobody renews ours, so when it is gone, the others were renewed while the server was frozen.
            await eventually(lambda: expired(leases, ours), timeout_s=PATIENCE_S)
            assert await members(leases) == held
            await asyncio.to_thread(cluster.wait, told_missing("etcd", frozen), PATIENCE_S)
        finally:
            os.kill(frozen["pid"], signal.SIGCONT)
        # An etcd before 3.5.13 ends leases of others when it thaws; they are asked for anew.
        after = await healthy(cluster)
        names = {name for name, _ in held}
        await eventually(lambda: named(leases, names), timeout_s=PATIENCE_S)
    assert pid_of(after, "etcd", frozen) == frozen["pid"]
    assert_nothing_was_restarted(before, after)
    assert not [event for event in cluster.log() if event["payload"]["type"] in ("NodeLost", "GatewayLost")]
    assert_all_is_in_the_log_once(cluster, acknowledged)


# --- how it stands --------------------------------------------------------------------------------------------


def servers(status: Status, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = status["services"][kind]["servers"]
    return found


def leader_of(status: Status, kind: str) -> dict[str, Any]:
    return next(one for one in servers(status, kind) if one["role"] == "leader")


def pid_of(status: Status, kind: str, server: dict[str, Any]) -> int | None:
    pid: int | None = next(one["pid"] for one in servers(status, kind) if one["name"] == server["name"])
    return pid


def restarted(kind: str, victim: dict[str, Any]) -> Callable[[Status], bool]:
    return lambda status: pid_of(status, kind, victim) not in (None, victim["pid"])


def told_missing(kind: str, server: dict[str, Any]) -> Callable[[Status], bool]:
    """Whether the status says that this server alone does not answer."""

    def told(status: Status) -> bool:
        missing = [one["name"] for one in servers(status, kind) if not one["reachable"]]
        return missing == [server["name"]] and any(line.startswith(server["name"]) for line in status["degraded"])

    return told


def replaced(victim: dict[str, Any]) -> Callable[[Status], bool]:
    return lambda status: len(running(status)) == 2 and victim["pid"] not in {one["pid"] for one in running(status)}


async def healthy(cluster: Cluster, further: Callable[[Status], bool] = lambda status: True) -> Status:
    """The first status in which three servers of each kind are up, led and up to date, and `further` holds."""

    def well(status: Status) -> bool:
        roles = [sorted(str(one["role"]) for one in servers(status, kind)) for kind in ("nats", "etcd")]
        return not status["degraded"] and roles == [["follower", "follower", "leader"]] * 2 and further(status)

    return await asyncio.to_thread(cluster.wait, well, PATIENCE_S)


def assert_nothing_was_restarted(before: Status, after: Status) -> None:
    for section in ("replicas", "nodes", "gateways"):
        assert {one["pid"] for one in after[section]} == {one["pid"] for one in before[section]}, section


# --- what was acknowledged ------------------------------------------------------------------------------------


class Acknowledged(NamedTuple):
    """An event that the log took."""

    id: str
    sequence: int


def settings_of(cluster: Cluster) -> Settings:
    """What a member of the cluster would have: the waits of a service, not those of a person."""
    services = cluster.status()["services"]
    nats, etcd = services["nats"]["urls"], services["etcd"]["urls"]
    return load_settings(nats={"urls": nats, "replicas": 3}, etcd={"endpoints": etcd})


@asynccontextmanager
async def appending(cluster: Cluster) -> AsyncIterator[list[Acknowledged]]:
    """Append facts one after the other until the block ends; those that were acknowledged."""
    settings = settings_of(cluster)
    identity = identify(settings, "operator", "witness")
    acknowledged: list[Acknowledged] = []

    async def append() -> None:
        entry = await log.last_on(identity.fact_subject)
        head = Head(entry.sequence, digest(entry.data)) if entry else Head(0, GENESIS)
        while True:
            event = appender.event(StreamsMigrated("witness", "none", 0, "appended by a test"), None)
            head = await appender.append(event, head)
            acknowledged.append(Acknowledged(event.id, head.sequence))
            await asyncio.sleep(BETWEEN_APPENDS_S)

    async with open_log(settings) as log:
        appender = EventAppender(log, SystemClock(), identity, identity.fact_subject)
        task = asyncio.create_task(append())
        try:
            yield acknowledged
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def appended_on(acknowledged: list[Acknowledged]) -> None:
    """Wait until events that are appended from now on are acknowledged."""
    count = len(acknowledged)
    await eventually(lambda: len(acknowledged) >= count + 3, timeout_s=PATIENCE_S)


def assert_all_is_in_the_log_once(cluster: Cluster, acknowledged: list[Acknowledged]) -> None:
    events = cluster.log()
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    ids = [event["id"] for event in events]
    assert len(set(ids)) == len(ids)
    assert acknowledged
    for one in acknowledged:
        assert ids[one.sequence - 1] == one.id


# --- a lease that nobody renews -------------------------------------------------------------------------------


async def members(leases: EtcdLeases) -> set[tuple[str, int]]:
    """The members that hold leases, by their keys."""
    return {(key, lease.id) for lease in await leases.inspect_all() for key in lease.keys if key != LEADER_KEY}


async def named(leases: EtcdLeases, names: set[str]) -> bool:
    """Whether these are the members that hold leases."""
    return {name for name, _ in await members(leases)} == names


async def granted(leases: EtcdLeases) -> int | None:
    """A lease of our own; None while nobody can grant it."""
    try:
        return (await leases.grant(LEASE_S)).id
    except LeasesUnavailable:
        return None


async def expired(leases: EtcdLeases, lease: int) -> bool:
    try:
        return await leases.inspect(lease) is None
    except LeasesUnavailable:
        return False
