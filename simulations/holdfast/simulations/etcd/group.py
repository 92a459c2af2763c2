"""What the members of a simulated etcd have in common: what they agreed upon, their disks, and the ways between them.

The log of entries that are agreed upon is kept once, as is what follows from it; a member differs in how much of it it
has on disk and how much of that it has applied (`etcd.voter`).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.simulations.etcd.state import Refused, State, Wire
from holdfast.simulations.history import History
from holdfast.simulations.world.world import World

if TYPE_CHECKING:
    from holdfast.simulations.etcd.voter import Voter

PEER_WAY_S = (0.0001, 0.001)


class EtcdKnobs(msgspec.Struct, frozen=True):
    """What an etcd is like. Times in seconds.

    `revokes_when_deposed`: a leader that hears of another one revokes there what its own clock holds for expired (etcd
    issue 15247, mended in 3.5.13). `syncs`: entries are on disk before they are acknowledged, as etcd does it.
    """

    version: str = "3.5.1"
    fsync_min_s: float = 0.0005
    fsync_max_s: float = 0.004
    boot_max_s: float = 1.0
    progress_s: float = 600.0
    revokes_when_deposed: bool = True
    syncs: bool = True
    sync_every_s: float = 2.0


def draw_etcd_knobs(rng: Random) -> EtcdKnobs:
    """An etcd as users may have one: on a faster or slower disk, older or newer, told to report progress or not."""
    return EtcdKnobs(
        fsync_max_s=rng.choice((0.002, 0.004, 0.02)),
        boot_max_s=rng.choice((0.2, 1.0)),
        progress_s=rng.choice((2.0, 600.0)),
        revokes_when_deposed=rng.random() < 0.5,
    )


class Entry:
    """Something to be agreed upon. `answer` is called with it where it was asked for, once it is applied there."""

    __slots__ = ("answer", "asked_of", "body", "error", "index", "path", "payload", "revision")

    def __init__(
        self, path: str, payload: Wire, asked_of: Voter | None = None, answer: Callable[[Entry], None] | None = None
    ) -> None:
        self.path = path
        self.payload = payload
        self.asked_of = asked_of
        self.answer = answer
        self.index = 0
        self.revision = 0
        self.body: Wire = {}
        self.error: tuple[int, str] | None = None


class Disk:
    """What a member finds when it starts again: how many entries it has, and those not agreed upon yet (`tail`).

    `synced` and `synced_s`: how many are safe from a power failure where entries are not synced one by one, since when.
    `slow_s`: how much longer than usual each write takes; `slowed` counts those that did.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.has = 0
        self.term = 0
        self.tail: list[Entry] = []
        self.synced = 0
        self.synced_s = 0.0
        self.slow_s = 0.0
        self.slowed = 0

    @property
    def agreed(self) -> int:
        """How many of the entries that are agreed upon it has, whether it knows that they are or not."""
        return self.has + sum(1 for entry in self.tail if entry.index)

    def position(self) -> tuple[int, int]:
        """Of two logs, the one with the larger position is ahead."""
        return self.term, self.has + len(self.tail)


class Group:
    """All members of one etcd: what they have agreed upon, and the true leader."""

    def __init__(self, world: World, history: History, knobs: EtcdKnobs, names: list[str]) -> None:
        self.world = world
        self.history = history
        self.knobs = knobs
        self.rng = world.rng("etcd")
        self.state = State(self._tell)
        self.log: list[Entry] = []
        self.term = 0
        self.disks = {name: Disk(name) for name in names}
        self.voters: dict[str, Voter] = {}
        self.first = self.rng.choice(names)

    @property
    def quorum(self) -> int:
        return len(self.disks) // 2 + 1

    def leader(self) -> Voter | None:
        """Who leads in the newest term, if anybody does."""
        leading = [voter for voter in self.voters.values() if voter.leads and voter.process.alive]
        return max(leading, key=lambda voter: voter.term, default=None)

    def through(self, source: Voter, target: Voter) -> bool:
        """Whether what one member says reaches another one now."""
        return self.world.network.passes(source.process.host.name, target.process.host.name)

    def carry(self, source: Voter, target: Voter, call: Callable[..., None], *args: Any) -> None:
        """Tell another member something, if it gets through now."""
        if self.through(source, target):
            self.world.scheduler.call_later(self.draw(*PEER_WAY_S), target.process.call, call, *args)

    def draw(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def commit(self, entry: Entry) -> None:
        """An entry is agreed upon."""
        if entry.index:
            return
        state = self.state
        try:
            entry.body = state.apply(entry.path, entry.payload)
        except Refused as refused:
            entry.error = refused.args[0], refused.args[1]
        entry.revision = state.revision
        self.log.append(entry)
        entry.index = len(self.log)

    def forget_after(self, index: int) -> None:
        """Entries were lost with the power of a quorum: what they did is undone."""
        self.log = self.log[:index]
        full, refused = self.state.full, self.state.refused
        self.state = State(lambda *_told: None)  # what happens again is nothing new
        for entry in self.log:
            try:
                self.state.apply(entry.path, entry.payload)
            except Refused:
                continue
        self.state.told, self.state.full, self.state.refused = self._tell, full, refused
        self.history.lease_event(self.world.now_s, "lost", revision=self.state.revision)

    def _tell(self, kind: str, lease: int, key: bytes, revision: int, value: str) -> None:
        self.history.lease_event(self.world.now_s, kind, lease, key.decode(), revision, value)
