"""How one task waits for a while, or until it is roused: with one future and one timer, and no task of its own."""

from __future__ import annotations

import asyncio


class Alarm:
    """For one task, which looks after each wait what has changed. Rousing it while it does not wait does nothing."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, seconds: float | None = None) -> None:
        """Return after so long, or when roused; None: only when roused."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self.rouse) if seconds is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def rouse(self) -> None:
        """End the wait, if there is one."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
