"""Notices that a client has gone, while something else is being awaited.

ASGI tells of a disconnect only to who asks by `receive()`; Granian's `send()` to a client that is gone merely
logs. So somebody has to stand in `receive()` all the time that a request is being worked on. A task for that
costs more than a short answer does, so it is made only once the request has lasted `WATCH_AFTER_S`: until then
a lost client wastes no more than that much work.

When the client goes, the task that entered the watch is cancelled, which unwinds whatever it was doing; the
watch takes that cancellation back at its end, as `asyncio.timeout` does.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from starlette.types import Receive

WATCH_AFTER_S: Final = 0.02


class DisconnectWatch:
    """An async context manager around the work for one request whose body has been read.

    `gone` tells whether its block was ended because the client has gone.
    """

    __slots__ = ("_owner", "_receive", "_timer", "_watcher", "gone")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False

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
        return self.gone and self._owner.uncancel() == 0 and kind is asyncio.CancelledError

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="disconnect-watch")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._owner.cancel()
