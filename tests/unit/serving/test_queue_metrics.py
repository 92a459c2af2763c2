"""How long streams wait for a replica, and how the gateway stands, as its metrics tell."""

from __future__ import annotations

import asyncio

from holdfast.actors.metric_families import QUEUE_WAIT
from holdfast.gateway.serving_metrics import show_serving
from tests.unit.support.history import application
from tests.unit.support.replicas import Site, answer_to, ask, eventually


async def test_who_waits_is_told_by_age_and_who_has_waited_by_how_long() -> None:
    site = Site()
    site.deploy(application())
    async with site:
        gateway = await site.gateway(ready=0)
        show_serving(gateway)
        asking = asyncio.create_task(answer_to(gateway, ask()))
        await eventually(lambda: gateway.pools()[0].queued == 1)
        (report,) = gateway.pools()
        assert list(report.queue_ages_s) == ["default"]
        assert report.queue_ages_s["default"] >= 0
        assert 'holdfast_queue_age_seconds{model="tiny",priority="default"}' in gateway.ledger.text().decode()
        await site.replica()
        (await asking).check(ask())
        assert gateway.pools()[0].queue_ages_s == {}
        assert gateway.ledger.histogram(QUEUE_WAIT, "tiny", "default").count == 1


async def test_the_state_that_health_tells_is_the_one_that_is_1() -> None:
    site = Site()
    site.deploy(application())
    async with site:
        await site.replica()
        gateway = await site.gateway()
        show_serving(gateway)
        assert 'holdfast_gateway_state{state="HEALTHY"} 1.0' in gateway.ledger.text().decode()
        gateway.standing.draining = True
        text = gateway.ledger.text().decode()
        assert 'holdfast_gateway_state{state="DRAINING"} 1.0' in text
        assert 'holdfast_gateway_state{state="HEALTHY"} 0.0' in text
