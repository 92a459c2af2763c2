"""What may befall a simulated etcd beyond what befalls any process, host and network.

Each fault is begun with a generator, from which it draws what it hits, and a time for which it lasts (virtual seconds;
infinity: for good), after which it heals by itself. It gives what it hit, or None where it can't happen: with one
member nobody else can lead. All that any of them does is over by one time, which is given beforehand. Whether it did
anything shows later: nobody may have asked for what would have failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

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


class Hit(NamedTuple):
    """What a fault hit: a member, or several. `struck()` tells how often it has done something until now.

    `lasts_s` is for how long it really lasts, 0 where it was over at once.
    """

    name: str
    struck: Callable[[], int]
    lasts_s: float = 0.0


Begin = Callable[[Random, float], Hit | None]


class EtcdFaults:
    """Faults of one etcd. `kinds` has what begins each. By `over_s` (true time) all that they do is over."""

    def __init__(self, servers: EtcdServers, over_s: float = math.inf) -> None:
        self._servers = servers
        self._over_s = over_s
        self._world = servers.world
        self._group = servers.group
        self.kinds: dict[str, Begin] = {
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

    def begin(self, kind: str, rng: Random, lasts_s: float) -> Hit | None:
        """Begin one; what it hit, or None when it can't happen now."""
        return self.kinds[kind](rng, lasts_s)

    # --- requests and watches ---------------------------------------------------------------------------

    def _trouble(self, kind: str) -> Begin:
        def begin(rng: Random, lasts_s: float) -> Hit:
            name = rng.choice(self._servers.names)
            trouble = self._servers.troubles[name]
            heal = trouble.begin(kind, rng.uniform(0.2, 1.0), self._over_s)
            return self._window(name, lasts_s, lambda: trouble.befell[kind], heal)

        return begin

    def _cut_watches(self, rng: Random, _lasts_s: float) -> Hit | None:
        members = [member for member in self._servers.running() if member.watches]
        if not members:
            return None
        member = rng.choice(members)
        cut = rng.sample(list(member.watches), rng.randint(1, len(member.watches)))
        member.cut_watches(lambda watch: watch.end in cut)
        return _done(member.name)

    def _compact(self, _rng: Random, _lasts_s: float) -> Hit | None:
        leader = self._group.leader()
        if leader is None:
            return None
        entry = Entry("kv/compaction", {"revision": str(self._group.state.revision)})
        leader.process.call(leader.propose, entry)
        return _done(leader.disk.name)

    def _compact_ahead(self, rng: Random, lasts_s: float) -> Hit | None:
        """Watches get no changes for a while, and by then the changes are compacted."""
        members = self._servers.running()
        if not members:
            return None
        for member in members:
            for watch in member.watches.values():
                member.fall_behind(watch)
        troubles = list(self._servers.troubles.values())
        for trouble in troubles:
            trouble.holds_watches += 1
        behind_s = min(lasts_s, rng.uniform(*BEHIND_S))
        self._world.scheduler.call_later(behind_s, self._compact, rng, 0.0)

        def release() -> None:
            for trouble in troubles:
                trouble.holds_watches -= 1

        kept = lambda: sum(trouble.kept_changes for trouble in troubles)  # noqa: E731
        return self._window(members[0].name, min(behind_s + TICK_S, self._left_s), kept, release)

    # --- leases and leaders -----------------------------------------------------------------------------

    def _expire_late(self, _rng: Random, lasts_s: float) -> Hit:
        troubles = list(self._servers.troubles.values())
        for trouble in troubles:
            trouble.holds_expiry += 1

        def heal() -> None:
            for trouble in troubles:
                trouble.holds_expiry -= 1

        kept = lambda: sum(trouble.kept_leases for trouble in troubles)  # noqa: E731
        return self._window(",".join(self._servers.names), lasts_s, kept, heal)

    def _expire_early(self, _rng: Random, lasts_s: float) -> Hit | None:
        """The leader freezes for longer than members' leases last; the others renew them meanwhile."""
        leader = self._group.leader()
        if leader is None or not self._quorum_without(leader.disk.name) or leader.process.frozen:
            return None
        ttls_s = [lease.ttl_s for lease in self._group.state.leases.values() if lease.ttl_s <= MEMBER_TTL_MAX_S]
        longest_s = max(ttls_s, default=0)
        frozen_s = max(lasts_s, FROZEN_LEADER_S, longest_s + TICK_S)
        if frozen_s > self._left_s:
            return None
        leader.process.freeze()
        self._world.scheduler.call_later(frozen_s, leader.process.thaw)
        return Hit(leader.disk.name, lambda: 1, frozen_s)

    def _change_leader(self, _rng: Random, _lasts_s: float) -> Hit | None:
        leader = self._group.leader()
        if leader is None or not self._quorum_without(leader.disk.name):
            return None
        leader.process.call(leader.resign)
        return _done(leader.disk.name)

    def _cut_off(self, rng: Random, lasts_s: float) -> Hit | None:
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

        trouble = self._servers.troubles[name]
        return self._window(name, lasts_s, lambda: trouble.asked, heal)

    # --- machines ---------------------------------------------------------------------------------------

    def _slow_disk(self, rng: Random, lasts_s: float) -> Hit:
        name = rng.choice(self._servers.names)
        disk, slow_s = self._group.disks[name], rng.uniform(*SLOW_DISK_S)
        disk.slow_s += slow_s

        def heal() -> None:
            disk.slow_s = max(0.0, disk.slow_s - slow_s)

        # What it writes at last takes longer as well.
        return self._window(name, min(lasts_s, self._left_s - slow_s), lambda: disk.slowed, heal)

    def _run_out_of_space(self, _rng: Random, lasts_s: float) -> Hit:
        self._group.state.full += 1

        def heal() -> None:
            self._group.state.full -= 1

        return self._window(",".join(self._servers.names), lasts_s, lambda: self._group.state.refused, heal)

    # --- helpers ----------------------------------------------------------------------------------------

    @property
    def _left_s(self) -> float:
        """For how long (seconds) a fault that begins now may last."""
        return self._over_s - self._world.now_s

    def _quorum_without(self, name: str) -> bool:
        others = [member for member in self._servers.running() if member.name != name and member.voter.runs]
        return len(others) >= self._group.quorum

    def _window(self, name: str, lasts_s: float, count: Callable[[], int], heal: Callable[[], object]) -> Hit:
        """A fault that heals after a while. It strikes as often as `count` grows until then."""
        lasts_s = max(0.0, lasts_s)
        before, at_end = count(), list[int]()

        def over() -> None:
            heal()
            at_end.append(count())

        self._world.scheduler.call_later(lasts_s, over)
        return Hit(name, lambda: (at_end[0] if at_end else count()) - before, lasts_s)


def _done(name: str) -> Hit:
    """A fault that did all that it does at once."""
    return Hit(name, lambda: 1)
