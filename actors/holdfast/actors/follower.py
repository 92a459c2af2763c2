"""Follows the log and keeps the fold of it, for whoever acts on the cluster's state."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from holdfast.core.cluster import ClusterState
from holdfast.core.entries import decode_record
from holdfast.core.errors import CorruptLog, UnknownEventVersion, WorldFailure, WrongLastSequence
from holdfast.core.events import Record, type_name
from holdfast.core.ports import Log, LogEntry
from holdfast.core.state import apply

UNREADABLE = (CorruptLog, UnknownEventVersion)
"""What the log can hold that ends all reading of it."""

REPAIR = 'docs/architecture.md, under "Repairing the log", says what to do'

logger = logging.getLogger(__name__)


class Follower:
    """The state as this process knows it, and a way to wait for it to change."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._observers: list[Callable[[Record, ClusterState], None]] = []
        self.state = ClusterState()
        self.known = 0
        """The highest sequence that the log is known to hold, which may not have been read yet."""
        self.unreadable: WorldFailure | None = None
        """Why the log can't be read beyond the state, once that is so. It is not going to be read again then."""

    def observe(self, observer: Callable[[Record, ClusterState], None]) -> None:
        """Call `observer(record, state after it)` for every record from here on. It must not block."""
        self._observers.append(observer)

    async def run(self) -> None:
        """Fold the log until cancelled. Raises `CorruptLog` or `UnknownEventVersion`; the state stays good."""
        try:
            async with contextlib.aclosing(self._log.follow(self.state.sequence)) as entries:
                async for entry in entries:
                    self._take(entry)
        except UNREADABLE as error:
            told = f"the log can't be read beyond sequence {self.state.sequence}: {error}; {REPAIR}"
            self.unreadable = type(error)(told)
            self._wake()
            raise self.unreadable from error

    async def writing(self, facts: Awaitable[None]) -> None:
        """Write facts. Raises `WrongLastSequence`, unless what can't be read may be what came in between."""
        try:
            await facts
        except WrongLastSequence as error:
            if self.unreadable is None:
                raise
            logger.error("what happens here is not told to the log any more: %s", error)

    async def catch_up(self) -> None:
        """Wait until everything is folded that the log held when this was called.

        Raises `LogUnavailable`, and as `reached`.
        """
        status = await self._log.status()
        await self.reached(status.last_sequence)

    async def reached(self, sequence: int) -> None:
        """Wait until the state includes `sequence`. Raises `CorruptLog` or `UnknownEventVersion` if it never will."""
        while self.state.sequence < sequence:
            if self.unreadable is not None:
                raise self.unreadable
            await self.change()

    def forget_unread(self) -> None:
        """What the log is known to hold is what was read: it may have lost the rest, which did not come for long."""
        self.known = self.state.sequence

    async def change(self) -> None:
        """Wait for the next record."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    async def until(self, predicate: Callable[[ClusterState], bool]) -> ClusterState:
        """Wait until the state is as `predicate` says; that state."""
        while not predicate(self.state):
            await self.change()
        return self.state

    def _take(self, entry: LogEntry) -> None:
        record = decode_record(entry)
        self.known = max(self.known, entry.sequence + entry.pending)
        ignored = self.state.ignored
        self.state = apply(self.state, record)
        if self.state.ignored > ignored:
            event, name = record.event, type_name(record.event.payload)
            logger.warning(
                "sequence %d: %s of deposed leader %s (epoch %d, now %d) changes nothing",
                *(record.sequence, name, event.writer, event.epoch, self.state.epoch),
            )
        for observer in self._observers:
            observer(record, self.state)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
