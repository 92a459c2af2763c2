"""Notices that a client has gone or takes nothing more, while something else is being awaited.

ASGI tells of a disconnect only to who asks by `receive()`; Granian's `send()` to a client that is gone merely
logs. So somebody has to stand in `receive()` all the time that a request is being worked on. A task for that
costs more than a short answer does, so it is made only once the request has lasted `WATCH_AFTER_S`: until then
a lost client wastes no more than that much work.

A client that stays but does not read leaves the handler in `send()`, where no deadline reaches it. The watch looks
now and then whether a write is still the one that it saw before: that costs a write nothing but counting.

When the client goes or is given up, the task that entered the watch is cancelled, which unwinds whatever it was
doing; the watch takes that cancellation back at its end, as `asyncio.timeout` does.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Protocol

from starlette.types import Receive

WATCH_AFTER_S: Final = 0.02

LOOKS: Final = 8
"""A write is looked at this often in its time."""


class Writer(Protocol):
    """Whoever writes to the client. `turn` grows by one when a write begins and when it ends, so it is odd within."""

    turn: int


class DisconnectWatch:
    """An async context manager around the work for one request whose body has been read.

    `gone` tells whether its block was ended because the client has gone, `slow` whether that was because one write
    took longer than `write_timeout_s` (by an eighth at most).
    """

    __slots__ = (
        "_interval_s",
        "_left",
        "_owner",
        "_receive",
        "_seen",
        "_timer",
        "_watcher",
        "_writer",
        "gone",
        "slow",
    )

    def __init__(self, receive: Receive, writer: Writer, write_timeout_s: float) -> None:
        self._receive = receive
        self._writer = writer
        self._interval_s = write_timeout_s / LOOKS
        self._seen = 0
        self._left = LOOKS
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False
        self.slow = False

    async def __aenter__(self) -> DisconnectWatch:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        watcher = self._watcher
        if watcher is None:
            return False
        if not self.gone:
            watcher.cancel()
        await asyncio.wait([watcher])
        if not watcher.cancelled():
            watcher.result()
        return (self.gone or self.slow) and self._owner.uncancel() == 0 and kind is asyncio.CancelledError

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._watcher = loop.create_task(self._watch(), name="disconnect-watch")
        self._timer = loop.call_later(self._interval_s, self._look)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.slow:
            self.gone = True
            self._owner.cancel()

    def _look(self) -> None:
        if self.gone:
            return
        turn = self._writer.turn
        if turn != self._seen or turn % 2 == 0:
            self._seen, self._left = turn, LOOKS
        else:
            self._left -= 1
        if self._left == 0:
            self.slow = True
            self._owner.cancel()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look)
