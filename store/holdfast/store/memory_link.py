"""Servers in memory that stop and start, and connections to them that are cut and heal.

A message under way when its connection is cut, or its server stops, is lost: a request before it took effect, or
the answer after it did. The sender can't tell which, exactly as on a wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Lost(Exception):
    """The request or its answer was lost; whether it took effect is unknown."""


class Switch:
    """A server that can be stopped and started. `changed` is set, and replaced, whenever anything changes on it."""

    def __init__(self) -> None:
        self.running = True
        self.changed = asyncio.Event()
        self.stops = 0
        self.down_since: float | None = None

    def stop(self) -> None:
        """Crash. What was answered is kept, what is under way is lost."""
        if self.running:
            self.running = False
            self.stops += 1
            self.down_since = asyncio.get_running_loop().time()
            self.notify()

    def start(self) -> None:
        self.running = True
        self.down_since = None
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Link:
    """One client's connection to a server."""

    def __init__(self, server: Switch, name: str, latency: Callable[[], float] | None = None) -> None:
        self.url = f"memory://{name}"
        self.closed = False
        self._server = server
        self._latency = latency
        self._cuts = 0
        self._cut_since: float | None = None

    @property
    def connected(self) -> bool:
        return self._server.running and self._cut_since is None and not self.closed

    @property
    def down_since(self) -> float | None:
        """Loop time since when the server can't be reached; None while it can."""
        since = [time for time in (self._cut_since, self._server.down_since) if time is not None]
        return min(since, default=None)

    def cut(self) -> None:
        """Cut this client off; the server goes on for others."""
        if self._cut_since is None:
            self._cuts += 1
            self._cut_since = asyncio.get_running_loop().time()
            self._server.notify()

    def heal(self) -> None:
        self._cut_since = None
        self._server.notify()

    def close(self) -> None:
        self.closed = True
        self._server.notify()

    async def wait_connected(self) -> None:
        """Returns once the server can be reached, or the link is closed."""
        while not self.connected and not self.closed:
            await self._server.changed.wait()

    async def travel(self) -> None:
        await asyncio.sleep(self._latency() if self._latency else 0)

    async def exchange(self, effect: Callable[[], T]) -> T:
        """Send a request, let it take effect, and bring back its result or exception. Raises `Lost`."""
        before = (self._cuts, self._server.stops)
        await self.travel()
        self._check(before)
        try:
            return effect()
        finally:
            await self.travel()
            self._check(before)

    def _check(self, before: tuple[int, int]) -> None:
        if not self.connected or before != (self._cuts, self._server.stops):
            raise Lost
