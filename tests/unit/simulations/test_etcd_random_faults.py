"""What holds for clients of a simulated etcd under any faults, drawn from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

import pytest

from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable
from holdfast.simulations.etcd.client import EtcdTransport
from holdfast.simulations.etcd.faults import EtcdFaults
from holdfast.simulations.etcd.group import EtcdKnobs
from holdfast.simulations.etcd.servers import EtcdServers
from holdfast.simulations.history import History
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.settings import EtcdSettings

CLIENTS = 4
FORGETS_PART = 0.05
FAULTS = 14
CRASHES = 3
FAULTS_UNTIL_S = 25.0
HEALED_S = 40.0
ENDS_S = 60.0


@dataclass
class Seen:
    """What clients were told. `promised`: that a lease lives from one time to another."""

    promised: list[tuple[int, float, float]] = field(default_factory=list)
    created: list[tuple[str, int, int]] = field(default_factory=list)
    view: dict[str, bytes] = field(default_factory=dict)
    revisions: list[int] = field(default_factory=list)
    listed: dict[str, bytes] = field(default_factory=dict)


class Run:
    """Clients that hold leases and vie for a key, one that watches, and faults between them."""

    def __init__(self, seed: int, members: int) -> None:
        self.seen = Seen()
        self.history = History()
        self.world = World(f"{seed}")
        self.world.on_unhandled = self._on_unhandled
        names = [f"etcd-{number}" for number in range(members)]
        self.servers = EtcdServers(self.world, self.history, names, EtcdKnobs(revokes_when_deposed=False))
        for name in names:
            self.servers.start(name)
        self._settings = EtcdSettings(endpoints=self.servers.endpoints, prefix="/")
        self._draw_faults(random.Random(f"{seed}/faults"))
        for number in range(CLIENTS):
            self.world.spawn(f"client-{number}", f"host-{number}", self._hold)
        self.world.spawn("watcher", "host-w", self._watch)
        self.world.scheduler.run(ENDS_S)
        self.trace = self.world.scheduler.trace
        self.world.close()

    def _on_unhandled(self, process: SimProcess, text: str) -> None:
        raise AssertionError(f"{process.name}: {text}")

    def _draw_faults(self, rng: random.Random) -> None:
        faults = EtcdFaults(self.servers)
        for _ in range(FAULTS):
            kind, lasts_s = rng.choice(list(faults.kinds)), rng.uniform(0.1, 6.0)
            at_s = rng.uniform(1.0, FAULTS_UNTIL_S)
            self.world.scheduler.call_at(at_s, faults.begin, kind, random.Random(rng.random()), lasts_s)
        for _ in range(CRASHES):
            at_s, lasts_s = rng.uniform(1.0, FAULTS_UNTIL_S), rng.uniform(0.1, 6.0)
            name, power = rng.choice(self.servers.names), rng.random() < 0.5
            self.world.scheduler.call_at(at_s, self._end, name, lasts_s, power)

    def _end(self, name: str, lasts_s: float, power: bool) -> None:
        """A member is killed, or its host loses power."""
        if not self.servers.members[name].process.alive:
            return
        if power:
            self.world.power_off(name)
        else:
            self.servers.members[name].process.kill()
        self.world.scheduler.call_later(lasts_s, self._begin, name)

    def _begin(self, name: str) -> None:
        self.world.power_on(name)
        self.servers.start(name)

    def _client(self, process: SimProcess) -> EtcdLeases:
        return EtcdLeases(EtcdGateway(self._settings, EtcdTransport(process), process.rng))

    async def _hold(self, process: SimProcess) -> None:
        leases = self._client(process)
        ttl_s, lease = process.rng.choice((2, 3, 4)), 0
        while self.world.now_s < HEALED_S:
            asked_s = self.world.now_s
            with contextlib.suppress(LeasesUnavailable):
                try:
                    if not lease:
                        lease = (await leases.grant(ttl_s)).id
                        await leases.put(process.name, b"alive", lease)
                    else:
                        self.seen.promised.append((lease, asked_s, asked_s + await leases.keep_alive(lease)))
                    await self._vie(leases, process, lease)
                except LeaseGone:
                    lease = 0
            forgets = process.rng.random() < FORGETS_PART
            await asyncio.sleep(2 * ttl_s if forgets else ttl_s / 3 * process.rng.uniform(0.5, 1.0))

    async def _vie(self, leases: EtcdLeases, process: SimProcess, lease: int) -> None:
        with contextlib.suppress(KeyTaken):
            revision = await leases.create("leader", process.name.encode(), lease)
            self.seen.created.append(("/leader", revision, lease))
            if process.rng.random() < 0.5:
                await leases.delete("leader", create_revision=revision)

    async def _watch(self, process: SimProcess) -> None:
        leases, seen = self._client(process), self.seen
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDS_S - 4.0 - self.world.now_s):
                async for batch in leases.watch("", after=0):
                    for change in batch:
                        seen.revisions.append(change.revision)
                        if change.value is None:
                            seen.view.pop(change.key, None)
                        else:
                            seen.view[change.key] = change.value
        seen.listed = {item.key: item.value for item in (await leases.list("")).items}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_leases_keys_and_watches_hold_under_any_faults(seed: int, members: int) -> None:
    run = Run(seed, members)
    seen, events = run.seen, run.history.leases
    happened = {(event.key, event.revision, event.lease) for event in events if event.kind == "created"}
    assert set(seen.created) <= happened
    expired = [(event.lease, event.at_s) for event in events if event.kind == "expired"]
    for lease, from_s, until_s in seen.promised:
        assert not any(from_s < at_s < until_s for ended, at_s in expired if ended == lease), "it ended before its time"
    assert seen.view == seen.listed
    assert seen.revisions == sorted(seen.revisions)
    assert len({event.kind for event in events}) >= 5


@pytest.mark.parametrize("members", [1, 3])
def test_a_seed_gives_the_same_run_again(members: int) -> None:
    one, other = Run(7, members), Run(7, members)
    assert one.history.leases == other.history.leases
    assert one.trace == other.trace
    assert one.trace != Run(8, members).trace
