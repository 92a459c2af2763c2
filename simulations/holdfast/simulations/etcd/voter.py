"""Who leads the members of a simulated etcd, and which entries they have agreed upon.

The rules are Raft's as etcd runs it (a leader without its quorum steps down, a member that hears a leader gives its
vote to nobody else, the longest log wins), but without its messages: a member looks at whom it could reach now, in
both directions, and whether they run. What crosses between members in a way that matters to clients does take its
time, and is lost where nothing gets through: requests that are passed on to the leader, the news of a new one.

So an entry may wait in the log of a leader without a quorum and still land once that is back, or be dropped when
another one leads; a leader that froze, and thaws, believes in itself until it hears of the other; and a follower that
is cut off has what it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from holdfast.simulations.etcd.group import Entry, Group
from holdfast.simulations.etcd.state import Wire
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.scheduler import Handle

TICK_S = 0.5
"""How often a member looks who leads, and a leader which leases have ended (etcd looks for those every 0.5 s)."""

ELECTION_S = 1.0
"""Without its quorum a leader gives up after this long; others wait up to twice as long for a leader."""

APPLY_S = (0.0002, 0.003)
"""A follower applies an entry so much later than its leader."""

PATIENCE_S = 7.0
"""etcd's own time limit for a request: 5 s, and an election. After it etcd says so, where this one says nothing: the
adapter has long gone elsewhere."""

PARKED_MAX = 1000
"""Requests that wait for a leader; more are dropped."""


class Server(Protocol):
    """The rest of a member, as its voter and other members see it."""

    def renew(self, lease_id: int, asked_of: Voter, answer: Callable[[int], None]) -> None:
        """Extend a lease if this member leads, else have it done; tells `asked_of` the seconds, 0: it is gone."""
        ...

    def remaining(self, lease_id: int, asked_of: Voter, answer: Callable[[Wire], None]) -> None:
        """As `lease/timetolive`."""
        ...

    def on_applied(self, entry: Entry) -> None:
        """An entry has taken its effect here."""
        ...

    def on_caught_up(self) -> None:
        """All entries that were there have been applied."""
        ...

    def on_leading(self) -> None: ...

    def on_deposed(self) -> None: ...

    def on_tick(self) -> None: ...


class Voter:
    """One member's part in it, from its start to its end. What is not on its `disk` goes with the process."""

    def __init__(self, group: Group, name: str, process: SimProcess, server: Server) -> None:
        self.group = group
        self.process = process
        self.disk = group.disks[name]
        self.leads = False
        self.follows: Voter | None = None
        self.term = self.disk.term
        self.applied = 0
        self.revision = 1
        self.compacted = 0
        self.server = server
        self._missed_s = 0.0
        self._patience_s = ELECTION_S * (1 + group.rng.random())
        self._applying = False
        self._parked: list[tuple[float, Callable[[], None]]] = []

    def start(self) -> None:
        """Take part from now on."""
        group, knobs = self.group, self.group.knobs
        group.voters[self.disk.name] = self
        self._recover()
        if len(group.disks) == 1:
            self._later(knobs.boot_max_s * group.rng.random() if group.term else 0.0, self._lead)
        elif group.term == 0 and group.first == self.disk.name:
            self._patience_s = 0.0
        self._later(TICK_S * group.rng.random() if group.term else 0.01, self._tick)

    @property
    def runs(self) -> bool:
        """Whether it answers its peers."""
        return self.process.alive and not self.process.frozen

    @property
    def knows_leader(self) -> bool:
        return self.leads or self.follows is not None

    # --- requests ---------------------------------------------------------------------------------------

    def propose(self, entry: Entry) -> None:
        """Have an entry agreed upon, sooner or later, or never."""
        if self.leads:
            knobs = self.group.knobs
            self.disk.tail.append(entry)
            self.disk.slowed += self.disk.slow_s > 0
            self._later(self.disk.slow_s + self.group.draw(knobs.fsync_min_s, knobs.fsync_max_s), self._flush)
        elif self.follows is not None:
            self.group.carry(self, self.follows, self.follows.propose, entry)
        else:
            self.park(lambda: self.propose(entry))

    def confirm(self, read: Callable[[], None]) -> None:
        """Call `read` once this member has seen all that was agreed upon before, which needs a quorum."""
        leader = self if self.leads else self.follows
        if leader is None or not self._has_quorum(leader):
            self.park(lambda: self.confirm(read))
            return
        if self.applied < len(self.group.log):
            self._take(leader)
            self.park(lambda: self.confirm(read))
        else:
            read()

    def ask_leader(self, call: Callable[[Voter], None]) -> None:
        """Have the leader do something, as far as this member knows one: itself, another, or the next one."""
        if self.leads:
            call(self)
        elif self.follows is not None:
            self.group.carry(self, self.follows, call, self.follows)
        else:
            self.park(lambda: self.ask_leader(call))

    def resign(self) -> None:
        """Hand the lead to another member, as at an orderly stop. Does nothing where there is none to take it."""
        heirs = [peer for peer in self._acknowledging() if peer.disk.position() == self.disk.position()]
        if self.leads and heirs:
            heir = self.group.rng.choice(heirs)
            self._step_down(None)
            self.group.carry(self, heir, heir._stand)

    def park(self, retry: Callable[[], None]) -> None:
        """Try again when more is known, for as long as etcd would."""
        if len(self._parked) < PARKED_MAX:
            self._parked.append((self.group.world.now_s + PATIENCE_S, retry))

    # --- who leads --------------------------------------------------------------------------------------

    def hear(self, leader: Voter, term: int) -> None:
        """Another one led this term when it said so, which may be long ago."""
        if term < self.term or (self.leads and term == self.term):
            return
        if self.leads:
            self._step_down(leader)
        self.term, self.follows, self._missed_s = term, leader, 0.0
        self._take(leader)
        self._unpark()

    def _tick(self) -> None:
        self._later(TICK_S, self._tick)
        if self.leads:
            self._tick_leading()
        else:
            self._tick_following()
        if self._parked:
            self._unpark()
        self.server.on_tick()

    def _tick_leading(self) -> None:
        if len(self.group.disks) == 1:
            return
        if self._has_quorum(self):
            self._missed_s = 0.0
            self._flush()
            for peer in self._acknowledging():
                peer._take(self)
        else:
            self._missed_s += TICK_S
            if self._missed_s >= ELECTION_S:
                self._step_down(None)
                return
        for peer in self._peers():
            if peer.follows is not self:
                self.group.carry(self, peer, peer.hear, self, self.term)

    def _tick_following(self) -> None:
        if self._hears_leader():
            self._missed_s = 0.0
            return
        self._missed_s += TICK_S
        if self._missed_s >= self._patience_s:
            self.follows = None
            if len(self.group.disks) > 1:
                self._campaign()

    def _hears_leader(self) -> bool:
        leader = self.follows
        return leader is not None and leader.runs and leader.leads and self.group.through(leader, self)

    def _campaign(self) -> None:
        votes = [
            peer
            for peer in self._reachable()
            if not (peer.leads or peer._hears_leader()) and peer.disk.position() <= self.disk.position()
        ]
        if len(votes) + 1 >= self.group.quorum:
            for peer in votes:
                peer.term = self.group.term + 1
            self._lead()

    def _stand(self) -> None:
        """Be elected now, if the others agree."""
        if not self._hears_leader() and not self.leads:
            self.follows = None
            self._campaign()

    def _lead(self) -> None:
        group, disk = self.group, self.disk
        if len(group.log) > disk.agreed:
            assert not group.knobs.syncs, "an entry that was agreed upon is on no disk of a quorum"
            group.forget_after(disk.has)
        group.term += 1
        self.leads, self.follows, self.term, self._missed_s = True, None, group.term, 0.0
        disk.term = group.term
        if group.history.narrating:
            group.history.note(group.world.now_s, disk.name, f"leads etcd's term {group.term}")
        self.server.on_leading()
        self._commit_tail()
        for peer in self._peers():
            group.carry(self, peer, peer.hear, self, self.term)
        self._unpark()

    def _step_down(self, leader: Voter | None) -> None:
        self.leads, self.follows, self._missed_s = False, leader, 0.0
        self._patience_s = ELECTION_S * (1 + self.group.rng.random())
        self.server.on_deposed()

    # --- entries ----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """The disk has what was proposed. With a quorum that is agreed upon, else it waits where it got to."""
        if not self.leads or not self.disk.tail:
            return
        if self._has_quorum(self):
            self._commit_tail()
            return
        for peer in self._peers():
            heard = peer.runs and peer.term <= self.term and self.group.through(self, peer)
            # One that lacks earlier entries takes none of these: what it has would be longer, and not all of it.
            if heard and peer.disk.agreed == self.disk.agreed:
                peer.disk.tail += [entry for entry in self.disk.tail if entry not in peer.disk.tail]

    def _commit_tail(self) -> None:
        tail, self.disk.tail = self.disk.tail, []
        for entry in tail:
            self.group.commit(entry)
        self._wrote()
        for peer in self._acknowledging():
            peer._take(self)
        self._apply()

    def _take(self, leader: Voter) -> None:
        """Take over the leader's log, if it gets here and the leader hears of it."""
        if self.leads or not leader.leads or leader.term < self.term or not self._meets(leader):
            return
        self.disk.term = leader.term
        self.disk.tail.clear()
        self._wrote()
        if not self._applying and self.applied != len(self.group.log):
            self._applying = True
            self._later(self.group.draw(*APPLY_S), self._apply)

    def _wrote(self) -> None:
        disk, world = self.disk, self.group.world
        disk.has = len(self.group.log)
        if world.now_s >= disk.synced_s + self.group.knobs.sync_every_s:
            disk.synced, disk.synced_s = disk.has, world.now_s

    def _apply(self) -> None:
        self._applying = False
        log = self.group.log
        if self.applied > len(log):
            self._forget_applied()
        while self.applied < self.disk.has:
            entry = log[self.applied]
            self.applied += 1
            self.revision = entry.revision
            if entry.path == "kv/compaction" and entry.error is None:
                self.compacted = int(entry.payload["revision"])
            self.server.on_applied(entry)
            if entry.asked_of is self and entry.answer is not None:
                entry.answer(entry)
        self.server.on_caught_up()
        if self._parked:
            self._unpark()

    def _recover(self) -> None:
        """Begin with what the disk has. Of what was not agreed upon, some was written before the process ended."""
        disk = self.disk
        del disk.tail[self.group.rng.randint(0, len(disk.tail)) :]
        self.applied = disk.has
        if disk.has:
            self.revision = self.group.log[disk.has - 1].revision
        for entry in self.group.log[: disk.has]:
            if entry.path == "kv/compaction" and entry.error is None:
                self.compacted = int(entry.payload["revision"])

    def _forget_applied(self) -> None:
        self.applied = self.disk.has = len(self.group.log)
        self.revision = self.group.state.revision

    def lose_power(self) -> None:
        """What was written and not synced is gone."""
        if not self.group.knobs.syncs:
            self.disk.has = min(self.disk.has, self.disk.synced)
            self.disk.tail.clear()

    # --- whom it reaches --------------------------------------------------------------------------------

    def _peers(self) -> list[Voter]:
        return [voter for voter in self.group.voters.values() if voter is not self and voter.process.alive]

    def _reachable(self) -> list[Voter]:
        return [peer for peer in self.group.voters.values() if peer is not self and self._meets(peer)]

    def _meets(self, peer: Voter) -> bool:
        """Whether another one answers what this one asks."""
        through = self.group.through
        return peer.runs and through(self, peer) and through(peer, self)

    def _acknowledging(self) -> list[Voter]:
        return [peer for peer in self._reachable() if peer.term <= self.term]

    def _has_quorum(self, leader: Voter) -> bool:
        """Whether a leader can have something agreed upon now, as seen from here."""
        if self.group.quorum == 1:
            return leader.leads
        if leader is not self and not (leader.leads and self._meets(leader)):
            return False
        missing = self.group.quorum - 1
        for peer in self.group.voters.values():
            if peer is not leader and peer.term <= leader.term and leader._meets(peer):
                missing -= 1
                if not missing:
                    return True
        return False

    def _unpark(self) -> None:
        now_s = self.group.world.now_s
        parked, self._parked = self._parked, []
        for until_s, retry in parked:
            if until_s > now_s:
                retry()

    def _later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        process = self.process
        self.group.world.scheduler.push(self.group.world.now_s + delay_s, Handle(callback, args, None, process.lane))
