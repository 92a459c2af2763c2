"""The log in memory: the twin of JetStream for unit tests and the simulation.

One `MemoryLogServer` stands for the servers, each `client()` for one actor's connection to them. Both can fail:
the server stops and starts, a client is cut off and heals. A request or its answer that is under way when that
happens is lost, as on a wire, so that unknown outcomes occur here too and are resolved as on the real log.

Nothing here knows chance or the wall clock: time is the running loop's, latencies come from the caller.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import msgspec

from holdfast.core.errors import CorruptLog, LogFull, LogUnavailable, Misuse, WrongLastSequence
from holdfast.core.ports import LogEntry, LogStatus
from holdfast.store.entries import check_append, check_subject
from holdfast.store.memory_link import Link, Lost, Switch

MESSAGE_OVERHEAD_BYTES = 48
VERSION = "memory"

T = TypeVar("T")


class MemoryLogServer(Switch):
    """The stream itself: what has been appended, and by how much it is limited."""

    def __init__(self, *, max_bytes: int = -1, max_message_bytes: int = 1 << 20) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.max_message_bytes = max_message_bytes
        self.first_sequence = 1
        self._entries: list[LogEntry] = []
        self._sequences: dict[str, list[int]] = {}
        self._ids: dict[str, int] = {}
        self._bytes = 0

    def client(
        self,
        name: str = "log",
        *,
        append_timeout_s: float = 20.0,
        read_timeout_s: float = 10.0,
        latency: Callable[[], float] | None = None,
    ) -> MemoryLog:
        """A new connection. `latency` gives the seconds of one way; without it, messages take one turn of the loop."""
        return MemoryLog(self, Link(self, name, latency), append_timeout_s, read_timeout_s)

    @property
    def last_sequence(self) -> int:
        return self.first_sequence - 1 + len(self._entries)

    def trim(self, below: int) -> None:
        """Drop the entries with a sequence under `below`, as an operator who purges history would."""
        dropped = max(0, min(below, self.last_sequence + 1) - self.first_sequence)
        self._bytes -= sum(_size(entry) for entry in self._entries[:dropped])
        del self._entries[:dropped]
        self.first_sequence += dropped
        self.notify()

    def append(self, subject: str, data: bytes, message_id: str, expected_last: int) -> int:
        """What the server and the adapter's resolving of unknown outcomes come to, in one step."""
        sequences = self._sequences.setdefault(subject, [])
        following = bisect.bisect_right(sequences, expected_last)
        if following < len(sequences) and self._ids.get(message_id) == sequences[following]:
            return sequences[following]
        if expected_last != (sequences[-1] if sequences else 0):
            raise WrongLastSequence(subject, expected_last)
        if message_id in self._ids:
            raise Misuse(f"{subject}: message id {message_id} is used already, by sequence {self._ids[message_id]}")
        entry = LogEntry(self.last_sequence + 1, subject, data, message_id)
        if 0 <= self.max_bytes < self._bytes + _size(entry):
            raise LogFull(f"{subject}: the log is full ({self._bytes} of {self.max_bytes} bytes)")
        self._entries.append(entry)
        self._bytes += _size(entry)
        self._ids[message_id] = entry.sequence
        sequences.append(entry.sequence)
        self.notify()
        return entry.sequence

    def entry(self, sequence: int) -> LogEntry | None:
        index = sequence - self.first_sequence
        return self._entries[index] if 0 <= index < len(self._entries) else None

    def last_on(self, subject: str) -> LogEntry | None:
        sequences = self._sequences.get(subject)
        return self.entry(sequences[-1]) if sequences else None

    def status(self, url: str) -> LogStatus:
        return LogStatus(
            last_sequence=self.last_sequence,
            first_sequence=self.first_sequence,
            messages=len(self._entries),
            bytes=self._bytes,
            bytes_max=self.max_bytes,
            replicas=1,
            server_version=VERSION,
            url=url,
        )


class MemoryLog:
    """One actor's view of a `MemoryLogServer`; implements the `Log` port."""

    def __init__(self, server: MemoryLogServer, link: Link, append_timeout_s: float, read_timeout_s: float) -> None:
        self._server = server
        self._link = link
        self._append_timeout_s = append_timeout_s
        self._read_timeout_s = read_timeout_s

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

    async def append(self, subject: str, data: bytes, *, message_id: str, expected_last: int) -> int:
        check_append(subject, data, message_id, self._server.max_message_bytes)
        return await self._call(
            lambda: self._server.append(subject, data, message_id, expected_last), self._append_timeout_s
        )

    async def follow(self, after: int = 0) -> AsyncGenerator[LogEntry, None]:
        position = after
        while True:
            changed = self._server.changed
            entry = self._next(position) if self.connected else None
            if entry is None:
                self._check_open()
                await changed.wait()
                await self._link.travel()
                continue
            position = entry.sequence
            pending = self._server.last_sequence - position
            yield msgspec.structs.replace(entry, pending=pending) if pending else entry

    async def last_on(self, subject: str) -> LogEntry | None:
        check_subject(subject)
        return await self._call(lambda: self._server.last_on(subject), self._read_timeout_s)

    async def status(self) -> LogStatus:
        return await self._call(lambda: self._server.status(self._link.url), self._read_timeout_s)

    async def close(self) -> None:
        self._link.close()

    def _next(self, position: int) -> LogEntry | None:
        server = self._server
        if position + 1 < server.first_sequence:
            raise CorruptLog(
                f"the log begins at sequence {server.first_sequence}, but {position + 1} is needed: "
                "somebody removed history"
            )
        if position > server.last_sequence:
            raise CorruptLog(f"the log ends at sequence {server.last_sequence}, but {position} was read before")
        return server.entry(position + 1)

    async def _call(self, effect: Callable[[], T], timeout_s: float) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._check_open()
                    await self._link.wait_connected()
                    try:
                        return await self._link.exchange(effect)
                    except Lost:
                        continue
        except TimeoutError as error:
            raise LogUnavailable(f"{self._link.url}: no answer within {timeout_s:g} s") from error

    def _check_open(self) -> None:
        if self._link.closed:
            raise LogUnavailable(f"{self._link.url}: this connection has been closed")


def _size(entry: LogEntry) -> int:
    return len(entry.data) + len(entry.subject) + len(entry.message_id) + MESSAGE_OVERHEAD_BYTES
