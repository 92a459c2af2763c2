"""A replica's own port: what it says while it loads, and while it serves; and how the log comes to know of it."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import msgspec

from holdfast.actors.engines.base import Engine
from holdfast.actors.replica_main import LOADING, load_engine, run
from holdfast.actors.specification import Ready, ReplicaSpecification, Report
from holdfast.core.config import EngineConfig
from tests.unit.support.history import INFO, application
from tests.unit.support.ports import free_port
from tests.unit.support.replicas import eventually
from tests.unit.support.virtual_time import virtual_time
from tests.unit.support.world import World

HOST = "127.0.0.1"


class Told:
    """As `Channel`: keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def note(self, report: Report) -> None:
        self.reports.append(report)


async def get(port: int, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://{HOST}:{port}{path}")


async def test_a_replica_is_live_while_it_loads_and_healthy_once_it_serves() -> None:
    first = free_port()
    specification = ReplicaSpecification(
        "test", "app.tiny.1", "tiny", HOST, EngineConfig("mock"), 5.0, system_port_first=first
    )
    stdin, told, may_load = asyncio.StreamReader(), Told(), asyncio.Event()
    stdin.feed_data(msgspec.json.encode(specification) + b"\n")

    async def load(specification: ReplicaSpecification) -> Engine:
        loading.set()
        await may_load.wait()
        return await load_engine(specification)

    loading = asyncio.Event()
    running = asyncio.create_task(run(told, stdin, load))
    await loading.wait()
    assert (await get(first, "/live")).status_code == 200
    unwell = await get(first, "/health")
    assert (unwell.status_code, unwell.json()["reasons"]) == (503, [LOADING])
    may_load.set()
    await eventually(lambda: bool(told.reports))
    (ready,) = told.reports
    assert isinstance(ready, Ready)
    assert ready.system_port == first
    assert (await get(first, "/health")).status_code == 200
    text = (await get(first, "/metrics")).text
    assert 'holdfast_replica_info{model="tiny",replica="app.tiny.1"} 1.0' in text
    assert "holdfast_kv_cache_usage_ratio 0.0" in text
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


@virtual_time
async def test_the_log_knows_the_system_port_until_the_replica_ends() -> None:
    async with World() as world:
        node = world.node("a")
        node.launcher.script = lambda process: process.says(Ready("127.0.0.1:9", INFO, 9091))
        await world.deploy(application())
        await world.running(1)
        assert world.state.replicas["app.tiny.1"].system_port == 9091
        node.launcher.script = lambda _process: None
        node.launcher.processes[0].ends(-9)
        await world.until(lambda state: "app.tiny.2" in state.replicas)
        assert world.state.replicas["app.tiny.2"].system_port == 0
