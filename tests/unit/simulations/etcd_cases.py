"""Runs one test's coroutine in a simulated process, against a simulated etcd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from holdfast.core.errors import LeaseGone
from holdfast.core.ports import Leases
from holdfast.simulations.etcd.faults import EtcdFaults
from holdfast.simulations.etcd.group import EtcdKnobs
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from tests.contract.helpers import eventually
from tests.contract.simulated import SimulatedEtcdWorld, run_in


class Etcd(SimulatedEtcdWorld):
    """The simulated etcd of one test, with its faults."""

    def __init__(self, seed: str, members: int, knobs: EtcdKnobs | None = None) -> None:
        super().__init__(World(seed), members, knobs)
        self.faults = EtcdFaults(self.servers)

    @property
    def leader(self) -> str:
        """The name of the member that leads."""
        leader = self.servers.group.leader()
        assert leader is not None
        return leader.disk.name

    @property
    def follower(self) -> str:
        """The name of one that does not."""
        return next(name for name in self.servers.names if name != self.leader)

    def endpoint(self, name: str) -> str:
        return self.servers.endpoints[self.servers.names.index(name)]

    def trouble(self, kind: str) -> Callable[[], None]:
        """All requests at all members are in this trouble, until what it returns is called."""
        ends = [trouble.begin(kind, 1.0) for trouble in self.servers.troubles.values()]
        return lambda: [end() for end in ends].clear()

    def kill(self, name: str, for_s: float) -> None:
        """A member is killed, and starts again on its disk."""
        self.servers.members[name].process.kill()
        self.world.scheduler.call_later(for_s, self.servers.start, name)

    def lose_power(self, names: list[str], for_s: float) -> None:
        """These hosts lose power, and get it back."""
        for name in names:
            self.world.power_off(name)

        def mend() -> None:
            for name in names:
                self.world.power_on(name)
                self.servers.start(name)

        self.world.scheduler.call_later(for_s, mend)

    def told(self, kind: str) -> list[str]:
        """The keys (of leases: their numbers) that this happened to, in order."""
        return [
            event.key.removeprefix(self.settings.prefix) or str(event.lease)
            for event in self.history.leases
            if event.kind == kind
        ]


def run(
    case: Callable[[Etcd], Awaitable[None]], members: int = 1, seed: str = "etcd", knobs: EtcdKnobs | None = None
) -> Etcd:
    """Run a case to its end; the etcd that it had."""
    etcd = Etcd(seed, members, knobs)

    async def main(process: SimProcess) -> None:
        etcd.process = process
        await eventually(etcd.servers.group.leader)
        await case(etcd)

    run_in(etcd.world, "client", main)
    return etcd


async def lives(leases: Leases, lease: int) -> bool:
    """Whether a lease can be renewed."""
    try:
        await leases.keep_alive(lease)
    except LeaseGone:
        return False
    return True
