"""A gateway process's parts within the test's own process, over a log in memory and replicas on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from holdfast.core.ports import Log
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.memory_leases import MemoryLeasesServer
from tests.unit.support.ports import free_port
from tests.unit.support.replicas import Site
from tests.unit.support.world import identity_of

READY_S = 60.0


@dataclass
class RunningGateway:
    """A gateway that serves; `stopped` ends once it has stopped."""

    port: int
    stop: asyncio.Event
    hurry: asyncio.Event
    stopped: asyncio.Task[None]
    log: Log
    metrics: Callable[[], str]
    """What it has counted, also once it has stopped."""

    async def health(self) -> tuple[int, Any]:
        """What `/health` says."""
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{self.port}/health")
            return answer.status_code, answer.json()

    async def until(self, status: int) -> Any:
        """Wait until `/health` has the status; what it says then."""
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    found, body = await self.health()
                except httpx.TransportError:
                    found = 0
                if found == status:
                    return body
                assert not self.stopped.done(), "the gateway has ended"
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway_on(
    site: Site, leases: MemoryLeasesServer | None = None, incarnation: str = "1", **settings: Any
) -> AsyncIterator[RunningGateway]:
    """A gateway over the site's log, stopped at the end. `settings` are those of the gateway process."""
    port = free_port()
    told: Settings = load_settings(cluster="test", gateway={"port": port, **settings})
    log = site.server.client("g")
    server = leases or MemoryLeasesServer()
    process = GatewayProcess(told, identity_of("g", incarnation, role="gateway"), log, server.client("g"))
    stop, hurry = asyncio.Event(), asyncio.Event()
    stopped = asyncio.create_task(process.run(stop, hurry))
    gateway = RunningGateway(port, stop, hurry, stopped, log, lambda: process._app.metrics.text().decode())
    try:
        yield gateway
    finally:
        stop.set()
        await asyncio.wait([gateway.stopped])
        gateway.stopped.result()
