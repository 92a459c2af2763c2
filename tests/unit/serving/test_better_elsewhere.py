"""Streams begin on replicas that are sick or about to go only where no other has room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from holdfast.core import events as ev
from holdfast.gateway.serving import Serving
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, LocalReplica, Site, ask, eventually, opened, replicas_ready

STREAMS = 8


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        site.deploy(application(replicas=2))
        yield site


async def follows(gateway: Serving, site: Site) -> None:
    """Wait until the gateway has acted on all of the log."""
    async with asyncio.timeout(5):
        await gateway._follower.reached(site.state.sequence)
    await eventually(lambda: not gateway._changed.is_set())


async def where_streams_begin(gateway: Serving, streams: int = STREAMS) -> dict[str, int]:
    """How many of so many new streams each replica gets."""
    async with AsyncExitStack() as stack:
        for _ in range(streams):
            session = await stack.enter_async_context(opened(gateway, ask(tokens=500)))
            await Answer().read(session, tokens=1)
        return {link.replica: link.in_flight for pool in gateway._pools.values() for link in pool.links}


def get_sick(site: Site, kind: str = "check_health", name: str = "app.tiny.1") -> None:
    site.fact(ev.ReplicaUnhealthy(name, "a", kind, "a shard is gone"), by="node.a")


async def two(site: Site) -> list[LocalReplica]:
    return [await site.replica(itl_ms=2), await site.replica(itl_ms=2)]


async def test_a_sick_replica_gets_nothing_new_until_it_is_well(site: Site) -> None:
    await two(site)
    gateway = await site.gateway()
    get_sick(site)
    await follows(gateway, site)
    assert await where_streams_begin(gateway) == {"app.tiny.1": 0, "app.tiny.2": STREAMS}
    site.fact(ev.ReplicaHealthy("app.tiny.1", "a"), by="node.a")
    await follows(gateway, site)
    assert (await where_streams_begin(gateway))["app.tiny.1"] > 0


async def test_a_replica_that_is_drained_gets_nothing_new_before_it_is_told_to_stop(site: Site) -> None:
    await two(site)
    gateway = await site.gateway()
    site.decide(ev.DrainOrdered("replica", "app.tiny.1", None, None))
    await follows(gateway, site)
    assert await where_streams_begin(gateway) == {"app.tiny.1": 0, "app.tiny.2": STREAMS}
    site.decide(ev.DrainLifted("replica", "app.tiny.1"))
    await follows(gateway, site)
    assert (await where_streams_begin(gateway))["app.tiny.1"] > 0


@pytest.mark.parametrize("way", ["drained", "stopping"])
async def test_replicas_of_a_node_that_goes_serve_on_where_there_are_no_others(site: Site, way: str) -> None:
    await two(site)
    gateway = await site.gateway()
    if way == "drained":
        site.decide(ev.DrainOrdered("node", "a", None, None))
    else:
        site.fact(ev.NodeStopping("a"), by="node.a")
    await follows(gateway, site)
    found = await where_streams_begin(gateway)
    assert sum(found.values()) == STREAMS
    assert min(found.values()) > 0


async def test_a_sick_replica_takes_what_the_others_have_no_room_for(site: Site) -> None:
    site.deploy(application(replicas=2, max_ongoing_requests=3))
    await two(site)
    gateway = await site.gateway()
    get_sick(site)
    await follows(gateway, site)
    assert await where_streams_begin(gateway, 5) == {"app.tiny.1": 2, "app.tiny.2": 3}


async def test_health_is_bad_once_no_replica_makes_tokens_but_not_for_checks_that_all_fail(site: Site) -> None:
    await two(site)
    gateway = await site.gateway()
    get_sick(site, "canary", "app.tiny.1")
    get_sick(site, "check_health", "app.tiny.2")
    await follows(gateway, site)
    assert gateway.health().healthy
    site.exits("app.tiny.2")
    await eventually(lambda: replicas_ready(gateway) == 1)
    assert gateway.health().reasons == ["no replica of tiny makes tokens: a shard is gone"]
    site.fact(ev.ReplicaHealthy("app.tiny.1", "a"), by="node.a")
    await follows(gateway, site)
    assert gateway.health().healthy
