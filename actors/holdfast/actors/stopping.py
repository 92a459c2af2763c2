"""How a replica's process is told to stop, and what it does until it ends.

Its node tells it by an order on standard input, anybody else by SIGTERM or SIGINT; a second signal ends it at once.
From the first word on it takes nothing new. In mode `finish` its streams may end here until the deadline; then, or at
once in mode `migrate`, it asks its gateways to take them elsewhere, which they do one after the other while they go
on here. What is still here when the time for that is over migrates as if the replica had died.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Protocol

from holdfast.actors.specification import StopOrder

LEAVE_S = 1.0
"""How long gateways have to take streams elsewhere once the deadline is over, in seconds."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Streams(Protocol):
    """The streams of a replica, on its way out."""

    async def drain(self) -> None:
        """Take nothing new, and wait until all streams ended or went elsewhere."""
        ...

    def dismiss(self) -> None:
        """Ask the gateways to take the streams elsewhere."""
        ...


class Stopping:
    """Whether a replica is to stop, and how. `order` is what it does when a signal tells it to."""

    def __init__(self, order: StopOrder) -> None:
        self.order = order
        self.told = asyncio.Event()
        self._changed = asyncio.Event()
        self._told_s = 0.0

    def tell(self, order: StopOrder | None = None) -> None:
        """Stop, in this way. Another order changes the way, but begins no new time."""
        if not self.told.is_set():
            self._told_s = asyncio.get_running_loop().time()
        self.order = order or self.order
        self.told.set()
        self._changed.set()

    def on_signals(self, first: Callable[[], object], again: Callable[[int], object]) -> None:
        """Stop at SIGTERM or SIGINT: `first()` is called then, and `again(exit code)` at any that follows."""
        loop = asyncio.get_running_loop()
        signalled = False

        def on_signal(number: int) -> None:
            nonlocal signalled
            if signalled:
                again(128 + number)
            signalled = True
            if not self.told.is_set():
                first()
            self.tell()

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal, number)

    async def see_off(self, streams: Streams) -> None:
        """Wait until the streams are gone, in the way that was ordered, or until the time for that is over."""
        draining = asyncio.create_task(streams.drain())
        try:
            while not draining.done() and (left_s := self._left_s()) > 0:
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                if self._dismissed_in_s() <= 0:
                    streams.dismiss()
                else:
                    left_s = self._dismissed_in_s()
                await asyncio.wait({draining, changed}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            draining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await draining

    def _passed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._told_s

    def _dismissed_in_s(self) -> float:
        return 0.0 if self.order.mode == "migrate" else self.order.deadline_s - self._passed_s()

    def _left_s(self) -> float:
        return self.order.deadline_s + LEAVE_S - self._passed_s()
