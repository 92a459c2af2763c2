"""Leads when it may, and while it leads, decides.

Leadership is a key in the lease servers; the key's create revision is the epoch. The log is what fences: a new
leader first appends its own election, after which an older leader's appends meet a wrong last sequence and are
refused. So a leader goes on deciding while the lease servers are away, and stops when the log says no.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from holdfast.actors.follower import Follower
from holdfast.actors.identity import CUT_OFF, DECISIONS, ENDED, LEADER_KEY, Identity, members_at, parse_holder
from holdfast.actors.leasing import LeaseSession
from holdfast.actors.reach import LogReach, read_on
from holdfast.actors.writer import DecisionWriter
from holdfast.core.cluster import ClusterState, Head, MemberStatus
from holdfast.core.detector import LeaseEvidence, Member
from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable, LogUnavailable, WrongLastSequence
from holdfast.core.events import GatewayJoined, LeaderDeposed, LeaderElected, Record, type_name
from holdfast.core.ports import Clock, KeyValue, Leases, Listing
from holdfast.core.reconcile import Evidence, Plan, reconcile

RETRY_S = 0.3
POLL_S = 1.0
POLL_MAX_S = 5.0
POLLS = 5
"""A leader lists the lease keys this often (seconds): every quarter of a short TTL; else every second, or where the TTL
is longer than usual so many times within it, up to the largest pause."""

VACANCY_POLLS = 2
VACANCY_READS_PER_S = 25
"""A candidate watches the leader key, and reads it every so many of these times in case the watch is silent, and more
rarely where all the candidates of a large cluster would together read it more often than this."""

LOOK_PAUSE_S = 2e-6
LOOK_PAUSE_MIN_S = 0.001
"""A look at the state takes about a microsecond per replica. After one that found nothing to do a leader pauses for
so long per replica (seconds): looks take no more than a third of its time. Pauses below the minimum are left out."""

GATHER_S = 0.05
"""When a key goes they are listed again after this long, together with those that go meanwhile (seconds)."""

LATE_S = 0.001
"""A look at whether somebody's time is over comes so much later, so that no rounding puts it before that."""

RESIGN_PAUSE_S = 3.0
"""A leader that can't reach the log tries this often, in seconds, to leave the key to one that can."""

READ_ON_MAX_S = 10.0
"""A leader waits at most this long, in seconds, to read what the log is known to hold: it may have lost it since."""

SUCCESSOR_TIMEOUT_S = 2.0
"""How long a leader whose decision was refused reads on, to learn who leads now (seconds)."""

logger = logging.getLogger(__name__)


class Deposed(Exception):
    """Another leader was elected, or this one's lease is gone. `refused` is the decision that told, if one did."""

    def __init__(self, reason: str, refused: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.refused = refused


class Controller:
    """One node's bid to lead, again and again. What became of it is told by `tell(fact, cause)`."""

    def __init__(
        self,
        identity: Identity,
        follower: Follower,
        writer: DecisionWriter,
        leases: Leases,
        session: LeaseSession,
        reach: LogReach,
        clock: Clock,
        ttl_s: float,
        tell: Callable[[LeaderDeposed, str | None], object],
    ) -> None:
        self._identity = identity
        self._follower = follower
        self._writer = writer
        self._leases = leases
        self._session = session
        self._reach = reach
        self._clock = clock
        self._ttl_s = ttl_s
        self._poll_s = min(max(POLL_S, ttl_s / POLLS), POLL_MAX_S)
        self._tell = tell
        self._poke = asyncio.Event()
        self._lease: int | None = None
        self._retired = False
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._elected = False
        self._election: str | None = None
        self._nodes = LeaseEvidence(ttl_s)
        self._gateways = LeaseEvidence(ttl_s)
        session.observe_loss(self._poke.set)
        follower.observe(self._on_record)

    async def run(self) -> None:
        """Campaign and lead until cancelled or retired."""
        while not self._retired:
            await read_on(self._follower)
            revision, self._lease = await self._campaign()
            epoch = await self._epoch(revision)
            logger.info("%s leads with epoch %d", self._identity.name, epoch)
            self._elected = False
            self._nodes = LeaseEvidence(self._ttl_s)
            self._gateways = LeaseEvidence(self._ttl_s)
            self._at_rest.clear()
            try:
                await self._report(epoch, await self._term(epoch, self._lease))
            finally:
                self._at_rest.set()

    async def retire(self) -> None:
        """Lead no more. Returns once it is known and told what became of the last decision; bound it."""
        self._retired = True
        self._poke.set()
        await self._at_rest.wait()

    async def resign(self) -> bool:
        """Leave the leader key to the next one; whether the lease servers confirmed it. Else it ends with its lease."""
        try:
            for item in (await self._leases.list(LEADER_KEY)).items:
                if self._is_ours(item):
                    await self._leases.delete(LEADER_KEY, create_revision=item.create_revision)
        except LeasesUnavailable as error:
            logger.warning("the leader key ends with its lease: %s", error)
            return False
        return True

    # --- becoming leader --------------------------------------------------------------------------------

    async def _campaign(self) -> tuple[int, int]:
        """Wait until the leader key is ours; its revision, and the lease that it hangs on."""
        value = self._identity.lease_value()
        while True:
            lease = await self._session.held()
            try:
                try:
                    return await self._leases.create(LEADER_KEY, value, lease), lease
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
        listing = await self._leases.list(LEADER_KEY)
        going = asyncio.create_task(self._until_gone(LEADER_KEY, listing.revision))
        try:
            while any(item.value == holder for item in listing.items) and not await self._take_from_dead(holder):
                # One watch for as long as it takes, and reads beside it: there may be many candidates.
                done, _ = await asyncio.wait({going}, timeout=self._vacancy_poll_s())
                if done:
                    return going.result()
                listing = await self._leases.list(LEADER_KEY)
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

    def _vacancy_poll_s(self) -> float:
        return max(VACANCY_POLLS * self._poll_s, len(self._follower.state.nodes) / VACANCY_READS_PER_S)

    async def _until_gone(self, prefix: str, after: int) -> None:
        """Wait for a key below `prefix` to go after this revision."""
        async with contextlib.aclosing(self._leases.watch(prefix, after=after)) as changes:
            async for batch in changes:
                if any(change.value is None for change in batch):
                    return

    async def _take_from_dead(self, holder: bytes) -> bool:
        """Clear the leader key if the log proves that its holder is not the node's latest incarnation."""
        claim = parse_holder(holder)
        if claim is None or claim.incarnation == self._identity.incarnation:
            return False
        node = self._follower.state.nodes.get(claim.holder)
        gone = node is not None and (
            node.incarnation != claim.incarnation or node.status in (MemberStatus.LEFT, MemberStatus.LOST)
        )
        if not gone:
            return False
        for item in (await self._leases.list(LEADER_KEY)).items:
            if item.key == LEADER_KEY and item.value == holder:
                return await self._leases.delete(LEADER_KEY, create_revision=item.create_revision)
        return True

    def _is_ours(self, item: KeyValue) -> bool:
        return item.key == LEADER_KEY and item.value == self._identity.lease_value()

    def _on_record(self, record: Record, state: ClusterState) -> None:
        event, payload = record.event, record.event.payload
        if isinstance(payload, LeaderElected) and event.epoch == state.epoch:
            self._election = event.id
        elif isinstance(payload, GatewayJoined):
            # One that was given up is back: it gets the time that everybody gets, or we would go on giving it up.
            self._gateways.forget((payload.gateway, event.incarnation))
        self._poke.set()

    # --- leading ----------------------------------------------------------------------------------------

    async def _term(self, epoch: int, lease: int) -> Deposed:
        """Lead until deposed; why it ended."""
        async with asyncio.TaskGroup() as group:
            aside = [group.create_task(self._watch_members()), group.create_task(self._reach.assure(lease))]
            ends = [group.create_task(self._until_deposed(epoch)), group.create_task(self._until_cut_off())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            ended = [end for end in ends if end.done()]
            for task in (*aside, *ends):
                task.cancel()
            return ended[0].result()

    async def _until_deposed(self, epoch: int) -> Deposed:
        try:
            await self._lead(epoch)
        except Deposed as deposed:
            return deposed

    async def _until_cut_off(self) -> Deposed:
        """Wait until the log has been out of reach for too long, and the key is given up.

        While the lease servers don't answer either, nobody else could lead.
        """
        while True:
            await self._reach.lost()
            if await self.resign():
                return Deposed(f"it could not read the log for {self._reach.timeout_s:g} s")
            await asyncio.sleep(RESIGN_PAUSE_S)

    async def _report(self, epoch: int, deposed: Deposed) -> None:
        """Tell the log that this node no longer leads, and by whose election if that can be read soon."""
        logger.warning("%s no longer leads: %s", self._identity.name, deposed.reason)
        if not self._elected:
            return
        if deposed.refused is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUCCESSOR_TIMEOUT_S):
                    await self._follower.until(lambda state: state.epoch > epoch)
        successor = self._follower.state.epoch if self._follower.state.epoch > epoch else None
        cause = self._election if successor is not None else None
        self._tell(LeaderDeposed(self._identity.name, epoch, deposed.reason, deposed.refused, successor), cause)

    async def _lead(self, epoch: int) -> NoReturn:
        """Append our election, then decide after every change. Raises `Deposed`."""
        head = await self._elect(epoch)
        self._elected = True
        while True:
            self._poke.clear()
            self._check(epoch)
            await self._follower.reached(head.sequence)
            await self._read_on()
            plan = self._plan()
            for proposal in plan.proposals:
                try:
                    head = await self._writer.append(proposal.payload, proposal.cause, epoch=epoch, head=head)
                except WrongLastSequence as error:
                    raise Deposed(f"the log refused a decision, {error}", type_name(proposal.payload)) from error
            if not plan.proposals:
                await self._wait(plan.look_again_at, asyncio.get_running_loop().time())

    async def _read_on(self) -> None:
        """Read what the log is known to hold: who decides amid what it missed decides by what is so no longer."""
        try:
            async with asyncio.timeout(READ_ON_MAX_S):
                await self._follower.reached(self._follower.known)
        except TimeoutError:
            # Or every decision would wait again until the log is as long as it was. What comes tells what follows it.
            self._follower.forget_unread()

    async def _elect(self, epoch: int) -> Head:
        """Append the election after all decisions there are; whoever decided before can't any more."""
        decision = LeaderElected(self._identity.name, self._identity.incarnation)
        while True:
            self._check(epoch)
            try:
                await self._follower.catch_up()
                self._check(epoch)  # an election that we slept through: ours would shut out who leads
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
        """Raises `Deposed`. The log is asked first, since it also tells who leads instead."""
        if self._follower.state.epoch > epoch:
            raise Deposed(f"epoch {self._follower.state.epoch} was elected")
        if self._session.lease != self._lease:
            raise Deposed("its lease is gone")
        if self._retired:
            raise Deposed("its node is given up")

    def _plan(self) -> Plan:
        return reconcile(self._follower.state, self._evidence(), self._clock.now())

    def _evidence(self) -> Evidence:
        # Whoever decides is alive: a leader whose own lease slipped away asks for a new one, and may be deposed.
        ourselves = (self._identity.name, self._identity.incarnation)
        return Evidence(
            self._nodes.expired() - {ourselves},
            self._gateways.expired(),
            self._nodes.ended | self._gateways.ended,
            self._nodes.cut_off,
        )

    async def _wait(self, until: datetime | None, looked_s: float) -> None:
        """Sleep until something changes, or until it is time to look again; for the pause after a look in any case."""
        wait_s = self._poll_s
        if until is not None:
            wait_s = min(wait_s, max(0.0, (until - self._clock.now()).total_seconds()))
        try:
            async with asyncio.timeout(wait_s):
                await self._poke.wait()
        except TimeoutError:
            return
        pause_s = looked_s + LOOK_PAUSE_S * len(self._follower.state.replicas) - asyncio.get_running_loop().time()
        if pause_s >= LOOK_PAUSE_MIN_S:
            await asyncio.sleep(pause_s)

    async def _watch_members(self) -> None:
        """Hold the listing of lease keys against the log, every so often and whenever a key goes."""
        interval_s = min(self._poll_s, self._ttl_s / 4)
        gone = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watching: asyncio.Task[None] | None = None
            while True:
                try:
                    listing = await self._leases.list("")
                except LeasesUnavailable:
                    self._nodes.unreachable()
                    self._gateways.unreachable()
                    await asyncio.sleep(interval_s)
                    continue
                self._compare(listing)
                if watching is None or watching.done():
                    watching = group.create_task(self._note_departures(listing.revision, gone))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._next_look_s(interval_s)):
                        await gone.wait()
                        await asyncio.sleep(GATHER_S)
                gone.clear()

    async def _note_departures(self, after: int, gone: asyncio.Event) -> None:
        """Set `gone` whenever a key goes after this revision. Ends where no watch can be had any more."""
        with contextlib.suppress(LeasesUnavailable):
            async with contextlib.aclosing(self._leases.watch("", after=after)) as changes:
                async for batch in changes:
                    if any(change.value is None for change in batch):
                        gone.set()

    def _next_look_s(self, interval_s: float) -> float:
        """When to list again: soon where the time of somebody missing will be over."""
        due = [look_s for evidence in (self._nodes, self._gateways) if (look_s := evidence.next_look_s()) is not None]
        return min([interval_s, *(look_s + LATE_S for look_s in due)])

    def _compare(self, listing: Listing) -> None:
        now_s, before = asyncio.get_running_loop().time(), self._evidence()
        keys = [item.key for item in listing.items]
        state = self._follower.state
        known = ((self._nodes, "node", _nodes_alive(state)), (self._gateways, "gateway", _gateways_alive(state)))
        for evidence, role, alive in known:
            notes = (members_at(keys, role, note=note) for note in (ENDED, CUT_OFF))
            evidence.listed(members_at(keys, role), alive, now_s, *notes)
        if self._evidence() != before:
            self._poke.set()


_TAKING_PART = (MemberStatus.ALIVE, MemberStatus.STOPPING)


def _nodes_alive(state: ClusterState) -> frozenset[Member]:
    return frozenset((node.id, node.incarnation) for node in state.nodes.values() if node.status in _TAKING_PART)


def _gateways_alive(state: ClusterState) -> frozenset[Member]:
    return frozenset(
        (gateway.id, gateway.incarnation) for gateway in state.gateways.values() if gateway.status in _TAKING_PART
    )
