"""Compares what replicas hold with what gateways believe to have there: streams that only one side knows of."""

from __future__ import annotations

from typing import NamedTuple

from holdfast.actors.held import CROWDED_KEEP_S, Held, Peer
from holdfast.actors.replica import Replica
from holdfast.actors.wire import Connection
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.session import StreamRun
from holdfast.simulations.cluster.cluster import Cluster
from holdfast.simulations.cluster.replicas import RunningReplica
from holdfast.simulations.strays import KEPT, LEFT_BEHIND, MISSING, NOBODYS, Stray
from holdfast.simulations.world.network import End
from holdfast.simulations.world.transport import SimTransport

_Key = tuple[str, str, str, int]


class _Reached(NamedTuple):
    """A gateway's link over which it reaches a replica, and the runs that it has there."""

    gateway: str
    link: ReplicaLink
    here: list[StreamRun]


class Holdings:
    """Looks at all replicas and gateways; a stream that is astray in look after look is one record in the history."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._astray: dict[_Key, Stray] = {}
        self._seen: dict[_Key, Stray] = {}

    def look(self) -> None:
        """Compare. Nothing is asked of a process that stands still: it has not read what came for it."""
        reached, elsewhere = self._gateways()
        for running in self._cluster.replicas.values():
            replica = running.replica
            if replica is not None and not running.process.frozen:
                self._attached(running, replica, reached)
                self._detached(running, replica, elsewhere)
        for end, one in reached.items():
            running_there = self._cluster.replicas.get(one.link.replica)
            if running_there is not None and running_there.replica is not None and not running_there.process.frozen:
                self._missing(running_there, running_there.replica, end, one)
        self._astray, self._seen = self._seen, {}

    def _gateways(self) -> tuple[dict[End, _Reached], dict[str, tuple[str, StreamRun]]]:
        """The links of all gateways by their ends of the connection, and all runs with names, by these."""
        reached: dict[End, _Reached] = {}
        named: dict[str, tuple[str, StreamRun]] = {}
        for member in self._cluster.gateways:
            inside = self._cluster.inside.get(member.name)
            process = member.process
            if not isinstance(inside, GatewayProcess) or process is None or not process.alive or process.frozen:
                continue
            serving = inside._serving
            for run in serving._dispatch.pool_of:
                if run.name:
                    named[run.name] = (member.name, run)
            # Links to replicas that are told to stop are forgotten, but for what runs there.
            links = [*serving._links.values(), *(run.link for run in serving._dispatch.pool_of if run.link is not None)]
            for link in links:
                end = _end_of(link._contact.connection)
                if end is not None and link._contact.welcomed:
                    reached[end] = _Reached(member.name, link, list(link._attempts.values()))
        return reached, named

    def _attached(self, running: RunningReplica, replica: Replica, reached: dict[End, _Reached]) -> None:
        """What the replica sends to gateways that have nothing of the kind there."""
        for connection, peer in replica._peers.items():
            end = _end_of(connection)
            one = reached.get(end.other) if end is not None else None
            if one is None and (end is None or end.other.process.frozen):
                continue
            known = one.link._attempts if one is not None else {}
            for attempt in peer.attempts:
                self._look(NOBODYS, running.name, peer.gateway)
                if attempt not in known:
                    self._note(NOBODYS, running.name, peer.gateway, attempt)

    def _detached(self, running: RunningReplica, replica: Replica, elsewhere: dict[str, tuple[str, StreamRun]]) -> None:
        """What no gateway is connected for: one may have it elsewhere by now, or others may wait for its room."""
        for held in list(replica._held.by_key.values()):
            if held.peer is not None:
                continue
            self._look(KEPT, running.name, held.gateway)
            loop_s = running.process.loop.time()
            crowded = loop_s - held.detached_s > CROWDED_KEEP_S and replica._engine.load().waiting
            if crowded or loop_s > held.until_s:
                self._note(KEPT, running.name, held.gateway, held.key)
            gateway, run = elsewhere.get(held.name, ("", None))
            if run is not None and self._left_behind(running, held, gateway, run):
                self._note(LEFT_BEHIND, running.name, gateway, held.key)

    def _left_behind(self, running: RunningReplica, held: Held, gateway: str, run: StreamRun) -> bool:
        """Whether the gateway that had it here runs it on another replica by now, and could have said so."""
        inside, process = self._cluster.inside[gateway], self._cluster.member(gateway).process
        assert isinstance(inside, GatewayProcess)
        assert process is not None
        link = inside._serving._links.get(running.name)
        if held.gateway != gateway or run.resumed_at is not None or link is None or not link.reached:
            return False
        detached_s = running.process.loop.time() - held.detached_s
        same_life = self._cluster.life(process).began_s < self._cluster.world.now_s - detached_s
        return same_life and run.link not in (None, link) and held.tokens.ordinal < run.ordinal

    def _missing(self, running: RunningReplica, replica: Replica, end: End, one: _Reached) -> None:
        """What a gateway waits for, and the replica does not have, nor anything to be read that says so."""
        peer = next((peer for connection, peer in replica._peers.items() if _end_of(connection) is end.other), None)
        for run in one.here:
            self._look(MISSING, running.name, one.gateway)
            if peer is None or not _has(replica, peer, run.attempt):
                self._note(MISSING, running.name, one.gateway, run.attempt)

    def _look(self, what: str, replica: str, gateway: str) -> None:
        self._cluster.history.looked_at(self._cluster.world.now_s, what, replica, gateway)

    def _note(self, what: str, replica: str, gateway: str, number: int) -> None:
        key, now_s = (what, replica, gateway, number), self._cluster.world.now_s
        stray = self._astray.get(key) or self._cluster.history.stray(now_s, what, replica, gateway)
        stray.until_s = now_s
        self._seen[key] = stray


def _end_of(connection: Connection | None) -> End | None:
    """This side's end of the connection, None once it is over here."""
    transport = connection._transport if connection is not None else None
    return transport._end if isinstance(transport, SimTransport) and not transport.is_closing() else None


def _has(replica: Replica, peer: Peer, attempt: int) -> bool:
    """Whether the replica runs the attempt, or is about to."""
    if attempt in peer.attempts or replica._admitting == (peer, attempt):
        return True
    return any(one.peer is peer and one.start.attempt == attempt for one in replica._starts)
