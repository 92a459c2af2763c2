"""Thresholds that are changed at a gateway: asked of the controller, and told to whoever asked once they hold."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from holdfast.core.errors import UnknownModel
from holdfast.core.events import BusyThresholdRequested, BusyThresholdSet, Fact, LeaderElected
from holdfast.core.overloads import threshold_decisions
from holdfast.core.thresholds import NONE_SET, ThresholdChanges, Thresholds
from holdfast.gateway.problems import HttpRefusal
from tests.unit.support.history import application
from tests.unit.support.replicas import Site, eventually


@pytest.fixture
def site() -> Site:
    return Site()


async def test_thresholds_are_asked_of_the_controller_and_hold_once_it_has_decided(site: Site) -> None:
    async with site:
        told: list[Fact] = []
        site.deploy(application(replicas=1, thresholds=Thresholds(queue_age_threshold_s=3.0)))
        gateway = await site.gateway()

        def decide(fact: Fact, _cause: str | None) -> str:
            told.append(fact)
            asked = site.fact(fact, by="gateway.g")
            for decision, cause in threshold_decisions(site.state):
                site.decide(decision, cause)
            return asked

        gateway._report = decide
        half = ThresholdChanges(active_decode_blocks_threshold=0.5)
        await gateway.set_thresholds("tiny", half)
        assert told == [BusyThresholdRequested("g", "tiny", half)]
        assert gateway.thresholds("tiny") == Thresholds(0.5, queue_age_threshold_s=3.0)
        await gateway.set_thresholds("tiny", ThresholdChanges(active_decode_blocks_threshold=None))
        assert gateway.thresholds("tiny") == Thresholds(queue_age_threshold_s=3.0)


async def test_changes_that_are_asked_for_at_once_at_two_gateways_hold_both_and_each_is_told_so(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1))
        gateways = {name: await site.gateway(name) for name in ("g", "h")}
        for name, gateway in gateways.items():
            gateway._report = partial(asked_of, site, name)
        changes = (ThresholdChanges(requests_in_flight_threshold=5), ThresholdChanges(queue_age_threshold_s=7.0))
        asking = [
            asyncio.create_task(gateway.set_thresholds("tiny", change))
            for gateway, change in zip(gateways.values(), changes, strict=True)
        ]
        await eventually(lambda: len(site.state.threshold_requests) == 2)
        first, second = threshold_decisions(site.state)
        site.decide(*first)
        await asking[0]
        assert not asking[1].done(), "it waits for the decision that it has caused"
        site.decide(*second)
        await asking[1]
        assert gateways["h"].thresholds("tiny") == Thresholds(requests_in_flight_threshold=5, queue_age_threshold_s=7.0)


def asked_of(site: Site, gateway: str, fact: Fact, _cause: str | None) -> str:
    return site.fact(fact, by=f"gateway.{gateway}")


async def test_a_deposed_leaders_decision_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.gateway.busy_threshold.DECIDED_IN_S", 0.05)
    async with site:
        site.deploy(application(replicas=1))
        gateway = await site.gateway()

        def decide_late(fact: Fact, _cause: str | None) -> str:
            asked = site.fact(fact, by="gateway.g")
            epoch = site.state.epoch
            site.decide(LeaderElected("a", "1"), epoch=epoch + 1)
            site.decide(BusyThresholdSet("tiny", Thresholds(0.5)), asked, epoch=epoch)
            return asked

        gateway._report = decide_late
        with pytest.raises(HttpRefusal, match="may hold later"):
            await gateway.set_thresholds("tiny", ThresholdChanges(active_decode_blocks_threshold=0.5))
        assert gateway.thresholds("tiny") == NONE_SET


async def test_a_gateway_that_drains_still_tells_thresholds(site: Site) -> None:
    async with site:
        site.deploy(application(replicas=1, thresholds=Thresholds(queue_age_threshold_s=3.0)))
        gateway = await site.gateway()
        gateway.standing.draining = True
        assert gateway.thresholds("tiny").queue_age_threshold_s == 3.0
        with pytest.raises(UnknownModel):
            gateway.thresholds("other")


async def test_who_asks_for_thresholds_that_nobody_decides_is_told_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.gateway.busy_threshold.DECIDED_IN_S", 0.05)
    async with site:
        site.deploy(application(replicas=1))
        gateway = await site.gateway()
        gateway._report = lambda _fact, _cause: "asked"
        with pytest.raises(HttpRefusal, match="not decided in time") as refusal:
            await gateway.set_thresholds("tiny", ThresholdChanges(queue_age_threshold_s=1.0))
        assert (refusal.value.problem.status, refusal.value.problem.code) == (503, "log_unavailable")
        assert not gateway._asked._waiting


@pytest.mark.parametrize("reason", ["the log is full of others", "too many wait here"])
async def test_thresholds_that_can_not_be_asked_for_now_are_refused_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    told: list[Fact] = []
    async with site:
        site.deploy(application(replicas=1))
        gateway = await site.gateway()
        gateway._report = lambda fact, _cause: told.append(fact)
        if reason == "too many wait here":
            monkeypatch.setattr("holdfast.gateway.busy_threshold.WAITING_MAX", 0)
        with pytest.raises(HttpRefusal, match="nothing was changed"):
            await gateway.set_thresholds("tiny", ThresholdChanges(queue_age_threshold_s=1.0))
        assert len(told) == (reason != "too many wait here")
