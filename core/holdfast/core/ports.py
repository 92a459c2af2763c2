"""What the actors need from the world, as small protocols.

Production and the in-memory twins implement the same protocols and pass one contract suite
(`tests/contract`). Actors sleep, wait and time out with plain asyncio: a simulated event loop
makes that virtual, so asyncio itself is no port.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

import msgspec


class LogEntry(msgspec.Struct, frozen=True):
    """One message of the log. `sequence` counts from 1 over all subjects without holes.

    Of one that is followed `pending` tells how many there were behind it when it was delivered, as far as is known.
    """

    sequence: int
    subject: str
    data: bytes
    message_id: str
    pending: int = 0


class LogStatus(msgspec.Struct, frozen=True):
    """How the log's stream stands. Sizes in bytes; a `bytes_max` of -1 means unlimited."""

    last_sequence: int
    first_sequence: int
    messages: int
    bytes: int
    bytes_max: int
    replicas: int
    server_version: str
    url: str


class Log(Protocol):
    """One totally ordered, durable stream of messages on several subjects."""

    async def append(self, subject: str, data: bytes, *, message_id: str, expected_last: int) -> int:
        """Append and return the sequence, once the message is on disk.

        `expected_last` is the sequence of the last message on `subject` (0: none) as the writer knows it.
        An append whose outcome is unknown is retried with the same id and resolved by reading, within the
        adapter's bound: this returns the right sequence even when the message landed on an earlier try.

        Raises `WrongLastSequence` (somebody else appended), `LogFull`, `LogUnavailable` (outcome unknown:
        call again with the same arguments, or read).
        """
        ...

    def follow(self, after: int = 0) -> AsyncGenerator[LogEntry, None]:
        """Every entry with a sequence above `after`, in order and without holes; then waits for new ones.

        Never ends: rides out disconnects and restarts, and takes up where it was. Raises `CorruptLog` if an
        entry is missing for good.
        """
        ...

    async def last_on(self, subject: str) -> LogEntry | None:
        """The last entry on a subject. Raises `LogUnavailable`."""
        ...

    async def status(self) -> LogStatus:
        """Raises `LogUnavailable`."""
        ...

    async def close(self) -> None: ...


class Lease(msgspec.Struct, frozen=True):
    """A lease as granted. `ttl_s` is what the server granted, which may be more than was asked for."""

    id: int
    ttl_s: float


class LeaseInfo(msgspec.Struct, frozen=True):
    """A lease as the server sees it now. `remaining_s` is at most `ttl_s`; `keys` hang on it."""

    id: int
    ttl_s: float
    remaining_s: float
    keys: Sequence[str]


class KeyValue(msgspec.Struct, frozen=True):
    """A key with its value. `create_revision` fences: it grows over all keys and is never used twice."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Listing(msgspec.Struct, frozen=True):
    """All keys below a prefix at one revision."""

    revision: int
    items: Sequence[KeyValue]


class KeyChange(msgspec.Struct, frozen=True):
    """A key was put (`value`) or deleted (`value` is None) at `revision`."""

    revision: int
    key: str
    value: bytes | None


class LeasesStatus(msgspec.Struct, frozen=True):
    """Which lease server answered, and its version."""

    url: str
    version: str
    revision: int


class Leases(Protocol):
    """Time-limited keys with a global revision: who is alive, who leads.

    Every call is bounded in time and raises `LeasesUnavailable` when no server answered within it.
    """

    async def grant(self, ttl_s: float) -> Lease: ...

    async def keep_alive(self, lease_id: int) -> float:
        """Extend the lease once; the remaining seconds. Raises `LeaseGone` when it expired or was revoked."""
        ...

    async def revoke(self, lease_id: int) -> None:
        """End the lease and delete its keys. A lease that is gone already is no error."""
        ...

    async def put(self, key: str, value: bytes, lease_id: int) -> int:
        """Set the key and hang it on the lease; the revision. Raises `LeaseGone`."""
        ...

    async def create(self, key: str, value: bytes, lease_id: int) -> int:
        """Set the key only if nobody has it; its create revision. Raises `KeyTaken`, `LeaseGone`."""
        ...

    async def delete(self, key: str, *, create_revision: int) -> bool:
        """Delete the key only while it is still the one created at that revision; whether it was."""
        ...

    async def list(self, prefix: str) -> Listing: ...

    def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Sequence[KeyChange], None]:
        """Changes below `prefix` after a revision, in order, in batches of one revision or more.

        Never ends: resumes at the next revision on a cut, and after a compaction yields the difference
        between a fresh listing and what it had told before.
        """
        ...

    async def inspect(self, lease_id: int) -> LeaseInfo | None:
        """The lease with its remaining time and keys; None when it is gone."""
        ...

    async def inspect_all(self) -> Sequence[LeaseInfo]: ...

    async def status(self) -> LeasesStatus: ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """Wall-clock time, for stamps on events only. Waiting is the event loop's business."""

    def now(self) -> datetime: ...


class Process(Protocol):
    """A process that a node started, seen from the node."""

    @property
    def pid(self) -> int: ...

    def messages(self) -> AsyncIterator[bytes]:
        """Lines that the process reports to its node; ends when the process closed its end or died."""
        ...

    async def wait(self) -> int:
        """The exit status: 0 and up as the process returned it, `-n` when signal n ended it."""
        ...

    def tell(self, line: bytes) -> None:
        """Write a line to its standard input. Does nothing when it has ended."""
        ...

    def kill(self) -> None:
        """End the process now (SIGKILL). Does nothing when it has ended."""
        ...


class Launcher(Protocol):
    """Starts replica processes."""

    async def launch(self, replica: str, specification: bytes) -> Process:
        """Start a process for `replica` and hand it its specification (JSON). Raises `WorldFailure`."""
        ...
