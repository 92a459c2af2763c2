"""All members of a simulated etcd: how they are started, and found."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.simulations.etcd.group import EtcdKnobs, Group
from holdfast.simulations.etcd.member import CLIENT_PORT, Member
from holdfast.simulations.etcd.trouble import Trouble
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World


class EtcdServers:
    """One member, or three, each on a host of its own. A member's name is its host's.

    What is on their disks is kept here: a member that is started again goes on with it.
    """

    def __init__(self, world: World, history: History, hosts: Sequence[str], knobs: EtcdKnobs | None = None) -> None:
        self.world = world
        self.group = Group(world, history, knobs or EtcdKnobs(), list(hosts))
        self.troubles = {name: Trouble(world.rng(f"etcd trouble {name}")) for name in hosts}
        self.members: dict[str, Member] = {}

    @property
    def names(self) -> list[str]:
        return list(self.troubles)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """For `EtcdSettings`."""
        return tuple(f"http://{name}:{CLIENT_PORT}" for name in self.troubles)

    def start(self, name: str) -> SimProcess:
        """Start a member that does not run, on its host, with what is on its disk."""
        return self.world.spawn(name, name, self.run)

    async def run(self, process: SimProcess) -> None:
        """A member's main coroutine, for who starts its process by themselves; its host says which it is."""
        name = process.host.name
        member = self.members[name] = Member(self.group, name, process, self.troubles[name])
        await member.run()

    def running(self) -> list[Member]:
        """The members whose processes live, frozen or not."""
        return [member for member in self.members.values() if member.process.alive]
