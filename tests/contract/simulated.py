"""Runs a coroutine of the suite in a simulated process, against simulated servers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.simulations.etcd.client import EtcdTransport
from holdfast.simulations.etcd.group import EtcdKnobs
from holdfast.simulations.etcd.servers import EtcdServers
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from tests.contract.helpers import eventually
from tests.contract.worlds import compact, etcd_settings

LASTS_S = 120.0

CALL_TIMEOUT_S = 2.0
"""Virtual seconds, in which no machine is slow: calls that fail do so before leases end."""


def run_in(world: World, host: str, main: Callable[[SimProcess], Coroutine[Any, Any, None]]) -> None:
    """Run `main(process)` on a host of the world to its end. Raises what it raised, and what nobody handled."""
    raised: list[BaseException] = []
    unhandled: list[str] = []

    async def run(process: SimProcess) -> None:
        try:
            await main(process)
        except BaseException as error:
            raised.append(error)

    world.on_unhandled = lambda process, text: unhandled.append(f"{process.name}: {text}")
    process = world.spawn("test", host, run)
    while process.alive and world.now_s < LASTS_S:
        world.scheduler.run(world.now_s + 1.0)
    world.close()
    for error in raised:
        raise error
    assert not process.alive or process.status == 0, "it has not come to its end"
    assert not unhandled, unhandled


class SimulatedEtcdWorld:
    """As `EtcdWorld`, over one simulated member or three. All crash and recover together."""

    def __init__(self, world: World, members: int, knobs: EtcdKnobs | None = None) -> None:
        self.world = world
        self.history = History()
        self.servers = EtcdServers(world, self.history, [f"etcd-{n}" for n in range(1, members + 1)], knobs)
        endpoints = self.servers.endpoints
        self.settings = etcd_settings(*endpoints, prefix="/test/", request_timeout_s=CALL_TIMEOUT_S)
        self.process: SimProcess | None = None
        for name in self.servers.names:
            self.servers.start(name)

    def gateway(self, **changes: Any) -> EtcdGateway:
        """A client of the bare gateway, in the test's process."""
        assert self.process is not None
        settings = self.settings.model_copy(update=changes)
        return EtcdGateway(settings, EtcdTransport(self.process), self.process.rng)

    async def client(self, **changes: Any) -> EtcdLeases:
        leases = EtcdLeases(self.gateway(**changes))
        await leases.status()
        return leases

    async def crash(self) -> None:
        for member in self.servers.running():
            member.process.kill()

    async def recover(self) -> None:
        for name in self.servers.names:
            self.servers.start(name)
        await eventually(self.servers.group.leader)

    async def compact(self) -> None:
        await compact(self.gateway())
