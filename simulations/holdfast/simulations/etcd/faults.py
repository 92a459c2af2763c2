"""What may befall a simulated etcd beyond what befalls any process, host and network.

Each fault is begun with a generator, from which it draws what it hits, and a time for which it lasts (virtual seconds;
infinity: for good), after which it heals by itself. It gives the name of what it hit, or None where it can't happen:
with one member nobody else can lead.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from holdfast.simulations.etcd import trouble as etcd_trouble
from holdfast.simulations.etcd.group import Entry
from holdfast.simulations.etcd.servers import EtcdServers
from holdfast.simulations.etcd.voter import ELECTION_S, TICK_S

ANSWERS_LOST: Final = "etcd loses answers"
REQUESTS_DROPPED: Final = "etcd drops requests"
REQUESTS_REPEATED: Final = "etcd takes requests twice"
REQUESTS_TIMED_OUT: Final = "etcd answers with timeouts"
WATCHES_CUT: Final = "etcd cuts watches"
COMPACTED: Final = "etcd is compacted"
COMPACTED_AHEAD: Final = "etcd is compacted ahead of its watches"
EXPIRY_LATE: Final = "etcd expires leases late"
EXPIRY_EARLY: Final = "etcd's leader freezes, thaws, and expires leases"
LEADER_CHANGED: Final = "etcd changes its leader"
CUT_OFF: Final = "etcd member is cut off from the others"
DISK_SLOW: Final = "etcd member's disk is slow"
SPACE_OUT: Final = "etcd is out of space"

SLOW_DISK_S = (0.05, 2.0)
BEHIND_S = (0.5, 4.0)
"""For how long watches are kept behind a compaction: less than they wait before they are opened anew."""

MEMBER_TTL_MAX_S = 10.0
"""Leases of members are shorter than this, in seconds; those of notes last a minute."""

FROZEN_LEADER_S = 2 * ELECTION_S + 2 * TICK_S
"""After this another one leads for certain."""


class EtcdFaults:
    """Faults of one etcd. `kinds` has what begins each."""

    def __init__(self, servers: EtcdServers) -> None:
        self._servers = servers
        self._world = servers.world
        self._group = servers.group
        self.kinds: dict[str, Callable[[Random, float], str | None]] = {
            ANSWERS_LOST: self._trouble(etcd_trouble.UNANSWERED),
            REQUESTS_DROPPED: self._trouble(etcd_trouble.DROPPED),
            REQUESTS_REPEATED: self._trouble(etcd_trouble.REPEATED),
            REQUESTS_TIMED_OUT: self._trouble(etcd_trouble.TIMED_OUT),
            WATCHES_CUT: self._cut_watches,
            COMPACTED: self._compact,
            COMPACTED_AHEAD: self._compact_ahead,
            EXPIRY_LATE: self._expire_late,
            EXPIRY_EARLY: self._expire_early,
            LEADER_CHANGED: self._change_leader,
            CUT_OFF: self._cut_off,
            DISK_SLOW: self._slow_disk,
            SPACE_OUT: self._run_out_of_space,
        }

    def begin(self, kind: str, rng: Random, lasts_s: float) -> str | None:
        """Begin one; what it hit, or None when it can't happen now."""
        return self.kinds[kind](rng, lasts_s)

    # --- requests and watches ---------------------------------------------------------------------------

    def _trouble(self, kind: str) -> Callable[[Random, float], str | None]:
        def begin(rng: Random, lasts_s: float) -> str:
            name = rng.choice(self._servers.names)
            self._heal(lasts_s, self._servers.troubles[name].begin(kind, rng.uniform(0.2, 1.0)))
            return name

        return begin

    def _cut_watches(self, rng: Random, _lasts_s: float) -> str | None:
        members = [member for member in self._servers.running() if member.watches]
        if not members:
            return None
        member = rng.choice(members)
        cut = rng.sample(list(member.watches), rng.randint(1, len(member.watches)))
        member.cut_watches(lambda watch: watch.end in cut)
        return member.name

    def _compact(self, _rng: Random, _lasts_s: float) -> str | None:
        leader = self._group.leader()
        if leader is None:
            return None
        entry = Entry("kv/compaction", {"revision": str(self._group.state.revision)})
        leader.process.call(leader.propose, entry)
        return leader.disk.name

    def _compact_ahead(self, rng: Random, lasts_s: float) -> str | None:
        """Watches get no changes for a while, and by then the changes are compacted."""
        members = self._servers.running()
        for member in members:
            for watch in member.watches.values():
                member.fall_behind(watch)
        for trouble in self._servers.troubles.values():
            trouble.holds_watches += 1
        behind_s = min(lasts_s, rng.uniform(*BEHIND_S))
        self._heal(behind_s, lambda: self._compact(rng, 0.0))
        self._heal(behind_s + TICK_S, self._release_watches)
        return members[0].name if members else None

    def _release_watches(self) -> None:
        for trouble in self._servers.troubles.values():
            trouble.holds_watches -= 1

    # --- leases and leaders -----------------------------------------------------------------------------

    def _expire_late(self, _rng: Random, lasts_s: float) -> str:
        troubles = list(self._servers.troubles.values())
        for trouble in troubles:
            trouble.holds_expiry += 1

        def heal() -> None:
            for trouble in troubles:
                trouble.holds_expiry -= 1

        self._heal(lasts_s, heal)
        return ",".join(self._servers.names)

    def _expire_early(self, _rng: Random, lasts_s: float) -> str | None:
        """The leader freezes for longer than members' leases last; the others renew them meanwhile."""
        leader = self._group.leader()
        if leader is None or not self._quorum_without(leader.disk.name) or leader.process.frozen:
            return None
        ttls_s = [lease.ttl_s for lease in self._group.state.leases.values() if lease.ttl_s <= MEMBER_TTL_MAX_S]
        longest_s = max(ttls_s, default=0)
        leader.process.freeze()
        self._heal(max(lasts_s, FROZEN_LEADER_S, longest_s + TICK_S), leader.process.thaw)
        return leader.disk.name

    def _change_leader(self, _rng: Random, _lasts_s: float) -> str | None:
        leader = self._group.leader()
        if leader is None or not self._quorum_without(leader.disk.name):
            return None
        leader.process.call(leader.resign)
        return leader.disk.name

    def _cut_off(self, rng: Random, lasts_s: float) -> str | None:
        """Clients still reach it, and it answers what it needs no other for: with what it had."""
        names = self._servers.names
        name = rng.choice(names)
        others = [other for other in names if other != name]
        if not others:
            return None
        ways = [way for other in others for way in ((name, other), (other, name))]
        if rng.random() < 0.3:
            ways = ways[rng.randrange(2) :: 2]  # in one direction only
        network = self._world.network
        for way in ways:
            network.block(*way)

        def heal() -> None:
            for way in ways:
                network.unblock(*way)

        self._heal(lasts_s, heal)
        return name

    # --- machines ---------------------------------------------------------------------------------------

    def _slow_disk(self, rng: Random, lasts_s: float) -> str:
        name = rng.choice(self._servers.names)
        disk, slow_s = self._group.disks[name], rng.uniform(*SLOW_DISK_S)
        disk.slow_s += slow_s

        def heal() -> None:
            disk.slow_s = max(0.0, disk.slow_s - slow_s)

        self._heal(lasts_s, heal)
        return name

    def _run_out_of_space(self, _rng: Random, lasts_s: float) -> str:
        self._group.state.full += 1

        def heal() -> None:
            self._group.state.full -= 1

        self._heal(lasts_s, heal)
        return ",".join(self._servers.names)

    # --- helpers ----------------------------------------------------------------------------------------

    def _quorum_without(self, name: str) -> bool:
        others = [member for member in self._servers.running() if member.name != name and member.voter.runs]
        return len(others) >= self._group.quorum

    def _heal(self, after_s: float, heal: Callable[[], object]) -> None:
        self._world.scheduler.call_later(after_s, heal)
