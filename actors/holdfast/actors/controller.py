"""Leads when it may, and while it leads, decides.

Leadership is a key in the lease servers; the key's create revision is the epoch. The log is what fences: a new
leader first appends its own election, after which an older leader's appends meet a wrong last sequence and are
refused. So a leader goes on deciding while the lease servers are away, and stops when the log says no.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from datetime import datetime

from holdfast.actors.follower import Follower
from holdfast.actors.identity import DECISIONS, LEADER_KEY, Identity
from holdfast.actors.leasing import LeaseSession
from holdfast.actors.writer import DecisionWriter
from holdfast.core.cluster import ClusterState, Head, MemberStatus
from holdfast.core.detector import LeaseEvidence, Member
from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable, LogUnavailable, WrongLastSequence
from holdfast.core.events import LeaderElected
from holdfast.core.ports import Clock, KeyValue, Leases
from holdfast.core.reconcile import Evidence, Plan, reconcile

RETRY_S = 0.3
VACANCY_POLL_S = 2.0
"""A candidate watches the leader key, and looks for itself this often in case the watch is silent (seconds)."""

POLL_MAX_S = 1.0
"""The lease keys are listed every quarter of the TTL, but at least this often (seconds)."""

logger = logging.getLogger(__name__)


class Deposed(Exception):
    """Another leader was elected, or this one's lease is gone."""


class Controller:
    """One node's bid to lead, again and again."""

    def __init__(
        self,
        identity: Identity,
        follower: Follower,
        writer: DecisionWriter,
        leases: Leases,
        session: LeaseSession,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._identity = identity
        self._follower = follower
        self._writer = writer
        self._leases = leases
        self._session = session
        self._clock = clock
        self._ttl_s = ttl_s
        self._poke = asyncio.Event()
        self._lease_lost = False
        self._nodes = LeaseEvidence(ttl_s)
        self._gateways = LeaseEvidence(ttl_s)
        session.observe_loss(self._on_lease_lost)
        follower.observe(lambda _record, _state: self._poke.set())

    async def run(self) -> None:
        """Campaign and lead until cancelled."""
        while True:
            epoch = await self._epoch(await self._campaign())
            logger.info("%s leads with epoch %d", self._identity.name, epoch)
            self._lease_lost = False
            self._nodes = LeaseEvidence(self._ttl_s)
            self._gateways = LeaseEvidence(self._ttl_s)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch_members())
                    group.create_task(self._lead(epoch))
            except* Deposed as deposed:
                logger.warning("%s no longer leads: %s", self._identity.name, deposed.exceptions[0])

    async def resign(self) -> None:
        """Leave the leader key to the next one; the lease's release does it for good."""
        try:
            for item in (await self._leases.list(LEADER_KEY)).items:
                if self._is_ours(item):
                    await self._leases.delete(LEADER_KEY, create_revision=item.create_revision)
        except LeasesUnavailable as error:
            logger.warning("the leader key ends with its lease: %s", error)

    # --- becoming leader --------------------------------------------------------------------------------

    async def _campaign(self) -> int:
        """Wait until the leader key is ours; the epoch."""
        value = self._identity.lease_value()
        while True:
            lease = await self._session.held()
            try:
                try:
                    return await self._leases.create(LEADER_KEY, value, lease)
                except KeyTaken as taken:
                    if taken.holder == value:
                        # Ours, from a try whose outcome we never learned. A fresh one has an epoch that we know.
                        await self.resign()
                        await asyncio.sleep(RETRY_S)
                    else:
                        await self._wait_for_vacancy(taken.holder)
            except (LeasesUnavailable, LeaseGone):
                await asyncio.sleep(RETRY_S)

    async def _epoch(self, revision: int) -> int:
        """The epoch to lead with: the leader key's revision, unless the log has seen as high a one.

        Then either somebody was elected after us, which the first append will tell, or the lease servers lost
        their data and began to count anew: only the holder of the key goes on, above all that the log has seen.
        """
        seen = self._follower.state.epoch
        if revision > seen:
            return revision
        with contextlib.suppress(LeasesUnavailable):
            for item in (await self._leases.list(LEADER_KEY)).items:
                if self._is_ours(item) and item.create_revision == revision:
                    logger.warning("the lease servers' revision %d is below epoch %d of the log", revision, seen)
                    return seen + 1
        return revision

    async def _wait_for_vacancy(self, holder: bytes) -> None:
        """Return when it is worth trying for the leader key again. Raises `LeasesUnavailable`."""
        if await self._take_from_dead(holder):
            return
        listing = await self._leases.list(LEADER_KEY)
        if not listing.items:
            return
        changes = self._leases.watch(LEADER_KEY, after=listing.revision)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VACANCY_POLL_S), contextlib.aclosing(changes):
                async for batch in changes:
                    if any(change.value is None for change in batch):
                        return

    async def _take_from_dead(self, holder: bytes) -> bool:
        """Clear the leader key if the log proves that its holder is not the node's latest incarnation."""
        try:
            claim = json.loads(holder)
            name, incarnation = claim["holder"], claim["incarnation"]
        except (ValueError, KeyError, TypeError):
            return False
        node = self._follower.state.nodes.get(name)
        gone = node is not None and (
            node.incarnation != incarnation or node.status in (MemberStatus.LEFT, MemberStatus.LOST)
        )
        if not gone or incarnation == self._identity.incarnation:
            return False
        for item in (await self._leases.list(LEADER_KEY)).items:
            if item.key == LEADER_KEY and item.value == holder:
                return await self._leases.delete(LEADER_KEY, create_revision=item.create_revision)
        return True

    def _is_ours(self, item: KeyValue) -> bool:
        return item.key == LEADER_KEY and item.value == self._identity.lease_value()

    def _on_lease_lost(self) -> None:
        self._lease_lost = True
        self._poke.set()

    # --- leading ----------------------------------------------------------------------------------------

    async def _lead(self, epoch: int) -> None:
        """Append our election, then decide after every change. Raises `Deposed`."""
        head = await self._elect(epoch)
        while True:
            self._poke.clear()
            self._check(epoch)
            await self._follower.reached(head.sequence)
            plan = self._plan()
            for proposal in plan.proposals:
                try:
                    head = await self._writer.append(proposal.payload, proposal.cause, epoch=epoch, head=head)
                except WrongLastSequence as error:
                    raise Deposed(f"a decision was refused, {error}") from error
            if not plan.proposals:
                await self._wait(plan.look_again_at)

    async def _elect(self, epoch: int) -> Head:
        """Append the election after all decisions there are; whoever decided before can't any more."""
        decision = LeaderElected(self._identity.name, self._identity.incarnation)
        while True:
            self._check(epoch)
            try:
                await self._follower.catch_up()
                state = self._follower.state
                node = state.nodes.get(self._identity.name)
                return await self._writer.append(
                    decision, node.event if node else None, epoch=epoch, head=state.head(DECISIONS)
                )
            except WrongLastSequence:
                logger.info("another decision came in between; reading it first")
            except LogUnavailable as error:
                logger.warning("the election waits for the log: %s", error)
                await asyncio.sleep(RETRY_S)

    def _check(self, epoch: int) -> None:
        if self._lease_lost:
            raise Deposed("its lease is gone")
        if self._follower.state.epoch > epoch:
            raise Deposed(f"epoch {self._follower.state.epoch} was elected")

    def _plan(self) -> Plan:
        now_s = asyncio.get_running_loop().time()
        # Whoever decides is alive: a leader whose own lease slipped away asks for a new one, and may be deposed.
        ourselves = (self._identity.name, self._identity.incarnation)
        evidence = Evidence(self._nodes.expired(now_s) - {ourselves}, self._gateways.expired(now_s))
        return reconcile(self._follower.state, evidence, self._clock.now())

    async def _wait(self, until: datetime | None) -> None:
        """Sleep until something changes, or until it is time to look again."""
        wait_s = POLL_MAX_S
        if until is not None:
            wait_s = min(wait_s, max(0.0, (until - self._clock.now()).total_seconds()))
        try:
            async with asyncio.timeout(wait_s):
                await self._poke.wait()
        except TimeoutError:
            return

    async def _watch_members(self) -> None:
        """Hold the listing of lease keys against the log, every so often."""
        while True:
            try:
                listing = await self._leases.list("")
            except LeasesUnavailable:
                self._nodes.unreachable()
                self._gateways.unreachable()
            else:
                now_s = asyncio.get_running_loop().time()
                keys = [item.key for item in listing.items]
                state = self._follower.state
                self._nodes.listed(_members(keys, "nodes"), _nodes_alive(state), now_s)
                self._gateways.listed(_members(keys, "gateways"), _gateways_alive(state), now_s)
                self._poke.set()
            await asyncio.sleep(min(POLL_MAX_S, self._ttl_s / 4))


def _members(keys: list[str], role: str) -> frozenset[Member]:
    parts = (key.split("/") for key in keys)
    return frozenset((part[1], part[2]) for part in parts if len(part) == 3 and part[0] == role)


_TAKING_PART = (MemberStatus.ALIVE, MemberStatus.STOPPING)


def _nodes_alive(state: ClusterState) -> frozenset[Member]:
    return frozenset((node.id, node.incarnation) for node in state.nodes.values() if node.status in _TAKING_PART)


def _gateways_alive(state: ClusterState) -> frozenset[Member]:
    return frozenset(
        (gateway.id, gateway.incarnation) for gateway in state.gateways.values() if gateway.status in _TAKING_PART
    )
