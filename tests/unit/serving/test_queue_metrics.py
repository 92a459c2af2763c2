"""How long streams wait for a replica, as the gateway's metrics tell."""

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
