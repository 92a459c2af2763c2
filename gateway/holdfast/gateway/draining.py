"""How a gateway is taken out of use, and back.

A gateway that is drained takes nothing new at once: `/health` answers 503, and new requests are told to go elsewhere.
In mode `finish` what is open may end here until the deadline; what is open then, or at once in mode `migrate`, is told
to go on at another gateway, for which the replicas keep the streams. Only our client can do that: another one's stream
is broken. So a drain by the log, after which the process stays up, waits for as long as a request may last where it has
no deadline. It says when it is drained, and is back when the drain is lifted. By a signal the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib

from holdfast.actors.follower import Follower
from holdfast.actors.writer import FactWriter
from holdfast.core.cluster import Drain
from holdfast.core.config import DrainMode
from holdfast.core.events import GatewayDrained
from holdfast.gateway.serving import Serving
from holdfast.gateway.settings import Settings

LEAVE_S = 1.0
"""How long the requests that were turned away have to take their last word, in seconds."""

HURRIED_S = 2.0
"""How long what is open may go on at most, in seconds, in a process that is told to hurry with its end."""


READ_ON_MAX_S = 1.0
"""A gateway that is told to drain waits at most this long, in seconds, to read what the log is known to hold behind
that: the drain may be lifted there."""


class GatewayDrain:
    """One gateway's drains."""

    def __init__(self, name: str, settings: Settings, serving: Serving, follower: Follower, facts: FactWriter) -> None:
        self._name = name
        self._settings = settings.gateway
        self._longest_s = settings.serving.request_timeout_s
        self._serving = serving
        self._follower = follower
        self._facts = facts

    async def run(self) -> None:
        """Do as the log says, until cancelled."""
        while True:
            drain = self.look()
            async with asyncio.TaskGroup() as group:
                obeying = group.create_task(self._obey(drain)) if drain is not None else None
                await self._follower.until(lambda _state, drain=drain: self._ordered() != drain)  # type: ignore[misc]
                if obeying is not None:
                    obeying.cancel()

    def look(self) -> Drain | None:
        """Take requests or not, as the log says; the drain that is in force."""
        drain, standing = self._ordered(), self._serving.standing
        standing.draining, standing.drained, standing.why = drain is not None, False, "it is drained"
        return drain

    async def drain(self, mode: DrainMode, deadline_s: float) -> int:
        """Take nothing new, and let go of what is open in this way; how many streams were turned away."""
        self._serving.standing.draining = True
        if mode == "finish":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._serving.idle()
        turned_away = self._serving.turn_away()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._serving.idle()
        return turned_away

    async def end(self, hurry: asyncio.Event) -> None:
        """As `drain`, as configured: the process is about to end. From `hurry` on it takes `HURRIED_S` at most."""
        self._serving.standing.why = "it is shutting down"
        mode, within_s = self._settings.drain, self._settings.drain_timeout_s
        async with asyncio.TaskGroup() as group:
            draining, hurried = group.create_task(self.drain(mode, within_s)), group.create_task(hurry.wait())
            await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
            in_time = draining.done()
            draining.cancel()
            hurried.cancel()
        if not in_time:
            await self.drain(mode, min(within_s, HURRIED_S))

    def _ordered(self) -> Drain | None:
        gateway = self._follower.state.gateways.get(self._name)
        return gateway.drain if gateway is not None else None

    async def _read_on(self) -> None:
        """Read what the log is known to hold, for a moment."""
        known = self._follower.known
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_ON_MAX_S):
                await self._follower.until(lambda state: state.sequence >= known)

    async def _obey(self, drain: Drain) -> None:
        await self._read_on()
        if self._ordered() != drain:
            return
        deadline_s = self._longest_s if drain.deadline_s is None else drain.deadline_s
        turned_away = await self.drain(drain.mode or self._settings.drain, deadline_s)
        self._serving.standing.drained = True
        self._facts.record(GatewayDrained(self._name, turned_away), drain.event)
