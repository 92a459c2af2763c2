"""A node: joins the cluster, runs the replicas that the log places on it, and stands by to lead.

It acts only on what it reads in the log, and tells the log what came of it. When the log says that this
incarnation is gone (another one joined, or the controller gave it up), the node ends all it runs: what it
would go on doing, somebody else does already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import msgspec

from holdfast.actors.child import REPORTS_TIMEOUT_S, STOP_MARGIN_S, Child
from holdfast.actors.controller import Controller
from holdfast.actors.follower import UNREADABLE, Follower
from holdfast.actors.identity import Identity
from holdfast.actors.leasing import LeaseSession, check_name_free
from holdfast.actors.node_metrics import NodeMetrics
from holdfast.actors.reach import LogReach
from holdfast.actors.replica_watch import ReplicaWatch
from holdfast.actors.specification import specify
from holdfast.actors.system_port import SystemPort, system_pages
from holdfast.actors.writer import DecisionWriter, FactWriter
from holdfast.core.cluster import ClusterState, DeploymentState, MemberStatus, ReplicaState, ReplicaStatus
from holdfast.core.drains import may_be_relieved
from holdfast.core.errors import HoldfastError, LogUnavailable
from holdfast.core.events import (
    Fact,
    NodeJoined,
    NodeLeft,
    NodeLost,
    NodeStopping,
    Record,
    ReplicaDraining,
    ReplicaExited,
    ReplicaPlaced,
    ReplicaReplaced,
    ReplicaStopOrdered,
)
from holdfast.core.ports import Clock, Launcher, Leases, Log

FLUSH_TIMEOUT_S = 2.0
"""How long a node that ends waits for its last facts to reach the log."""

RESIGN_INTERVAL_S = 5.0
"""A node that can't read the log any more sees to it this often that it does not hold the leader key."""

logger = logging.getLogger(__name__)


class Superseded(HoldfastError):
    """The log holds this incarnation for gone; the process must end and may join again as a new one."""


class NodeSettings(msgspec.Struct, frozen=True):
    """How a node runs. Times in seconds; `slots` is how many replicas it takes; `host` is what replicas bind.

    `advertise_host` is the host that gateways reach replicas by; without one it is what they bind. The node and each of
    its replicas have the first free port from `system_port_first` upwards as their system port; 0 for none.
    `cut_off_timeout_s` is how long it may be without the log (`reach.py`); for `drain_timeout_s` a node that is told to
    stop waits for others to take over its replicas. `xid_file` injects errors of replicas' devices (`devices.py`).
    """

    version: str
    lease_ttl_s: float
    slots: int = 16
    host: str = "127.0.0.1"
    advertise_host: str = ""
    heartbeat_interval_s: float = 0.1
    system_port_first: int = 0
    cut_off_timeout_s: float = 30.0
    drain_timeout_s: float = 20.0
    otlp_endpoint: str = ""
    xid_file: str = ""


class Node:
    """One node's actors: lease, follower, facts, controller, and its replicas."""

    def __init__(
        self,
        identity: Identity,
        settings: NodeSettings,
        *,
        log: Log,
        leases: Leases,
        clock: Clock,
        launcher: Launcher,
        rng: random.Random,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._launcher = launcher
        self._leases = leases
        self._follower = Follower(log)
        self._follower.observe(self._on_record)
        self._facts = FactWriter(log, clock, identity)
        self._session = LeaseSession(leases, settings.lease_ttl_s, {identity.lease_key: identity.lease_value()}, rng)
        self._reach = LogReach(identity, self._follower, leases, self._session, settings.cut_off_timeout_s, rng)
        self._controller = Controller(
            identity,
            self._follower,
            DecisionWriter(log, clock, identity),
            leases,
            self._session,
            self._reach,
            clock,
            settings.lease_ttl_s,
            self._facts.record,
        )
        self._children: dict[str, Child] = {}
        self._metrics = NodeMetrics(identity, settings.version, settings.slots)
        self._metrics.show(self._follower, self._session, self._children)
        self._system = SystemPort(system_pages(self._metrics.ledger, self._reasons))
        self._placed: list[str] = []
        self._concerned = asyncio.Event()
        self._leaving = False
        self._leading: asyncio.Task[None] | None = None
        self._childless = asyncio.Event()
        self._childless.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Take part until `stop`. Raises `Superseded`, `WrongLastSequence` or `CorruptLog` when it may not go on."""
        await self._system.open(self._settings.host, self._settings.system_port_first)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._follow()),
                    group.create_task(self._follower.writing(self._facts.run())),
                    group.create_task(self._session.run()),
                ]
                participation = group.create_task(self._participate(group))
                await stop.wait()
                await self._leave(participation)
                for task in tasks:
                    task.cancel()
            await self._controller.resign()
            await self._session.release()
        finally:
            self._system.close()
            for child in self._children.values():
                child.kill()

    def _reasons(self) -> list[str]:
        """Why the node does not do all that a node does; empty while it does."""
        if self._follower.unreadable is not None:
            return [str(self._follower.unreadable)]
        status = self._here(self._follower.state)
        return [] if status is MemberStatus.ALIVE else [f"the log holds this node for {status or 'not joined'}"]

    async def _participate(self, group: asyncio.TaskGroup) -> None:
        await self._catch_up()
        identity = self._identity
        await check_name_free(self._leases, identity, self._follower.state.nodes.get(identity.name))
        settings, port = self._settings, self._system.port
        joined = self._facts.record(
            NodeJoined(identity.name, identity.host, identity.pid, settings.version, settings.slots, port), None
        )
        await self._facts.flush()
        logger.info("node %s joined as %s", identity.name, joined)
        await self._follower.until(lambda state: self._here(state) is not None)
        async with asyncio.TaskGroup() as inner:
            inner.create_task(self._reach.run())
            if self._follower.unreadable is None:
                self._leading = inner.create_task(self._controller.run())
            try:
                while True:
                    self._concerned.clear()
                    self._act(group)
                    await self._concerned.wait()
            except Superseded:
                await self._give_up()
                raise

    async def _give_up(self) -> None:
        """End at once what somebody else may run already, and tell the log what there is left to tell."""
        for child in self._children.values():
            child.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._controller.retire()
                await self._facts.flush()

    async def _catch_up(self) -> None:
        """Read all there is before joining, so that a stale view is never acted on."""
        while True:
            try:
                return await self._follower.catch_up()
            except LogUnavailable as error:
                logger.warning("can't read the log yet: %s", error)
                await asyncio.sleep(0.5)

    async def _follow(self) -> None:
        """Fold the log. Where it can't be read on, what runs here is kept, but the node neither acts nor leads."""
        try:
            await self._follower.run()
        except UNREADABLE as error:
            if self._here(self._follower.state) is None:
                raise
            logger.error("%s. This node keeps its replicas, and neither acts nor leads any more", error)
            if self._leading is not None:
                self._leading.cancel()
                await asyncio.wait([self._leading])
            while True:
                await self._controller.resign()
                await asyncio.sleep(RESIGN_INTERVAL_S)

    def _here(self, state: ClusterState) -> MemberStatus | None:
        """This incarnation's status, None before the log has it or once the log has another."""
        node = state.nodes.get(self._identity.name)
        if node is None or node.incarnation != self._identity.incarnation:
            return None
        return node.status

    def _on_record(self, record: Record, state: ClusterState) -> None:
        """Act on what concerns this node: in a large cluster that is next to nothing of what there is to read."""
        payload, identity = record.event.payload, self._identity
        if isinstance(payload, ReplicaPlaced | ReplicaReplaced):
            here = (payload.node, payload.node_incarnation) == (identity.name, identity.incarnation)
            replica = state.replicas.get(payload.replica)
            # What a deposed leader decided is in the log, but placed nothing.
            if here and replica is not None and replica.event == record.event.id:
                self._placed.append(replica.id)
        elif isinstance(payload, ReplicaStopOrdered | ReplicaDraining):
            if payload.replica in self._children:
                self._concerned.set()
        elif isinstance(payload, NodeJoined | NodeLeft | NodeLost) and payload.node == identity.name:
            self._concerned.set()
        if self._placed:
            self._concerned.set()

    def _act(self, group: asyncio.TaskGroup) -> None:
        """Start what the log places here, stop what it no longer wants here."""
        state = self._follower.state
        status = self._here(state)
        if status not in (MemberStatus.ALIVE, MemberStatus.STOPPING):
            raise Superseded(f"the log holds node {self._identity.name} for {status or 'another incarnation'}")
        self._placed = [one for one in self._placed if not self._take_up(group, state, one)]
        for replica_id, child in self._children.items():
            known = state.replicas.get(replica_id)
            if known is None or not known.live:
                child.stop(known)

    def _take_up(self, group: asyncio.TaskGroup, state: ClusterState, replica_id: str) -> bool:
        """Start a replica that was placed here, if it is still to start; whether that is settled."""
        replica = state.replicas.get(replica_id)
        if replica is not None and replica.status is ReplicaStatus.STARTING:
            return self._start(group, state, replica)
        if replica is not None and replica.status is ReplicaStatus.STOPPING:
            self._disown(replica)
        return True

    def _start(self, group: asyncio.TaskGroup, state: ClusterState, replica: ReplicaState) -> bool:
        deployment = self._deployment_of(replica)
        if deployment is None or self._leaving:
            return False
        identity, settings = self._identity, self._settings
        specification = specify(
            deployment.config,
            cluster=identity.cluster,
            replica=replica.id,
            host=settings.host,
            heartbeat_interval_s=settings.heartbeat_interval_s,
            system_port_first=settings.system_port_first,
            otlp_endpoint=settings.otlp_endpoint,
            xid_file=settings.xid_file,
        )
        watch = ReplicaWatch(
            identity.cluster,
            identity.name,
            replica.id,
            lambda: self._deployment_of(replica),
            lambda fact, cause: self._tell_of(replica.id, fact, cause),
        )
        child = self._children[replica.id] = Child(
            identity.name, settings.advertise_host, specification, watch, self._launcher, self._facts, self._metrics
        )
        self._childless.clear()
        group.create_task(self._run(child, replica.event))
        return True

    async def _run(self, child: Child, placed: str) -> None:
        await child.run(placed)
        self._children.pop(child.specification.replica, None)
        if not self._children:
            self._childless.set()

    def _deployment_of(self, replica: ReplicaState) -> DeploymentState | None:
        """As the log has it now."""
        application = self._follower.state.applications.get(replica.application)
        return application.deployments.get(replica.deployment) if application else None

    def _tell_of(self, replica: str, fact: Fact, cause: str) -> None:
        """Tell the log of a replica's health, unless it is to end anyway."""
        child = self._children.get(replica)
        if child is not None and not child.ends:
            self._metrics.judged(child.specification.model, fact)
            self._facts.record(fact, cause)

    def _disown(self, replica: ReplicaState) -> None:
        """It was told to stop before this node had read that it should start: nobody else can say that it is gone."""
        message = "it was told to stop before it was started"
        self._facts.record(ReplicaExited(replica.id, self._identity.name, 0, None, None, True, message), replica.event)

    # --- leaving ----------------------------------------------------------------------------------------

    async def _leave(self, participation: asyncio.Task[None]) -> None:
        """End everything in order: out of placement, then the replicas, then out of the cluster."""
        name = self._identity.name
        self._leaving = True
        stopping = self._facts.record(NodeStopping(name), None)
        await self._be_relieved()
        for child in self._children.values():
            child.stop(None)
        longest_s = max((child.order.deadline_s for child in self._children.values()), default=0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s + STOP_MARGIN_S + REPORTS_TIMEOUT_S):
                await self._childless.wait()
        participation.cancel()
        self._facts.record(NodeLeft(name), stopping)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._facts.flush()

    async def _be_relieved(self) -> None:
        """Wait until the replicas here are replaced and told to stop, for as long as others may take them over.

        That is not so where no other node takes replicas, nor where the log does not take our word.
        """
        with contextlib.suppress(TimeoutError, *UNREADABLE):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                told = await self._facts.flush()
                await self._follower.reached(told)
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._follower.until(lambda state: not may_be_relieved(state, self._identity.name))
