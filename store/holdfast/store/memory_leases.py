"""The leases in memory: the twin of etcd for unit tests and the simulation.

A lease expires by a timer of the running loop, so virtual time works. As on etcd: granted TTLs are whole seconds
and at least two; a server that comes back gives every lease its full TTL; all keys of a lease go in one revision.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.core.errors import KeyTaken, LeaseGone, LeasesUnavailable
from holdfast.core.ports import KeyChange, KeyValue, Lease, LeaseInfo, LeasesStatus, Listing
from holdfast.store.changes import Told
from holdfast.store.memory_link import Link, Lost, Switch

TTL_MIN_S = 2.0
VERSION = "memory"
NO_LEASE = 0

T = TypeVar("T")


class Compacted(Exception):
    """The changes asked for are gone from the history."""


@dataclass(frozen=True)
class _Past:
    """A change, and the key as it was before."""

    change: KeyChange
    before: KeyValue | None


@dataclass
class _Held:
    """A lease as the server keeps it. `expires_at` is loop time; `timer` is None while the server is stopped."""

    ttl_s: float
    expires_at: float
    timer: asyncio.TimerHandle | None = None
    keys: set[str] = field(default_factory=set)


class MemoryLeasesServer(Switch):
    """Keys, leases and the history of changes."""

    def __init__(self, *, ttl_min_s: float = TTL_MIN_S) -> None:
        super().__init__()
        self.revision = 1
        self._ttl_min_s = ttl_min_s
        self._items: dict[str, KeyValue] = {}
        self._leases: dict[int, _Held] = {}
        self._last_lease = 0
        self._history: list[_Past] = []
        self._compacted = 0

    def client(
        self, name: str = "leases", *, request_timeout_s: float = 5.0, latency: Callable[[], float] | None = None
    ) -> MemoryLeases:
        """A new connection. `latency` gives the seconds of one way; without it, messages take one turn of the loop."""
        return MemoryLeases(self, Link(self, name, latency), request_timeout_s)

    def stop(self) -> None:
        super().stop()
        for held in self._leases.values():
            _disarm(held)

    def start(self) -> None:
        super().start()
        for lease_id in self._leases:
            self._arm(lease_id)

    def compact(self, revision: int | None = None) -> None:
        """Forget the changes up to a revision (all, without one)."""
        self._compacted = self.revision if revision is None else min(revision, self.revision)
        self._history = [past for past in self._history if past.change.revision > self._compacted]

    def grant(self, ttl_s: float) -> Lease:
        granted_s = max(self._ttl_min_s, float(math.ceil(ttl_s)))
        self._last_lease += 1
        self._leases[self._last_lease] = _Held(granted_s, math.inf)
        self._arm(self._last_lease)
        return Lease(self._last_lease, granted_s)

    def keep_alive(self, lease_id: int) -> float:
        held = self._held(lease_id)
        self._arm(lease_id)
        return held.ttl_s

    def revoke(self, lease_id: int) -> None:
        held = self._leases.pop(lease_id, None)
        if held is None:
            return
        _disarm(held)
        if held.keys:
            self.revision += 1
        for key in sorted(held.keys):
            self._record(key, None)
        self.notify()

    def put(self, key: str, value: bytes, lease_id: int) -> int:
        keys = self._held(lease_id).keys if lease_id != NO_LEASE else None
        old = self._items.get(key)
        if old is not None and old.lease in self._leases:
            self._leases[old.lease].keys.discard(key)
        if keys is not None:
            keys.add(key)
        self.revision += 1
        created = old.create_revision if old is not None else self.revision
        self._record(key, KeyValue(key, value, created, self.revision, lease_id))
        self.notify()
        return self.revision

    def create(self, key: str, value: bytes, lease_id: int, *, again: bool) -> int:
        holder = self._items.get(key)
        if holder is None:
            return self.put(key, value, lease_id)
        if again and holder.value == value and holder.lease == lease_id:
            return holder.create_revision
        raise KeyTaken(key, holder.value)

    def delete(self, key: str, create_revision: int, *, again: bool) -> bool:
        item = self._items.get(key)
        if item is None or item.create_revision != create_revision:
            return again
        if item.lease in self._leases:
            self._leases[item.lease].keys.discard(key)
        self.revision += 1
        self._record(key, None)
        self.notify()
        return True

    def list(self, prefix: str) -> Listing:
        items = tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix))
        return Listing(self.revision, items)

    def changes(self, prefix: str, after: int) -> Sequence[KeyChange]:
        """Raises `Compacted`."""
        if after < self._compacted:
            raise Compacted
        return [past.change for past in self._since(after) if past.change.key.startswith(prefix)]

    def told_at(self, prefix: str, revision: int) -> Told:
        """What a reader of a listing at `revision` knows."""
        if revision < self._compacted:
            return Told()
        items: dict[str, KeyValue | None] = dict(self._items)
        for past in reversed(self._since(revision)):
            items[past.change.key] = past.before
        return Told(item for item in items.values() if item is not None and item.key.startswith(prefix))

    def inspect(self, lease_id: int) -> LeaseInfo | None:
        held = self._leases.get(lease_id)
        if held is None:
            return None
        remaining_s = max(0.0, min(held.ttl_s, held.expires_at - asyncio.get_running_loop().time()))
        return LeaseInfo(lease_id, held.ttl_s, remaining_s, tuple(sorted(held.keys)))

    def inspect_all(self) -> Sequence[LeaseInfo]:
        return [info for info in map(self.inspect, sorted(self._leases)) if info is not None]

    def _since(self, revision: int) -> Sequence[_Past]:
        return self._history[bisect.bisect_right(self._history, revision, key=lambda past: past.change.revision) :]

    def _record(self, key: str, after: KeyValue | None) -> None:
        before = self._items.pop(key, None)
        if after is not None:
            self._items[key] = after
        self._history.append(_Past(KeyChange(self.revision, key, after.value if after else None), before))

    def _held(self, lease_id: int) -> _Held:
        if lease_id not in self._leases:
            raise LeaseGone(f"lease {lease_id:x} has expired or was revoked")
        return self._leases[lease_id]

    def _arm(self, lease_id: int) -> None:
        held = self._leases[lease_id]
        _disarm(held)
        loop = asyncio.get_running_loop()
        held.expires_at = loop.time() + held.ttl_s
        held.timer = loop.call_at(held.expires_at, self.revoke, lease_id)


def _disarm(held: _Held) -> None:
    if held.timer is not None:
        held.timer.cancel()
        held.timer = None


class MemoryLeases:
    """One actor's view of a `MemoryLeasesServer`; implements the `Leases` port."""

    def __init__(self, server: MemoryLeasesServer, link: Link, request_timeout_s: float) -> None:
        self._server = server
        self._link = link
        self._request_timeout_s = request_timeout_s

    @property
    def link(self) -> Link:
        """The connection, to cut and to heal."""
        return self._link

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def down_since(self) -> float | None:
        return self._link.down_since

    async def grant(self, ttl_s: float) -> Lease:
        return await self._call(lambda again: self._server.grant(ttl_s))

    async def keep_alive(self, lease_id: int) -> float:
        return await self._call(lambda again: self._server.keep_alive(lease_id))

    async def revoke(self, lease_id: int) -> None:
        await self._call(lambda again: self._server.revoke(lease_id))

    async def put(self, key: str, value: bytes, lease_id: int) -> int:
        return await self._call(lambda again: self._server.put(key, value, lease_id))

    async def create(self, key: str, value: bytes, lease_id: int) -> int:
        return await self._call(lambda again: self._server.create(key, value, lease_id, again=again))

    async def delete(self, key: str, *, create_revision: int) -> bool:
        return await self._call(lambda again: self._server.delete(key, create_revision, again=again))

    async def list(self, prefix: str) -> Listing:
        return await self._call(lambda again: self._server.list(prefix))

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
        position = after
        told = await self._when_connected(lambda: self._server.told_at(prefix, after))
        while True:
            changed = self._server.changed
            changes: Sequence[KeyChange] = ()
            if self.connected:
                try:
                    changes = self._server.changes(prefix, position)
                    told.note(changes)
                except Compacted:
                    changes = told.difference(self._server.list(prefix))
                position = max(position, self._server.revision)
            if changes:
                yield changes
            else:
                self._check_open()
                await changed.wait()
                await self._link.travel()

    async def inspect(self, lease_id: int) -> LeaseInfo | None:
        return await self._call(lambda again: self._server.inspect(lease_id))

    async def inspect_all(self) -> Sequence[LeaseInfo]:
        return await self._call(lambda again: self._server.inspect_all())

    async def status(self) -> LeasesStatus:
        return await self._call(lambda again: LeasesStatus(self._link.url, VERSION, self._server.revision))

    async def close(self) -> None:
        self._link.close()

    async def _when_connected(self, read: Callable[[], T]) -> T:
        await self._link.wait_connected()
        self._check_open()
        return read()

    async def _call(self, effect: Callable[[bool], T]) -> T:
        """Run `effect` on the server; its argument tells whether an earlier try's outcome is unknown."""
        again = False
        try:
            async with asyncio.timeout(self._request_timeout_s):
                while True:
                    await self._link.wait_connected()
                    self._check_open()
                    try:
                        return await self._link.exchange(lambda: effect(again))  # noqa: B023
                    except Lost:
                        again = True
        except TimeoutError as error:
            raise LeasesUnavailable(f"{self._link.url}: no answer within {self._request_timeout_s:g} s") from error

    def _check_open(self) -> None:
        if self._link.closed:
            raise LeasesUnavailable(f"{self._link.url}: this connection has been closed")
