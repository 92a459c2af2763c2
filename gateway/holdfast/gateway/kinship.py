"""Requests that belong together at several gateways: who has the parent, and who has to hear of its end.

A child whose parent is not here asks the other gateways for it before it begins. The one that has the parent tells how
long that may still take, and notes that there are children elsewhere; one that remembers its cancellation says so,
and the child is refused. If the parent is cancelled later, its gateway tells those that have children of it.
Where nobody answers in time the child begins: it is an error of ours, not of its client's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final
from urllib.parse import quote

import msgspec

from holdfast.gateway.peers import Peers
from holdfast.gateway.requests import KILL, STOP, Mode, OpenRequest, Requests, parent_cancelled

TELLERS: Final = 8
"""So many cancellations are told at once."""

TOLD_MAX: Final = 10_000
"""So many wait to be told; of more, the oldest are left out: a child's deadline is never after its parent's."""

TRIES_MAX: Final = 3
RETRY_S: Final = 0.5
"""A gateway that does not answer is told so often, with this pause (seconds)."""


logger = logging.getLogger(__name__)


class Adopted(msgspec.Struct, frozen=True):
    """A gateway has the parent, which may still take so long (seconds); or it remembers that it was `cancelled`."""

    timeout_left_s: float
    cancelled: bool


class _Telling(msgspec.Struct, frozen=True):
    """Tell gateway `name` that the request of one of these ids was cancelled, as the client that sent this key."""

    name: str
    ids: tuple[str, ...]
    mode: Mode
    whole: bool
    authorization: bytes | None


def path_of(id_: str, query: str = "") -> str:
    """A request's path, with its id quoted: dots as well, for `.` and `..` are taken out of paths on the way."""
    quoted = quote(id_, safe="").replace(".", "%2E")
    return f"/v1/requests/{quoted}{'?' + query if query else ''}"


class Kinship:
    """One gateway's requests, and those of the others that belong to them."""

    def __init__(self, requests: Requests, peers: Peers) -> None:
        self._requests = requests
        self._peers = peers
        self._waiting: deque[_Telling] = deque(maxlen=TOLD_MAX)
        self._arrived = asyncio.Event()
        requests.tell = self._tell

    async def run(self) -> None:
        """Tell others of cancellations until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(TELLERS):
                group.create_task(self._teller())

    async def adopt(self, request: OpenRequest) -> None:
        """See to it that a child's parent lives, and that it does not outlive it. Raises `RequestCancelled`."""
        if not request.parent or self._requests.find(request.owner, request.parent):
            return
        path = path_of(request.parent, "adopt=1")
        answers = await self._peers.ask_all("POST", path, request.authorization)
        now_s = asyncio.get_running_loop().time()
        told = [found for one in answers.values() if one is not None and (found := one.read(Adopted)) is not None]
        lefts_s = [one.timeout_left_s for one in told if not one.cancelled]
        if lefts_s:
            # Its client may have left it here, and taken it up again there.
            self._requests.forget(request.owner, request.parent)
            request.end_by(now_s + max(lefts_s))
        elif told:
            raise parent_cancelled(request.parent)

    def adopted(self, owner: str | None, id_: str, gateway: str) -> Adopted | None:
        """Another gateway has a child of this request; None if nothing is known of it here."""
        found = self._requests.find(owner, id_)
        if gateway in self._peers.names():  # a client may call itself anything
            for request in found:
                request.elsewhere.add(gateway)
        alive = [request for request in found if not request.cause]
        if alive:
            now_s = asyncio.get_running_loop().time()
            return Adopted(max(request.deadline_s for request in alive) - now_s, cancelled=False)
        if found or self._requests.remembered(owner, id_) is not None:
            return Adopted(0.0, cancelled=True)
        return None

    def _tell(self, request: OpenRequest, mode: Mode) -> None:
        """Other gateways have to hear of this: all, where it was cancelled by its id, for a copy may be there."""
        whole = request.cause in (STOP, KILL)
        for name in self._peers.names() if whole else sorted(request.elsewhere):
            self._waiting.append(_Telling(name, request.ids, mode, whole, request.authorization))
        self._arrived.set()

    async def _teller(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            telling = self._waiting.popleft()
            for id_ in telling.ids:
                await self._tell_of(telling, id_)

    async def _tell_of(self, telling: _Telling, id_: str) -> None:
        path = path_of(id_, f"mode={telling.mode}&told={'request' if telling.whole else 'children'}")
        for _ in range(TRIES_MAX):
            if await self._peers.ask(telling.name, "DELETE", path, telling.authorization) is not None:
                return
            await asyncio.sleep(RETRY_S)
        logger.warning("gateway %s could not be told that the request %s was cancelled", telling.name, id_)
