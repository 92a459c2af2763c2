"""Tells other gateways of cancellations: to each at its own pace, so that one that hangs holds up no other.

What waits for one gateway is bounded in number and age: a telling that came late could end a request that has the same
id and is a new one. What could not be told is counted; a child's deadline is never after its parent's, so it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import msgspec

from holdfast.gateway.peers import Peers
from holdfast.gateway.requests import Mode

TELLERS_MAX: Final = 4
"""So many cancellations are told to one gateway at once."""

TOLD_MAX: Final = 10_000
"""So many wait to be told to one gateway; of more, its oldest are left out."""

TOLD_S: Final = 10.0
"""So long after a cancellation another gateway may be told of it (seconds)."""

TRIES_MAX: Final = 3
RETRY_S: Final = 0.5
"""A cancellation is told so often to a gateway that does not answer, with this pause (seconds), or as long as that one
is left alone."""

LOG_S: Final = 10.0
"""What was left out is logged this often (seconds) for each gateway, and at the end."""

FULL: Final = "full"
UNREACHED: Final = "unreached"
"""Why a cancellation was not told: too many waited, or the gateway did not answer in time."""

logger = logging.getLogger(__name__)


class Telling(msgspec.Struct, frozen=True):
    """The request of these ids was cancelled at `at_s` (the loop's time), as the client that sent this key."""

    ids: tuple[str, ...]
    mode: Mode
    whole: bool
    authorization: bytes | None
    at_s: float

    def path(self) -> str:
        """All ids go in one call."""
        query = f"mode={self.mode}&told={'request' if self.whole else 'children'}"
        also = "".join(f"&also={quote(id_, safe='')}" for id_ in self.ids[1:])
        return path_of(self.ids[0], query + also)


def path_of(id_: str, query: str = "") -> str:
    """A request's path, with its id quoted: dots as well, for `.` and `..` are taken out of paths on the way."""
    quoted = quote(id_, safe="").replace(".", "%2E")
    return f"/v1/requests/{quoted}{'?' + query if query else ''}"


class _Line:
    """What waits to be told to one gateway, how many tell it, and how much was left out since that was logged."""

    __slots__ = ("logs_s", "lost", "tellers", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Telling] = deque()
        self.tellers = 0
        self.lost = 0
        self.logs_s = 0.0


class Tellings:
    """All that waits to be told. `untold` counts what was left out, by why: `full` or `unreached`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._lines: dict[str, _Line] = {}
        self._arrived = asyncio.Event()
        self.untold: Counter[tuple[str]] = Counter()

    def add(self, names: Iterable[str], telling: Telling) -> None:
        """Have these gateways told."""
        for name in names:
            line = self._lines.setdefault(name, _Line())
            if len(line.waiting) >= TOLD_MAX:
                line.waiting.popleft()
                self._left_out(name, line, FULL)
            line.waiting.append(telling)
        self._arrived.set()

    async def run(self) -> None:
        """Tell until cancelled. A gateway has tellers while there is something to tell it."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                for name, line in self._lines.items():
                    for _ in range(min(len(line.waiting), TELLERS_MAX - line.tellers)):
                        line.tellers += 1
                        group.create_task(self._teller(name, line))

    async def _teller(self, name: str, line: _Line) -> None:
        while line.waiting:
            await self._tell(name, line, line.waiting.popleft())
        line.tellers -= 1
        if not line.tellers:
            del self._lines[name]
            _log(name, line)

    async def _tell(self, name: str, line: _Line, telling: Telling) -> None:
        """Up to `TRIES_MAX` times, while the gateway is there. One that is gone has taken its requests with it."""
        for tries in range(TRIES_MAX):
            if tries:
                await asyncio.sleep(RETRY_S)
            if not await self._is_in_time(name, telling):
                break
            asked = self._peers.ask(name, "DELETE", telling.path(), telling.authorization, unless_silent=True)
            if await asked is not None:
                return
        if name in self._peers.names():
            self._left_out(name, line, UNREACHED)

    async def _is_in_time(self, name: str, telling: Telling) -> bool:
        """Wait until the gateway may be asked; whether it is not too late then."""
        while (now_s := _now_s()) < telling.at_s + TOLD_S and name in self._peers.names():
            silent_s = self._peers.silent_s(name)
            if not silent_s:
                return True
            await asyncio.sleep(min(silent_s, telling.at_s + TOLD_S - now_s))
        return False

    def _left_out(self, name: str, line: _Line, why: str) -> None:
        self.untold[(why,)] += 1
        line.lost += 1
        if _now_s() >= line.logs_s:
            _log(name, line)
            line.logs_s = _now_s() + LOG_S


def _log(name: str, line: _Line) -> None:
    if line.lost:
        logger.warning("gateway %s was not told of %d cancellations", name, line.lost)
        line.lost = 0


def _now_s() -> float:
    return asyncio.get_running_loop().time()
