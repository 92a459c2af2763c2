"""Simulated NATS servers with JetStream: one, or a group of three, under the production log.

`JetStream` knows everything about the servers: what is on whose disk, who leads, who reaches whom. It decides what
their consensus would, so that each outcome is one that real servers could come to; how it looks to clients is the
servers' own part (`nats.server`). Entries are kept once for all members, and each knows them up to a sequence.

A process that is killed loses what it had in memory, and a host that loses power also what its disk had not synced,
unless `sync_interval_s` is 0 (NATS's `sync_interval: always`, as production has it). An append that was under way when
its server ended may have landed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from holdfast.simulations.history import History
from holdfast.simulations.nats import faults
from holdfast.simulations.nats.faults import Troubles, Window
from holdfast.simulations.nats.routes import Routes
from holdfast.simulations.nats.server import Proposal, Server
from holdfast.simulations.nats.store import Append, Entry, Stream
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import Host, World

PORT = 4222
ELECTION_S = (4.0, 9.0)
"""A member that hears no leader for so long (seconds, drawn) stands for election: as `minElectionTimeout` to
`maxElectionTimeout` of nats-server."""

COMMIT_S = ((0.0003, 0.002), (0.001, 0.004))
"""An append takes so long (seconds, drawn) to be on the disk of one server, and of two of three."""

RECOVERY_S = (0.05, 0.5)
"""A server takes so long (seconds, drawn) to read its disk at its start."""

LANDED_PART = 0.5
"""How often an append that was under way when its server ended has landed."""


class Acknowledgement(msgspec.Struct, frozen=True, gc=False):
    """A server told a client that its message is stored."""

    at_s: float
    sequence: int
    message_id: str
    subject: str


class Member:
    """A server of the group, over all of its lives. `applied` is how far it knows each stream."""

    def __init__(self, index: int, host: Host, port: int) -> None:
        self.index = index
        self.host = host
        self.port = port
        self.name = f"nats-{index + 1}"
        self.url = f"nats://{host.name}:{port}"
        self.applied: dict[str, int] = {}
        self.patience_s = 0.0
        self.stale_until_s = 0.0
        self.server: Server | None = None

    @property
    def serving(self) -> Server | None:
        """Its process, if that is up and stands not still."""
        server = self.server
        return server if server is not None and server.ready and not server.process.frozen else None


class JetStream:
    """The servers of a cluster, their disks, and what goes wrong there."""

    def __init__(
        self,
        world: World,
        hosts: Sequence[str],
        *,
        port: int = PORT,
        sync_interval_s: float = 0.0,
        election_s: tuple[float, float] = ELECTION_S,
        history: History | None = None,
        subject_prefix: str = "holdfast",
    ) -> None:
        self.world = world
        self.members = [Member(index, world.host(host), port) for index, host in enumerate(hosts)]
        self.clustered = len(self.members) > 1
        self.streams: dict[str, Stream] = {}
        self.acknowledgements: list[Acknowledgement] = []
        self.troubles = Troubles()
        self.leader: Server | None = None
        self.homes: dict[tuple[str, str], Server] = {}
        self.routes = Routes(world)
        self._history = history
        self._prefix = subject_prefix + "."
        self._sync_interval_s = sync_interval_s
        self._election_s = election_s
        self._rng = world.rng("jetstream")
        self._orphans: list[Proposal] = []
        self._skipped: set[int] = set()

    # --- for the cluster --------------------------------------------------------------------------------

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients connect."""
        return tuple(member.url for member in self.members)

    def start(self, index: int = 0) -> SimProcess:
        """Start a server on the disk that it had before, if any."""
        member = self.members[index]
        assert member.server is None
        member.patience_s = self._rng.uniform(*self._election_s)
        process = self.world.spawn(member.name, member.host.name, self._live(member))
        server = member.server = Server(self, member, process)
        process.on_exit(lambda _status: self._ended(server))
        return process

    def entries(self, stream: str) -> list[Entry]:
        """What a stream holds."""
        held = self.streams[stream]
        return [entry for sequence in range(held.first, held.last + 1) if (entry := held.get(sequence)) is not None]

    # --- what goes wrong --------------------------------------------------------------------------------

    def trouble(
        self, kind: str, for_s: float, rng: Random, *, part: float = 1.0, max_s: float = 0.0, over_s: float = math.inf
    ) -> Window:
        """Let something go wrong from now on, for so long (seconds): a kind of `nats.faults` with a window.

        `ACK_LOST`, `REFUSED`, `REFUSED_YET_LANDS`, `FULL`, `NO_RESPONDERS`, `MUTE_API` (requests unanswered) strike
        `part` of appends or requests. `LATE` (taken in late), `TWICE` (and again, so much later), `SLOW_DISK` and
        `SLOW_DELIVERY` take up to `max_s`. `STALE_READ`: a leader elected meanwhile answers reads as of before its
        election for up to `max_s`, which must be less than the log's `read_timeout_s`. By `over_s` (true time) all of
        it is over, also what was held up.
        """
        window = Window(self.world.now_s + for_s, rng, part, max_s, over_s=over_s)
        self.troubles.open(kind, window)
        return window

    def end_pulls(self, rng: Random, part: float = 1.0) -> int:
        """End consumers' pulls before their time, with and without what was pending; how many pulls."""
        return self._strike(
            faults.PULL_ENDED,
            rng,
            part,
            lambda server, name: server.consumers[name].end_pulls(told_pending=rng.random() < 0.5),
        )

    def delete_consumers(self, rng: Random, part: float = 1.0) -> int:
        """Delete consumers, as a server does that restarts or sheds load; how many."""
        return self._strike(faults.CONSUMER_DELETED, rng, part, lambda _server, name: int(self.delete_consumer(name)))

    def stall_consumers(self, for_s: float, rng: Random, part: float = 1.0) -> int:
        """Let consumers say nothing for so long (seconds), not even heartbeats; how many."""

        def stall(server: Server, name: tuple[str, str]) -> int:
            server.consumers[name].stall(for_s)
            return 1

        return self._strike(faults.STALLED, rng, part, stall)

    def skip_deliveries(self, rng: Random, count: int = 1, part: float = 1.0) -> int:
        """Lose the next deliveries of consumers on their way (they are counted when that happens); of how many."""

        def skip(server: Server, name: tuple[str, str]) -> int:
            server.consumers[name].skip(count)
            return 1

        return self._strike("", rng, part, skip)

    def disconnect_clients(self, index: int = 0) -> int:
        """Let a server throw its clients out, as it does with slow ones; how many: none unless it is up and runs."""
        server = self.members[index].serving
        return server.disconnect_all() if server is not None else 0

    def change_leader(self, rng: Random) -> bool:
        """Let the leader step down, and another member lead within a second; whether there is a group with a leader."""
        if not self.clustered or self.leader is None:
            return False
        resigning = self.leader
        for member in self.members:
            member.patience_s = rng.uniform(0.1, 1.0)
        resigning.step_down()
        resigning.member.patience_s = self._election_s[1]
        self.troubles.count(faults.LEADER_CHANGED)
        return True

    def _strike(self, kind: str, rng: Random, part: float, strike: Callable[[Server, tuple[str, str]], int]) -> int:
        struck = 0
        for name, server in list(self.homes.items()):
            if rng.random() < part:
                struck += strike(server, name)
        if kind:
            for _ in range(struck):
                self.troubles.count(kind)
        return struck

    # --- for the servers: lives -------------------------------------------------------------------------

    def _live(self, member: Member) -> Callable[[SimProcess], Any]:
        async def main(_process: SimProcess) -> None:
            assert member.server is not None
            await member.server.run()

        return main

    def _ended(self, server: Server) -> None:
        member = server.member
        if server.leads:
            self.resigned(server)
            server.leads = False
        for name in [name for name, home in self.homes.items() if home is server]:
            del self.homes[name]
        member.server = None
        if not member.host.up and self._sync_interval_s > 0:
            self._lose_unsynced(member)

    def _lose_unsynced(self, member: Member) -> None:
        self._orphans.clear()
        synced_s = self.world.now_s // self._sync_interval_s * self._sync_interval_s
        for stream in self.streams.values():
            last = stream.last
            while (entry := stream.get(last)) is not None and entry.at_s > synced_s:
                last -= 1
            if not self.clustered:
                self._lose(stream, last)
            elif member.applied.get(stream.name, 0) > last:
                member.applied[stream.name] = last

    def _lose(self, stream: Stream, after: int) -> None:
        if stream.last <= after:
            return
        stream.truncate(after)
        self.troubles.count(faults.UNSYNCED_LOST)
        for member in self.members:
            member.applied[stream.name] = min(after, member.applied.get(stream.name, 0))
        if self._history is not None and self._is_log(stream):
            self._history.log_lost(self.world.now_s, after)

    def recovery_s(self) -> float:
        return self._rng.uniform(*RECOVERY_S)

    def commit_s(self) -> float:
        return self._rng.uniform(*COMMIT_S[self.clustered])

    # --- for the servers: who leads ---------------------------------------------------------------------

    def connected(self, one: Server, other: Server) -> bool:
        """Whether two servers hear each other."""
        return one is other or self.routes.pass_both_ways(one, other)

    def leader_for(self, server: Server) -> Server | None:
        """The leader as this server knows it, which may stand still."""
        if server.leads:
            return server
        leader = self.leader
        return leader if leader is not None and leader.leads and self.connected(server, leader) else None

    def has_majority(self, server: Server) -> bool:
        """Whether it leads, and enough others follow."""
        return self.leader is server and self._enough(self._peers(server))

    def may_lead(self, server: Server) -> bool:
        """Whether it would be elected: by a majority, none of which knows more or hears a leader."""
        peers = self._peers(server)
        if not self._enough(peers) or any(peer.leads for peer in peers):
            return False
        best = max(peers, key=lambda peer: (sum(peer.member.applied.values()), -peer.member.patience_s))
        return best is server

    def elected(self, server: Server) -> None:
        """It leads from now on. What was under way at the one before may have landed."""
        self.leader = server
        now_s = self.world.now_s
        if self.clustered:
            for stream in self.streams.values():
                self._lose(stream, server.member.applied.get(stream.name, 0))
            for member in self.members:
                member.patience_s = self._rng.uniform(*self._election_s)
            for peer in self._peers(server):
                peer.alone_since_s = now_s
            if (window := self.troubles.strikes(faults.STALE_READ, now_s)) is not None:
                server.member.stale_until_s = now_s + window.held_up_s(now_s)
        orphans, self._orphans = self._orphans, []
        for proposal in orphans:
            stream, append = proposal.stream, proposal.append
            known = stream.duplicate_of(append.message_id, now_s, stream.last) if append.message_id else None
            if self._rng.random() < LANDED_PART and known is None and stream.refusal(append, stream.last) is None:
                self.stored(server, proposal)
                self.troubles.count(faults.ORPHAN_LANDED)

    def resigned(self, server: Server) -> None:
        """It leads no longer."""
        if self.leader is server:
            self.leader = None
            # One server writes one after the other, so that at most the first may be on its disk.
            self._orphans = server.queue if self.clustered else server.queue[:1]

    def superseded(self, server: Server) -> bool:
        """Whether it thinks that it leads, and hears of another leader."""
        return self.leader is not server and self.leader is not None and self.connected(server, self.leader)

    def _peers(self, server: Server) -> list[Server]:
        found = [member.serving for member in self.members]
        return [peer for peer in found if peer is not None and self.connected(server, peer)]

    def _enough(self, peers: list[Server]) -> bool:
        return len(peers) * 2 > len(self.members)

    # --- for the servers: entries -----------------------------------------------------------------------

    def stream_of(self, subject: str) -> Stream | None:
        """The stream that takes messages on the subject."""
        return next((stream for stream in self.streams.values() if stream.takes(subject)), None)

    def stored(self, server: Server, proposal: Proposal) -> None:
        """The leader and enough others have it on disk."""
        stream = proposal.stream
        entry = stream.store(proposal.append, self.world.now_s)
        if self._history is not None and self._is_log(stream):
            subject = entry.subject.removeprefix(self._prefix)
            self._history.log_appended(self.world.now_s, entry.sequence, subject, entry.data, entry.message_id)
        if self.clustered:
            self._spread(server, stream)
        server.pump(stream)

    def acknowledged(self, append: Append, sequence: int) -> None:
        """A client is told."""
        self.acknowledgements.append(
            Acknowledgement(self.world.now_s, sequence, append.message_id, append.subject.removeprefix(self._prefix))
        )

    def replicate(self, server: Server) -> None:
        """Let those who hear the leader know what it knows."""
        for stream in self.streams.values():
            self._spread(server, stream)

    def _spread(self, leader: Server, stream: Stream) -> None:
        for peer in self._peers(leader):
            applied = peer.member.applied
            if applied.get(stream.name, 0) != stream.last:
                applied[stream.name] = stream.last
                if peer is not leader and peer.consumers:
                    self.routes.carry(leader, peer, peer.pump, stream)

    def _is_log(self, stream: Stream) -> bool:
        return str(stream.config["subjects"][0]).startswith(self._prefix)

    # --- for the servers: requests and consumers --------------------------------------------------------

    def route(self, source: Server, target: Server, delay_s: float, take: Callable[..., object], *args: Any) -> None:
        """Let a server take something in that came to another one, or to itself, perhaps later."""
        if delay_s > 0:
            source.later(delay_s, self.route, source, target, 0.0, take, *args)
        elif source is not target:
            self.routes.carry(source, target, take, *args)
        else:
            take(*args)

    def place_consumer(self, leader: Server) -> Server:
        """Where a new consumer is to live: with any member that the leader hears."""
        peers = self._peers(leader)
        return peers[int(self._rng.random() * len(peers))] if self.clustered else leader

    def home_of(self, server: Server, name: tuple[str, str]) -> Server | None:
        """Where a consumer is, if this server hears from there."""
        home = self.homes.get(name)
        return home if home is not None and self.connected(server, home) else None

    def delete_consumer(self, name: tuple[str, str]) -> bool:
        """Take a consumer away and tell who waits for it; whether there was one."""
        home = self.homes.pop(name, None)
        if home is None:
            return False
        home.consumers.pop(name).delete()
        return True

    def forget_consumers(self, stream: Stream) -> None:
        """The stream is deleted."""
        for name in [name for name in self.homes if name[0] == stream.name]:
            self.delete_consumer(name)

    def reap_consumers(self) -> None:
        """Take consumers away that nobody has used for as long as they asked for."""
        now_s = self.world.now_s
        for name, home in list(self.homes.items()):
            consumer = home.consumers[name]
            if not consumer.waiting and now_s - consumer.active_s > consumer.inactive_s:
                self.delete_consumer(name)

    def may_skip(self, sequence: int) -> bool:
        """Whether a delivery of this entry may be lost: never twice, or a reader must take the log for corrupt."""
        if sequence in self._skipped:
            return False
        self._skipped.add(sequence)
        self.troubles.count(faults.SKIPPED)
        return True
