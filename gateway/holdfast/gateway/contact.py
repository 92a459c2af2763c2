"""A gateway's contact with one replica: the connection, who is at its other end, and whether each hears the other.

It says only what is known. What follows for the streams there is the link's to decide.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from holdfast.actors.wire import Connection
from holdfast.core.errors import PeerViolation
from holdfast.core.frames import PROTOCOL_VERSION, Fence, Frame, Heartbeat, Hello, Ping, Stop, Welcome
from holdfast.core.liveness import Liveness, Suspicion
from holdfast.gateway.alarm import Alarm
from holdfast.gateway.fences import Fences
from holdfast.gateway.link_settings import LinkSettings

PING_MIN_S = 0.05
"""A replica is pinged as often as it sends heartbeats, but no more often than this (seconds)."""

LOOK_MIN_S = 0.01
"""It is looked at with each ping, and when a suspicion is due; so long is between two looks at least, and so much later
is a look that nothing may be early for (seconds)."""

STOOD_STILL_S = 0.2
"""A look that comes this late means that this process stood still, not the replica (seconds)."""

STALL_MARGIN_S = 1.0
"""A replica looks after its own engine; what it does not see within its limit the gateway does, so much later."""

REDIAL_FIRST_S = 0.05
REDIAL_MAX_S = 1.0
"""Between tries to reach a replica that the log calls running: doubling, times 0.5 to 1.5."""

logger = logging.getLogger(__name__)


class Contact:
    """The connection to a replica, made anew by `reach` each time that it was lost.

    `engine_stall_timeout_s` is the replica's own limit for its engine (seconds). `on_body(connection, body)` gets what
    comes, `on_cut()` is called when the connection is dropped, whoever dropped it.
    """

    def __init__(
        self,
        replica: str,
        address: str,
        settings: LinkSettings,
        engine_stall_timeout_s: float,
        rng: random.Random,
        on_body: Callable[[Connection, bytes], None],
        on_cut: Callable[[], None],
    ) -> None:
        self.connection: Connection | None = None
        self.welcomed = False
        self.lost = True
        self.fences = Fences()
        self._replica = replica
        self._address = address
        self._settings = settings
        self._stall_s = engine_stall_timeout_s + STALL_MARGIN_S
        self._rng = rng
        self._on_body = on_body
        self._on_cut = on_cut
        self._alarm = Alarm()
        self._liveness = self._fresh_liveness(0.0)
        self._ping_s = 0.0

    @property
    def suspicion(self) -> Suspicion | None:
        """Why the replica is suspected, if it is, by its heartbeats and what was looked at."""
        return self._liveness.suspicion

    @property
    def step(self) -> int:
        """The last step of its engine that it told of."""
        return self._liveness.step

    # --- the connection ---------------------------------------------------------------------------------

    async def reach(self, wanted: Callable[[], bool]) -> bool:
        """Dial, and dial again, until the replica welcomes us, for as long as that is wanted; whether it does."""
        redial_s = REDIAL_FIRST_S
        while wanted():
            try:
                await self._dial()
            except (OSError, TimeoutError, PeerViolation) as error:
                logger.info("replica %s at %s is not reached: %s", self._replica, self._address, error)
                await asyncio.sleep(redial_s * self._rng.uniform(0.5, 1.5))
                redial_s = min(redial_s * 2, REDIAL_MAX_S)
            else:
                return True
        return False

    async def _dial(self) -> None:
        """Connect, and wait for a welcome. Raises `OSError`, `TimeoutError`, `PeerViolation`."""
        host, port = self._address.rsplit(":", 1)
        host = host.strip("[]")
        loop = asyncio.get_running_loop()
        self.lost = self.welcomed = False
        async with asyncio.timeout(self._settings.dial_timeout_s):
            _transport, connection = await loop.create_connection(
                lambda: Connection(self._on_body, self._on_connection_lost), host, int(port)
            )
            self.connection = connection
            connection.send(Hello(PROTOCOL_VERSION, self._settings.cluster, self._settings.gateway, self._replica))
            try:
                while not (self.welcomed or self.lost):
                    await self._alarm.wait()
            except BaseException:
                self.cut()
                raise
        if not self.welcomed:
            raise PeerViolation("it closed the connection instead of a welcome")
        self._ping_s = loop.time()
        self._liveness = self._fresh_liveness(self._ping_s)

    def welcome(self, connection: Connection, frame: Welcome) -> None:
        """The replica answers; what it could not be told before it is told now. Raises `PeerViolation`."""
        if frame.replica != self._replica:
            raise PeerViolation(f"{frame.replica} answers where {self._replica} should")
        connection.introduced()
        self.fence([], [])
        self.welcomed = True
        self.rouse()

    def cut(self) -> None:
        """Drop the connection, if there is one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self.welcomed = False
        self.lost = True
        self.rouse()
        self.fences.broke()
        self._on_cut()

    def _on_connection_lost(self, connection: Connection) -> None:
        if connection is self.connection:
            self.cut()

    # --- what is said -----------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Send a frame to a replica that has welcomed us."""
        assert self.connection is not None
        self.connection.send(frame)

    def stop(self, attempt: int, name: str, ordinal: int) -> None:
        """Tell it to stop an attempt, if it is there; again over the next connection, if that may have been lost."""
        if self.connection is not None:
            self.connection.send(Stop(attempt))
            if name:
                self.fences.stopped((name, ordinal), self._liveness.pinged)

    def fence(self, attempts: list[int], streams: list[tuple[str, int]]) -> None:
        """Tell the replica what it has lost, as in `Fence`, with what it could not be told before."""
        streams = [*self.fences.take(), *streams]
        if self.connection is not None and (attempts or streams):
            self.connection.send(Fence(attempts, streams))

    # --- whether it is there ----------------------------------------------------------------------------

    def rouse(self) -> None:
        """End the wait: something else is due now."""
        self._alarm.rouse()

    async def wait(self, until_s: float) -> float | None:
        """Wait until a ping or a suspicion is due, or until `until_s` (time of the loop), and ping in time.

        The time of the loop then; None where nothing can be said of the replica now, since the connection is lost, or
        this process stood still.
        """
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        due_s = min(self._ping_s, self._liveness.due_s() + LOOK_MIN_S, until_s)
        due_s = max(due_s, looked_s + LOOK_MIN_S)
        await self._alarm.wait(due_s - looked_s)
        if self._doubtful(loop.time()):
            # Who was held up, if only for a moment, reads first what has come meanwhile.
            await asyncio.sleep(0)
        now_s = loop.time()
        if self.connection is None:
            return None
        if now_s >= self._ping_s:
            self.connection.send(Ping(self._liveness.ping()))
            self._ping_s = now_s + max(PING_MIN_S, self._settings.heartbeat_interval_s)
        if now_s - due_s > STOOD_STILL_S:
            # It was us: what the replica sent meanwhile has still to be read.
            self._liveness.stood_still(now_s)
            return None
        return now_s

    def heard(self, connection: Connection, beat: Heartbeat) -> None:
        """A heartbeat came."""
        self._liveness.beat(beat.heard, beat.load, connection.last_received_s)
        self.fences.heard(beat.heard)

    def look(self, now_s: float) -> Suspicion | None:
        """Why the replica is suspected, if it is from now on."""
        return self._liveness.look(now_s)

    def unheard_s(self, now_s: float) -> float:
        """For how long nothing came, or nothing that shows that it hears us (seconds)."""
        assert self.connection is not None
        self._liveness.heard(self.connection.last_received_s)
        return max(now_s - self.connection.last_received_s, self._liveness.unheard_s(now_s))

    def _doubtful(self, now_s: float) -> bool:
        """Whether there is reason to suspect the replica, or to leave it, by what has been read until now."""
        if self.connection is None:
            return False
        return self.unheard_s(now_s) > self._settings.heartbeat_timeout_s or self._liveness.doubt(now_s) is not None

    def _fresh_liveness(self, now_s: float) -> Liveness:
        settings = self._settings
        return Liveness(settings.heartbeat_interval_s, settings.suspicion_phi, self._stall_s, now_s)
