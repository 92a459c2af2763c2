"""What the gateway counts of streams that leave their replica."""

from __future__ import annotations

import pytest

from holdfast.actors.metric_families import HEALTH_TRANSITIONS, MIGRATION_PAUSE, MIGRATIONS
from holdfast.core.errors import NoReplica
from holdfast.gateway.serving import Serving
from tests.unit.support.history import application
from tests.unit.support.replicas import Answer, Site, ask, eventually, opened

MODEL = "tiny"


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


def moved(gateway: Serving, outcome: str, cause: str = "lost") -> int:
    return int(gateway.ledger.value(MIGRATIONS, MODEL, cause, outcome))


async def test_a_stream_that_goes_on_elsewhere_is_counted_once_with_its_pause(site: Site) -> None:
    async with site:
        replicas = [await site.replica(itl_ms=2), await site.replica(itl_ms=2)]
        gateway = await site.gateway()
        request = ask(tokens=60)
        async with opened(gateway, request) as session:
            answer = await Answer().read(session, tokens=5)
            await next(replica for replica in replicas if not replica.free).kill()
            (await answer.read(session)).check(request)
        assert moved(gateway, "resumed") == 1
        pauses = gateway.ledger.histogram(MIGRATION_PAUSE, MODEL, "lost")
        assert pauses.count == 1
        _buckets, total_s = pauses.buckets()
        assert 0 < total_s < 10


async def test_a_stream_that_finds_no_other_replica_is_counted_as_failed(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=2)
        gateway = await site.gateway(replica_wait_s=0.05)
        async with opened(gateway, ask(tokens=60)) as session:
            answer = await Answer().read(session, tokens=5)
            await replica.kill()
            with pytest.raises(NoReplica):
                await answer.read(session)
        assert moved(gateway, "failed") == 1
        assert gateway.ledger.histogram(MIGRATION_PAUSE, MODEL, "lost").count == 0


async def test_a_stream_whose_client_leaves_while_it_waits_is_counted_as_cancelled(site: Site) -> None:
    async with site:
        replica = await site.replica(itl_ms=2)
        gateway = await site.gateway()
        async with opened(gateway, ask(tokens=60)) as session:
            await Answer().read(session, tokens=5)
            await replica.kill()
            await eventually(lambda: gateway.migrations.total() == 1)
        assert moved(gateway, "cancelled") == 1


async def test_a_replica_that_falls_silent_and_is_heard_again_is_counted_both_times(site: Site) -> None:
    async with site:
        replica = await site.replica()
        gateway = await site.gateway(heartbeat_timeout_s=60)
        beat = replica.replica._beat
        replica.replica._beat = lambda: None  # type: ignore[method-assign]
        await eventually(lambda: gateway.ledger.value(HEALTH_TRANSITIONS, MODEL, "suspected", "silent") == 1)
        replica.replica._beat = beat  # type: ignore[method-assign]
        await eventually(lambda: gateway.ledger.value(HEALTH_TRANSITIONS, MODEL, "trusted", "heard_again") == 1)
