"""Looks into living actors now and then: what they have folded, whom they reach, how full their queues are.

Where production code has a bound of its own, that is the bound; where it holds as much as it is asked for, the run's
requests are; and what no actor has more than a few of (readers, waits, connections to servers) has a bound here.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.actors.held import KEPT_BYTES_MAX
from holdfast.actors.node import Node
from holdfast.actors.replica import STARTS_WAITING_MAX, Replica
from holdfast.actors.wire import WRITE_BUFFER_MAX_BYTES
from holdfast.actors.writer import OUTBOX_FACTS_MAX
from holdfast.core.cluster import ReplicaStatus
from holdfast.gateway.fences import ORPHANS_MAX
from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.gateway.pool import Pool
from holdfast.gateway.session import RESUMED_ORDINALS, StreamRun
from holdfast.simulations.cluster.cluster import Cluster, NotedLog
from holdfast.simulations.cluster.holdings import Holdings
from holdfast.simulations.cluster.members import Member
from holdfast.simulations.cluster.replicas import RunningReplica
from holdfast.simulations.work.items import CHOICES_MAX

INTERVAL_S = 3.0
SETTLING_INTERVAL_S = 1.5
"""Between two looks, in virtual seconds."""

LOOKS_PER_FOLD = 4

LATE_S = 1.0
"""A gateway does what it does by a timer so late at most, in seconds."""

LOG_READERS_MAX = 1
"""A process follows the log once, however often that is begun anew."""

LOG_REQUESTS_MAX = 6
"""Requests to the log under way in one process: facts, decisions, reads of its end for catching up and for health, and
what a reader asks when it begins anew."""

WAITS_MAX = 4
"""Tasks of one process that wait for the next record: whoever joins or catches up, and who waits to be given up."""

LEASE_CONNECTIONS_MAX = 12
"""Connections to lease servers: an idle one for each of three, and one for each of what may be asked at once: the
lease's renewal and its watch, health, the name, and for controllers listings and watches of the leader and of all."""


class Sampler:
    """Looks at all members of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._history = cluster.history
        self._looks = 0
        self._holdings = Holdings(cluster)
        self._differ: dict[tuple[int, str], int] = {}

    def arm(self) -> None:
        """Begin to look."""
        self._cluster.world.scheduler.call_later(INTERVAL_S, self._look)

    def finish(self) -> None:
        """A last look, at the end of the run."""
        self._look_at_all()
        self._note_folds()
        for member, inside in self._living():
            if isinstance(inside, GatewayProcess) and member.process is not None and not member.process.frozen:
                self._links(member, inside)

    def _note_folds(self) -> None:
        now_s = self._cluster.world.now_s
        for member, inside in self._living():
            self._history.state_folded(now_s, member.name, inside._follower.state)

    def _look(self) -> None:
        self._look_at_all()
        self._looks += 1
        if self._looks % LOOKS_PER_FOLD == 0:
            self._note_folds()
        settle = self._history.settle
        settling = settle is not None and self._cluster.world.now_s >= settle.began_s
        self._cluster.world.scheduler.call_later(SETTLING_INTERVAL_S if settling else INTERVAL_S, self._look)

    def _look_at_all(self) -> None:
        settle = self._history.settle
        now_s = self._cluster.world.now_s
        for member, inside in self._living():
            self._member(now_s, member, inside)
            if isinstance(inside, GatewayProcess):
                self._gateway(now_s, member, inside, settling=settle is not None and now_s >= settle.began_s)
        for running in self._cluster.replicas.values():
            if running.replica is not None:
                self._replica(now_s, running, running.replica)
        self._holdings.look()

    def _living(self) -> list[tuple[Member, Node | GatewayProcess]]:
        inside = self._cluster.inside
        return [
            (member, inside[member.name]) for member in self._cluster.members if member.alive and member.name in inside
        ]

    def _links(self, member: Member, gateway: GatewayProcess) -> None:
        """At rest a gateway has links to replicas that run, as far as it has read, and to no others."""
        serving, state = gateway._serving, gateway._follower.state
        running = [replica.id for replica in state.replicas.values() if replica.status is ReplicaStatus.RUNNING]
        self._history.sample(
            self._cluster.world.now_s, member.name, "links to replicas", len(serving._links), len(running)
        )

    def _member(self, now_s: float, member: Member, inside: Node | GatewayProcess) -> None:
        """What nodes and gateways have alike: what they tell the log, how they follow it, and their leases."""
        sample, name, process = self._history.sample, member.name, member.process
        assert process is not None
        sample(now_s, name, "outbox", len(inside._facts._outbox), OUTBOX_FACTS_MAX)
        sample(now_s, name, "waits for records", len(inside._follower._waiters), WAITS_MAX)
        log = inside._follower._log
        if isinstance(log, NotedLog) and (connection := log.connection) is not None:
            batch = self._cluster.servers.log_settings.follow_batch_messages
            buffered = max((len(reader._arrived) for reader in connection.readers), default=0)
            sample(now_s, name, "log readers", len(connection.readers), LOG_READERS_MAX)
            sample(now_s, name, "entries that came and are not read", buffered, 2 * batch)
            sample(now_s, name, "requests to the log", connection.requests, LOG_REQUESTS_MAX)
        ends, servers = self._cluster.world.network.ends_of(process), self._cluster.servers.lease_hosts
        leasing = sum(end.other.process.host.name in servers for end in ends)
        sample(now_s, name, "connections to lease servers", leasing, LEASE_CONNECTIONS_MAX)
        sample(now_s, name, "unsent bytes", max((end.waiting_bytes for end in ends), default=0), WRITE_BUFFER_MAX_BYTES)

    def _replica(self, now_s: float, running: RunningReplica, replica: Replica) -> None:
        """A replica holds no stream that its engine is done with, and keeps none that nobody asked for."""
        sample, name, held = self._history.sample, running.name, replica._held
        streams = CHOICES_MAX * len(self._history.requests)
        if not replica._engine_watch.stepping:  # in the middle of a step its engine may be done with some already
            sample(now_s, name, "streams held", len(held.by_key), running.streams)
        sample(now_s, name, "streams kept for their clients", len(held.shelf), streams)
        sample(now_s, name, "bytes kept", held.shelf.bytes, KEPT_BYTES_MAX)
        sample(now_s, name, "attempts that wait for the engine", len(replica._starts), min(streams, STARTS_WAITING_MAX))
        ends = self._cluster.world.network.ends_of(running.process)
        sample(now_s, name, "unsent bytes", max((end.waiting_bytes for end in ends), default=0), WRITE_BUFFER_MAX_BYTES)

    def _gateway(self, now_s: float, member: Member, gateway: GatewayProcess, *, settling: bool) -> None:
        serving, history = gateway._serving, self._history
        for name, pool in serving._pools.items():
            # Streams that have been on a replica are never refused for the queue's length.
            waiting = sum(run.ordinal % RESUMED_ORDINALS == 0 for run in pool.queue)
            history.sample(now_s, member.name, f"queue of {name}", waiting, pool.config.max_queued_requests)
            self._waits(now_s, member, name, pool.queue)
            self._thresholds(now_s, member, gateway, pool)
            for link in pool.links:
                bound = pool.config.max_ongoing_requests
                # What another gateway began goes on here, room or none: it takes no more of the replica than before.
                begun = sum(run.resumed_at is None for run in link._attempts.values())
                history.sample(now_s, member.name, f"streams on {link.replica}", begun, bound)
        process = member.process
        assert process is not None
        open_now = sum(one.pid == process.pid and one.ended_s is None for one in history.exchanges)
        streams = serving._dispatch.pool_of
        history.sample(now_s, member.name, "streams of requests", len(streams), CHOICES_MAX * open_now)
        waiting_on = [run for pool in serving._pools.values() for run in pool.queue]
        waiting_on += [run for link in serving._links.values() for run in link._attempts.values()]
        nobodys = sum(run not in streams for run in waiting_on)
        history.sample(now_s, member.name, "streams that no request has", nobodys, 0)
        for link in serving._links.values():
            history.sample(now_s, member.name, "streams to fence", len(link._contact.fences), 2 * ORPHANS_MAX)
        if settling:
            history.gateway_reaches(
                now_s, member.name, tuple(link.replica for link in serving._links.values() if link.ready)
            )

    def _thresholds(self, now_s: float, member: Member, gateway: GatewayProcess, pool: Pool) -> None:
        """A gateway holds to the thresholds of the log, as far as it has read it, at its next turn; in how many looks
        on end it did not, while it ran.
        """
        name, process = pool.config.name, member.process
        assert process is not None
        key = (process.pid, name)
        states = gateway._follower.state.applications.values()
        known = next((one.deployments[name] for one in states if name in one.deployments), None)
        if known is None or process.frozen:
            self._differ.pop(key, None)
            return
        due = known.thresholds.over(known.config.thresholds).over(gateway._serving._admission.thresholds())
        self._differ[key] = 0 if pool.admission.thresholds == due else self._differ.get(key, 0) + 1
        told = f"looks in which its thresholds of {name} are not the log's"
        self._history.sample(now_s, member.name, told, self._differ[key], 1)

    def _waits(self, now_s: float, member: Member, model: str, queue: Iterable[StreamRun]) -> None:
        """Nobody waits for a replica for longer than that is waited for, unless the gateway stands or stood still."""
        process = member.process
        assert process is not None
        frozen = self._cluster.life(process).frozen
        if process.lane.cost_s or (frozen and (frozen[-1][1] is None or frozen[-1][1] > now_s - LATE_S)):
            return
        loop_s = process.loop.time()
        waited_s = max((loop_s - run.waiting_since_s for run in queue if run.waiting_since_s is not None), default=0.0)
        bound_s = self._cluster.knobs.replica_wait_s + LATE_S
        name = f"milliseconds of waiting for {model}"
        self._history.sample(now_s, member.name, name, int(waited_s * 1000), int(bound_s * 1000))
