"""Keeps a lease alive and its keys in place, for as long as this process lives.

Renewal comes at half of the *remaining* time, with jitter: a renewal that was late leaves less time, and the
next one is due sooner. A lease that is gone is granted anew, with all its keys; whoever depended on the old one
(a leader) is told.

Servers may end a lease before its time: the leader of an etcd cluster that froze, and thaws when another one leads,
revokes what its own clock holds for expired (etcd issue 15247, mended in 3.5.13). So our first key is watched, and
when it goes a new lease is asked for at once: sooner than the absence counts (`LeaseEvidence`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from holdfast.actors.identity import Identity
from holdfast.core.cluster import GatewayState, MemberStatus, NodeState
from holdfast.core.errors import LeaseGone, LeasesUnavailable, Misuse
from holdfast.core.ports import Leases

JITTER = 0.2
"""Renewals are up to this part earlier than half of the remaining time."""

RETURN_SPREAD_S = 0.5
"""After an outage, members whose lease is gone wait up to this long for a new one: it is gone for all at once."""

OUTAGE_S = 0.5
"""Servers that took longer than this, in seconds, for an answer were away."""

RETRY_S = 0.3
"""Between tries while no lease server answers, times 0.5 to 1.5."""

logger = logging.getLogger(__name__)


class NameTaken(Misuse):
    """Another machine has a live member of this name."""


async def check_name_free(leases: Leases, identity: Identity, holder: NodeState | GatewayState | None) -> None:
    """Whether the name is ours to take from `holder`, who has it by the log. Raises `NameTaken`.

    On the same machine the newer incarnation takes over. From another machine it would shut the older one out, which
    its service manager starts again, which shuts us out, and so on; so a live lease there is respected.
    """
    taking_part = holder is not None and holder.status in (MemberStatus.ALIVE, MemberStatus.STOPPING)
    if holder is None or not taking_part or holder.host == identity.host:
        return
    key = f"{identity.role}s/{holder.id}/{holder.incarnation}"
    try:
        alive = any(item.key == key for item in (await leases.list(key)).items)
    except LeasesUnavailable as error:
        logger.warning("can't see whether %s of host %s still lives: %s", holder.id, holder.host, error)
        return
    if alive:
        raise NameTaken(
            f"{identity.role} {holder.id} runs on host {holder.host} already (process {holder.pid}): stop it there, or "
            f"give this one another name; if it was killed, try again when its lease has ended"
        )


class LeaseSession:
    """One lease with its keys. `lease` is its id while this process holds it, else None."""

    def __init__(self, leases: Leases, ttl_s: float, keys: dict[str, bytes], rng: random.Random) -> None:
        self._leases = leases
        self._ttl_s = ttl_s
        self._keys = keys
        self._rng = rng
        self._changed = asyncio.Event()
        self._key_gone = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._revision = 0
        self._observers: list[Callable[[], None]] = []
        self.lease: int | None = None
        self._renewed_s: float | None = None
        self._unreachable = False

    @property
    def age_s(self) -> float | None:
        """Since the lease was last granted or renewed, in seconds; None before the first one."""
        return None if self._renewed_s is None else asyncio.get_running_loop().time() - self._renewed_s

    def observe_loss(self, observer: Callable[[], None]) -> None:
        """Call `observer()` whenever the lease is found gone."""
        self._observers.append(observer)

    async def held(self) -> int:
        """Wait for a lease; its id."""
        while self.lease is None:
            self._changed.clear()
            await self._changed.wait()
        return self.lease

    @property
    def withheld(self) -> bool:
        """Whether the lease is given up until `resume`."""
        return not self._wanted.is_set()

    def withhold(self) -> None:
        """Give the lease back, or let it end if no server answers, and ask for none before `resume`."""
        self._wanted.clear()
        self._key_gone.set()

    def resume(self) -> None:
        """Take a lease again after `withhold`."""
        self._wanted.set()

    async def run(self) -> None:
        """Grant and renew until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_key())
            await self._keep()

    async def _keep(self) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            if self.withheld:
                await self.release()
                self._tell_loss()
                await self._wanted.wait()
            asked_s = now_s()
            try:
                remaining_s = await self._grant() if self.lease is None else await self._renew(self.lease)
            except LeaseGone:
                logger.warning("lease %x is gone; asking for a new one", self.lease or 0)
                self._lost()
                if self._unreachable or now_s() - asked_s > OUTAGE_S:
                    await asyncio.sleep(RETURN_SPREAD_S * self._rng.random())
            except LeasesUnavailable as error:
                if not self._unreachable:
                    self._unreachable = True
                    logger.warning("lease servers don't answer: %s", error)
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))
            else:
                self._unreachable = False
                self._renewed_s = asked_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(remaining_s / 2 * (1 - JITTER * self._rng.random())):
                        await self._key_gone.wait()

    async def _watch_key(self) -> None:
        """Note when our first key goes. The others are under the same lease."""
        key = next(iter(self._keys))
        await self.held()
        async with contextlib.aclosing(self._leases.watch(key, after=self._revision)) as changes:
            async for batch in changes:
                if batch[-1].value is None:
                    self._key_gone.set()

    async def release(self) -> None:
        """Give the lease back, in one bounded try. Without an answer it ends by itself after its TTL."""
        lease, self.lease = self.lease, None
        if lease is None:
            return
        try:
            await self._leases.revoke(lease)
        except LeasesUnavailable as error:
            logger.warning("the lease could not be given back and ends with its TTL: %s", error)

    async def _grant(self) -> float:
        self._key_gone.clear()
        lease = await self._leases.grant(self._ttl_s)
        await self._put_keys(lease.id)
        self.lease = lease.id
        self._changed.set()
        return lease.ttl_s

    async def _renew(self, lease: int) -> float:
        remaining_s = await self._leases.keep_alive(lease)
        if self._key_gone.is_set():
            self._key_gone.clear()
            await self._put_keys(lease)  # somebody took the key alone
        return remaining_s

    async def _put_keys(self, lease: int) -> None:
        for key, value in self._keys.items():
            self._revision = await self._leases.put(key, value, lease)

    def _lost(self) -> None:
        self.lease = None
        self._tell_loss()

    def _tell_loss(self) -> None:
        for observer in self._observers:
            observer()
