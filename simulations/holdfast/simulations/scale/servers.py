"""The log and the leases for thousands of members: the in-memory twins behind a network, told in batches.

A simulated JetStream and etcd that behave as the real ones do, in every fault, cost too much for a thousand followers
of each. These never fail. The log commits one entry after the other, as a server does that syncs each to disk, and
tells its followers every few milliseconds what is new; all of them get the same entry objects.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from holdfast.core.ports import KeyChange, KeyValue, Lease, LeaseInfo, LeasesStatus, Listing, LogEntry, LogStatus
from holdfast.simulations.world.process import SimProcess
from holdfast.simulations.world.world import World
from holdfast.store.memory import MemoryLogServer
from holdfast.store.memory_leases import MemoryLeasesServer

T = TypeVar("T")

WAY_S = 0.0005
"""One way between a member and a server (seconds)."""

COMMIT_S = 0.0003
"""The log writes and syncs one entry in so long (seconds): a nats-server with `sync_interval: always` took at most
3,400 appends a second here."""

TELL_S = 0.005
"""Followers hear so late of what is new (seconds)."""


class ScaleLogServer:
    """The log. `appended_s` has the virtual time of every entry."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._store = MemoryLogServer()
        self._free_s = 0.0
        self._telling = False
        self._waiting: list[asyncio.Future[None]] = []
        self.told = 0
        self.appended_s: list[float] = []
        self.bytes = 0

    def client(self, process: SimProcess) -> ScaleLog:
        """A member's way to it."""
        return ScaleLog(self, process)

    def entry(self, sequence: int) -> LogEntry | None:
        """An entry that followers have been told of."""
        return self._store.entry(sequence) if sequence <= self.told else None

    def entries(self) -> list[LogEntry]:
        """All of them."""
        found = map(self._store.entry, range(1, self._store.last_sequence + 1))
        return [entry for entry in found if entry is not None]

    def wait(self, process: SimProcess) -> asyncio.Future[None]:
        """Done when there is news."""
        future: asyncio.Future[None] = process.loop.create_future()
        self._waiting.append(future)
        return future

    def commits_at(self) -> float:
        """When an entry that comes now will be on disk."""
        self._free_s = max(self._free_s, self._world.now_s) + COMMIT_S
        return self._free_s

    def append(self, subject: str, data: bytes, message_id: str, expected_last: int) -> int:
        """As `Log.append`, at once."""
        sequence = self._store.append(subject, data, message_id, expected_last)
        if sequence > len(self.appended_s):
            self.appended_s.append(self._world.now_s)
            self.bytes += len(data)
        if not self._telling:
            self._telling = True
            self._world.scheduler.call_later(TELL_S, self._tell)
        return sequence

    def last_on(self, subject: str) -> LogEntry | None:
        """As `Log.last_on`."""
        return self._store.last_on(subject)

    def status(self) -> LogStatus:
        """As `Log.status`."""
        return self._store.status("scale://log")

    def _tell(self) -> None:
        self._telling = False
        self.told = self._store.last_sequence
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class _Asking:
    """A member's requests to a server, each of which takes its way there and back."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._scheduler = process.world.scheduler
        self.connected = True
        self.down_since: float | None = None

    async def _ask(self, serve: Callable[[], T], at_s: float, server: SimProcess | None = None) -> T:
        """Let `serve` happen at a true time, in the server's process if it has one; what it gave or raised."""
        answer: asyncio.Future[T] = self._process.loop.create_future()
        if server is None:
            self._scheduler.call_at(at_s, self._serve, serve, answer)
        else:
            self._scheduler.call_at(at_s, server.call, self._serve, serve, answer)
        return await answer

    def _serve(self, serve: Callable[[], T], answer: asyncio.Future[T]) -> None:
        try:
            result = serve()
        except Exception as error:
            self._scheduler.call_later(WAY_S, self._process.call, _settle, answer.set_exception, answer, error)
        else:
            self._scheduler.call_later(WAY_S, self._process.call, _settle, answer.set_result, answer, result)


def _settle(settle: Callable[[Any], object], answer: asyncio.Future[Any], what: object) -> None:
    if not answer.done():
        settle(what)


class ScaleLog(_Asking):
    """As `WatchedLog`."""

    def __init__(self, server: ScaleLogServer, process: SimProcess) -> None:
        super().__init__(process)
        self._server = server

    async def append(self, subject: str, data: bytes, *, message_id: str, expected_last: int) -> int:
        """As `Log.append`."""
        await asyncio.sleep(WAY_S)
        server = self._server
        return await self._ask(lambda: server.append(subject, data, message_id, expected_last), server.commits_at())

    async def follow(self, after: int = 0) -> AsyncGenerator[LogEntry, None]:
        """As `Log.follow`."""
        sequence = after
        while True:
            entry = self._server.entry(sequence + 1)
            if entry is None:
                await self._server.wait(self._process)
            else:
                sequence += 1
                yield entry

    async def last_on(self, subject: str) -> LogEntry | None:
        """As `Log.last_on`."""
        return await self._ask(lambda: self._server.last_on(subject), self._scheduler.now_s + WAY_S)

    async def status(self) -> LogStatus:
        """As `Log.status`."""
        return await self._ask(self._server.status, self._scheduler.now_s + WAY_S)

    async def close(self) -> None:
        """Nothing is open."""


class _Watch:
    """A member's watch: what the server has told it and it has not taken yet."""

    def __init__(self, prefix: str, position: int, process: SimProcess) -> None:
        self.prefix = prefix
        self.position = position
        self.process = process
        self.batches: deque[Sequence[KeyChange]] = deque()
        self.come = asyncio.Event()

    def take(self, batch: Sequence[KeyChange]) -> None:
        """A batch has arrived."""
        self.batches.append(batch)
        self.come.set()


class ScaleLeasesServer(MemoryLeasesServer):
    """The leases, in a process of their own. `requests` counts them by kind, `listed_bytes` what listings carried."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._watches: dict[str, dict[_Watch, None]] = {}
        self._noted = 0
        self.requests: Counter[str] = Counter()
        self.listed_bytes = 0
        self.process = world.spawn("leases", "leases", _for_ever)

    def connect(self, process: SimProcess) -> ScaleLeases:
        """A member's way to it."""
        return ScaleLeases(self, process)

    def begin(self, watch: _Watch) -> None:
        """Tell a watch what there is, and from now on what comes."""
        self._watches.setdefault(watch.prefix, {})[watch] = None
        self._tell(watch)

    def end(self, watch: _Watch) -> None:
        """Tell it no more."""
        watches = self._watches.get(watch.prefix, {})
        watches.pop(watch, None)
        if not watches:
            self._watches.pop(watch.prefix, None)

    def notify(self) -> None:
        """Something changed: tell those who watch it."""
        changed, self._noted = self._history[self._noted :], len(self._history)
        for prefix, watches in list(self._watches.items()):
            if any(past.change.key.startswith(prefix) for past in changed):
                for watch in list(watches):
                    self._tell(watch)

    def _tell(self, watch: _Watch) -> None:
        changes = self.changes(watch.prefix, watch.position)
        watch.position = self.revision
        if changes:
            self._world.scheduler.call_later(WAY_S, watch.process.call, watch.take, changes)


class ScaleLeases(_Asking):
    """As `WatchedLeases`."""

    def __init__(self, server: ScaleLeasesServer, process: SimProcess) -> None:
        super().__init__(process)
        self._server = server

    async def grant(self, ttl_s: float) -> Lease:
        """As `Leases.grant`."""
        return await self._call("grant", lambda: self._server.grant(ttl_s))

    async def keep_alive(self, lease_id: int) -> float:
        """As `Leases.keep_alive`."""
        return await self._call("keep_alive", lambda: self._server.keep_alive(lease_id))

    async def revoke(self, lease_id: int) -> None:
        """As `Leases.revoke`."""
        await self._call("revoke", lambda: self._server.revoke(lease_id))

    async def put(self, key: str, value: bytes, lease_id: int) -> int:
        """As `Leases.put`."""
        return await self._call("put", lambda: self._server.put(key, value, lease_id))

    async def create(self, key: str, value: bytes, lease_id: int) -> int:
        """As `Leases.create`."""
        return await self._call("create", lambda: self._server.create(key, value, lease_id, again=False))

    async def delete(self, key: str, *, create_revision: int) -> bool:
        """As `Leases.delete`."""
        return await self._call("delete", lambda: self._server.delete(key, create_revision, again=False))

    async def list(self, prefix: str) -> Listing:
        """As `Leases.list`."""
        listing = await self._call("list", lambda: self._server.list(prefix))
        self._server.listed_bytes += sum(map(_size, listing.items))
        return listing

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
        """As `Leases.watch`."""
        watch = _Watch(prefix, after, self._process)
        await self._call("watch", lambda: self._server.begin(watch))
        try:
            while True:
                while watch.batches:
                    yield watch.batches.popleft()
                watch.come.clear()
                await watch.come.wait()
        finally:
            self._server.end(watch)

    async def inspect(self, lease_id: int) -> LeaseInfo | None:
        """As `Leases.inspect`."""
        return await self._call("inspect", lambda: self._server.inspect(lease_id))

    async def inspect_all(self) -> Sequence[LeaseInfo]:
        """As `Leases.inspect_all`."""
        return await self._call("inspect", self._server.inspect_all)

    async def status(self) -> LeasesStatus:
        """As `Leases.status`."""
        return await self._call("status", lambda: LeasesStatus("scale://leases", "memory", self._server.revision))

    async def close(self) -> None:
        """Nothing is open."""

    async def _call(self, kind: str, serve: Callable[[], T]) -> T:
        self._server.requests[kind] += 1
        return await self._ask(serve, self._scheduler.now_s + WAY_S, self._server.process)


def _size(item: KeyValue) -> int:
    return len(item.key) + len(item.value)


async def _for_ever(_process: SimProcess) -> None:
    await asyncio.Event().wait()
