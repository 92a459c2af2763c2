"""Follows the log and keeps the fold of it, for whoever acts on the cluster's state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.core.cluster import ClusterState
from holdfast.core.events import Record, decode_record
from holdfast.core.ports import Log
from holdfast.core.state import apply


class Follower:
    """The state as this process knows it, and a way to wait for it to change."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._changed: asyncio.Future[None] | None = None
        self._observers: list[Callable[[Record, ClusterState], None]] = []
        self.state = ClusterState()

    def observe(self, observer: Callable[[Record, ClusterState], None]) -> None:
        """Call `observer(record, state after it)` for every record from here on. It must not block."""
        self._observers.append(observer)

    async def run(self) -> None:
        """Fold the log until cancelled. Raises `CorruptLog` or `UnknownEventVersion`: then nothing here may act."""
        async for entry in self._log.follow(self.state.sequence):
            record = decode_record(entry)
            self.state = apply(self.state, record)
            for observer in self._observers:
                observer(record, self.state)
            self._wake()

    async def catch_up(self) -> None:
        """Wait until everything is folded that the log held when this was called. Raises `LogUnavailable`."""
        status = await self._log.status()
        await self.reached(status.last_sequence)

    async def reached(self, sequence: int) -> None:
        """Wait until the state includes `sequence`."""
        while self.state.sequence < sequence:
            await self.change()

    async def change(self) -> None:
        """Wait for the next record."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    async def until(self, predicate: Callable[[ClusterState], bool]) -> ClusterState:
        """Wait until the state is as `predicate` says; that state."""
        while not predicate(self.state):
            await self.change()
        return self.state

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
