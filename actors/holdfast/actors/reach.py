"""Whether this node reaches the log, and what it does when it is the only one that doesn't.

A node without the log can't tell that its replicas ended, and starts none of those that are placed on it: others have
to take its place. But a log that is away for everybody must cost nobody anything. To know the one from the other, who
leads says at the lease servers each time that it has read all of the log (`LOG_KEY`). A node that can't read it for
long, and sees the leader say so again and again meanwhile, is cut off alone: it gives its lease up, and asks for none
before it reads the log again. What runs on it runs on.

Where more than half of the nodes are cut off, it is not they who are ill. So each leaves a note that it is (`CUT_OFF`),
and only the first of them give their leases up. A note also tells the leader why a lease is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import msgspec

from holdfast.actors.follower import UNREADABLE, Follower
from holdfast.actors.identity import CUT_OFF, LOG_KEY, Identity
from holdfast.actors.leasing import LeaseSession
from holdfast.core.cluster import MemberStatus
from holdfast.core.errors import LeaseGone, LeasesUnavailable, LogUnavailable
from holdfast.core.ports import Leases

RETRY_S = 0.3
"""Between tries to read the log while it is out of reach, in seconds."""

LOOKS = 4
"""A node looks so many times within its timeout whether it reaches the log, and twice as often at what others say."""

SILENCE_LOOKS = 2
"""Who leads and says nothing for so many looks may not reach the log either: what it had said before counts no more."""

STEADY_LOOKS = 2
"""The leader must have said for so many looks on end that it reaches the log: a log that was away for all comes back
to some sooner than to others, by the pauses between their tries to connect."""

JITTER = 0.2
"""Looks come up to this part sooner, so that nodes don't look in step."""

CUT_OFF_PART = 0.5
"""Of all nodes at most this part, and at least one, gives up its lease for being cut off."""

NOTE_TTL_S = 60.0
"""A note outlives its node for this long and the time between two looks, in seconds."""

logger = logging.getLogger(__name__)


async def read_on(follower: Follower) -> None:
    """Wait until all is read that is in the log now, however long it is out of reach. Raises as `Follower.reached`."""
    while True:
        try:
            return await follower.catch_up()
        except LogUnavailable as error:
            logger.debug("the log is out of reach: %s", error)
            await asyncio.sleep(RETRY_S)


class Assurances:
    """What the leader says of the log, as somebody sees it who looks now and then. Times are monotonic seconds."""

    def __init__(self, silence_max_s: float) -> None:
        self._silence_max_s = silence_max_s
        self._revision: int | None = None
        self._since_s: float | None = None
        self._last_s = 0.0

    def seen(self, revision: int, now_s: float) -> None:
        """The key was last set at `revision`, 0 if it is not there."""
        if self._since_s is not None and now_s - self._last_s > self._silence_max_s:
            self._since_s = None
        if self._revision is not None and revision > self._revision:
            self._since_s = now_s if self._since_s is None else self._since_s
            self._last_s = now_s
        self._revision = revision

    def steady_s(self) -> float:
        """For how long it has said so on end, from the first time that was seen to the last; 0 if it ceased."""
        return 0.0 if self._since_s is None else self._last_s - self._since_s


class LogReach:
    """One node's reach of the log. `timeout_s`: so long without it makes a node be cut off, and a leader resign."""

    def __init__(
        self,
        identity: Identity,
        follower: Follower,
        leases: Leases,
        session: LeaseSession,
        timeout_s: float,
        rng: random.Random,
    ) -> None:
        self._identity = identity
        self._follower = follower
        self._leases = leases
        self._session = session
        self._rng = rng
        self._note: int | None = None
        self._read = asyncio.Event()
        self._read_s = 0.0
        self.timeout_s = timeout_s
        self._look_s = timeout_s / LOOKS

    async def run(self) -> None:
        """Look until cancelled, or until the log can't be read on by anybody."""
        self._read_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            judging = group.create_task(self._judge())
            with contextlib.suppress(*UNREADABLE):
                await self._look()
            judging.cancel()
        self._session.resume()

    async def again(self) -> None:
        """Wait until all of the log has been read once more."""
        self._read.clear()
        await self._read.wait()

    async def lost(self) -> None:
        """Wait until the log has not been read for the timeout."""
        await self._unread_for(self.timeout_s)

    async def assure(self, lease: int) -> None:
        """Say that the log is reached, whenever it is, until cancelled; on the leader's lease."""
        while True:
            await self.again()
            with contextlib.suppress(LeasesUnavailable, LeaseGone):
                await self._leases.put(LOG_KEY, self._identity.lease_value(), lease)

    def _unread_s(self) -> float:
        return asyncio.get_running_loop().time() - self._read_s

    async def _unread_for(self, limit_s: float) -> None:
        while True:
            left_s = limit_s - self._unread_s()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    async def _look(self) -> None:
        while True:
            await read_on(self._follower)
            self._read_s = asyncio.get_running_loop().time()
            self._read.set()
            self._session.resume()
            await asyncio.sleep(self._look_s * (1 - JITTER * self._rng.random()))

    async def _judge(self) -> None:
        """Give the lease up once it is this node alone that can't reach the log."""
        silence_max_s = SILENCE_LOOKS * self._look_s
        while True:
            await self._unread_for(silence_max_s)
            assurances = Assurances(silence_max_s)
            while self._unread_s() >= silence_max_s:
                with contextlib.suppress(LeasesUnavailable, LeaseGone):
                    await self._weigh(assurances)
                await asyncio.sleep(self._look_s / 2)
            await self._take_back_note()

    async def _weigh(self, assurances: Assurances) -> None:
        if self._session.withheld:
            return await self._keep_note()
        keys = (await self._leases.list(LOG_KEY)).items
        assurances.seen(max((key.mod_revision for key in keys), default=0), asyncio.get_running_loop().time())
        if assurances.steady_s() < STEADY_LOOKS * self._look_s * (1 - JITTER) or self._unread_s() < self.timeout_s:
            return
        await self._keep_note()
        # The log may have come back while the lease servers were asked.
        if await self._among_few() and self._unread_s() >= self.timeout_s:
            logger.warning(
                "this node could not read the log for %.0f s, and others can: it gives up its lease", self._unread_s()
            )
            self._session.withhold()

    async def _among_few(self) -> bool:
        """Whether this node is one of the first that are cut off, and not of half of all nodes."""
        notes = sorted((await self._leases.list(f"{CUT_OFF}/")).items, key=lambda note: note.create_revision)
        nodes = self._follower.state.nodes.values()
        may = max(1, int(CUT_OFF_PART * sum(node.status is MemberStatus.ALIVE for node in nodes)))
        return any(note.key == self._note_key for note in notes[:may])

    @property
    def _note_key(self) -> str:
        return f"{CUT_OFF}/{self._identity.lease_key}"

    async def _keep_note(self) -> None:
        """See to it that the note is there. Raises `LeasesUnavailable`, `LeaseGone`."""
        if self._note is not None:
            note, self._note = self._note, None
            await self._leases.keep_alive(note)
            self._note = note
            return
        identity = self._identity
        value = {"holder": identity.name, "role": CUT_OFF, "host": identity.host, "pid": identity.pid}
        lease = await self._leases.grant(NOTE_TTL_S + self._look_s)
        await self._leases.put(self._note_key, msgspec.json.encode(value), lease.id)
        self._note = lease.id

    async def _take_back_note(self) -> None:
        note, self._note = self._note, None
        if note is not None:
            with contextlib.suppress(LeasesUnavailable):
                await self._leases.revoke(note)
