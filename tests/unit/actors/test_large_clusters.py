"""What a controller does often it does more rarely where there is much of it."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from holdfast.actors import controller
from holdfast.actors.identity import LEADER_KEY
from holdfast.actors.writer import FactWriter
from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.ports import Listing
from holdfast.core.reconcile import Evidence, Plan, reconcile
from tests.unit.support.history import application
from tests.unit.support.virtual_time import VirtualClock, now_s, virtual_time
from tests.unit.support.world import World, identity_of


@pytest.mark.parametrize(("pause_per_replica_s", "looks"), [(0.1, (3, 6)), (2e-6, (80, 110))])
@virtual_time
async def test_a_leader_looks_less_often_at_a_state_that_takes_long_to_look_at(
    monkeypatch: pytest.MonkeyPatch, pause_per_replica_s: float, looks: tuple[int, int]
) -> None:
    """100 facts within a second, about three replicas."""
    monkeypatch.setattr(controller, "LOOK_PAUSE_S", pause_per_replica_s)
    looked_s: list[float] = []

    def counted(state: ClusterState, evidence: Evidence, now: datetime) -> Plan:
        looked_s.append(now_s())
        return reconcile(state, evidence, now)

    async with World() as world:
        world.node("a")
        await world.deploy(application(replicas=3))
        await world.running(3)
        gateway = FactWriter(world.log.client("g"), VirtualClock(), identity_of("g", role="gateway"))
        writing = asyncio.create_task(gateway.run())
        await asyncio.sleep(10)
        monkeypatch.setattr(controller, "reconcile", counted)
        began_s = now_s()
        for _ in range(100):
            gateway.record(ev.StreamsMigrated("g", "app.tiny.1", 1, "lost"), None)
            await asyncio.sleep(0.01)
        writing.cancel()
        within = [look_s for look_s in looked_s if look_s < began_s + 1.0]
    assert looks[0] <= len(within) <= looks[1]


@virtual_time
async def test_a_fact_that_came_during_the_pause_is_acted_on_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "LOOK_PAUSE_S", 0.1)
    async with World() as world:
        node = world.node("a")
        await world.deploy(application(replicas=3))
        await world.running(3)
        await asyncio.sleep(10)
        for process in node.launcher.running:
            process.ends(-9)
            await asyncio.sleep(0.05)
        assert await world.running(3, within_s=2.0)
        assert {"app.tiny.4", "app.tiny.5", "app.tiny.6"} == set(world.state.replicas)


@pytest.mark.parametrize(("per_s", "reads"), [(0.1, 5), (25, 50)])
@virtual_time
async def test_candidates_read_the_leader_key_more_rarely_where_they_are_many(
    monkeypatch: pytest.MonkeyPatch, per_s: float, reads: int
) -> None:
    """Two nodes, of which one leads, for 100 seconds."""
    monkeypatch.setattr(controller, "VACANCY_READS_PER_S", per_s)
    async with World() as world:
        world.node("a")
        await world.until(lambda state: state.leader is not None)
        other = world.node("b")
        await asyncio.sleep(30)
        asked: list[float] = []
        listed = other.leases.list

        async def noted(prefix: str) -> Listing:
            if prefix == LEADER_KEY:
                asked.append(now_s())
            return await listed(prefix)

        monkeypatch.setattr(other.leases, "list", noted)
        await asyncio.sleep(100)
        assert abs(len(asked) - reads) <= 1
