"""A node's canary: asks a replica that has made no token for a while for one, over the wire, as a gateway would.

A process that runs, a socket that accepts and a health check that passes say little: the canary wants a token. It is
nobody's request. It goes to an engine that has nothing to do, so it takes nobody's place. One that has work is not
asked: it is sick if it steps with that for a whole wait and timeout, and nothing comes of it. A step that hangs is the
replica's own business. A refusal for want of room, or because the replica is about to end, is an answer too.

Who stands still himself (a machine that is stopped and goes on) must not blame the other: time in which this process
did not run is taken out of the replica's (`Deadline`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from holdfast.actors.health import canary_request
from holdfast.actors.wire import Connection
from holdfast.core.barren import NO_TOKEN
from holdfast.core.errors import PeerViolation
from holdfast.core.frames import (
    PROTOCOL_VERSION,
    Admitted,
    Hello,
    Ping,
    Pulse,
    Refused,
    Start,
    Step,
    Stop,
    Welcome,
    decode_from_replica,
)

SILENT: Final = "silent"
"""A kind of `ReplicaUnhealthy`."""

LOOK_S = 0.5
"""While it waits for the replica, the canary looks this often whether it stood still itself, and pings (seconds)."""

STOOD_STILL_S = 0.2
"""A look that comes this late means that this process stood still (seconds)."""

REDIAL_S = 0.2
"""Between tries to reach a replica that can't be reached (seconds)."""

BARREN_STEPS = 32
"""So many steps an engine that has work makes for nobody before it is called sick: slow ones take their time."""


class CanarySettings(NamedTuple):
    """When the canary asks, and with what. Times in seconds."""

    wait_s: float
    timeout_s: float
    prompt: str


class Verdict(NamedTuple):
    """What came of a try: a kind of `ReplicaUnhealthy` and why, both empty where the replica made a token."""

    kind: str = ""
    message: str = ""


class Deadline:
    """How long the other end may take, of the time in which this process runs."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._until_s = self._loop.time() + seconds

    @property
    def over(self) -> bool:
        """Whether it is over."""
        return self._loop.time() >= self._until_s

    async def wait(self, news: asyncio.Event, at_most_s: float) -> bool:
        """Wait for news, for so long at most, or until it is over; whether any came."""
        began_s = self._loop.time()
        wait_s = min(at_most_s, self._until_s - began_s)
        news.clear()
        try:
            async with asyncio.timeout(wait_s):
                await news.wait()
        except TimeoutError:
            # What the other end sent while we were held up is read first.
            await asyncio.sleep(0)
        late_s = self._loop.time() - began_s - wait_s
        if late_s > STOOD_STILL_S:
            self._until_s += late_s
        return news.is_set()


class Canary:
    """One replica's. `settings()` are asked for before each try, None for a canary that is off."""

    def __init__(
        self,
        cluster: str,
        node: str,
        replica: str,
        address: str,
        settings: Callable[[], CanarySettings | None],
        tell: Callable[[Verdict], None],
    ) -> None:
        self._hello = Hello(PROTOCOL_VERSION, cluster, f"node:{node}", replica, True)
        self._address = address
        self._settings = settings
        self._tell = tell
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)
        self._connection: Connection | None = None
        self._welcomed = False
        self._pulse: Pulse | None = None
        self._waited_s = 0.0
        self._attempt = 0
        self._admitted = self._answered = False
        self._refusal: Refused | None = None

    async def run(self) -> NoReturn:
        """Try whenever it is time, until cancelled."""
        loop = asyncio.get_running_loop()
        token_s = loop.time()
        try:
            while True:
                settings = self._settings()
                wait_s = LOOK_S if settings is None else settings.wait_s
                await asyncio.sleep(max(LOOK_S, token_s + wait_s - loop.time()))
                if settings is None:
                    self._tell(Verdict())
                    continue
                self._waited_s = 0.0
                verdict = await self._try(settings)
                token_s = loop.time() - self._waited_s
                if verdict is not None:
                    self._tell(verdict)
        finally:
            self._leave()

    async def _try(self, settings: CanarySettings) -> Verdict | None:
        """Ask how it is, and for a token if it has not made one lately.

        None where that shows nothing new: it has work, or no room. That it is well only a token shows. `_waited_s` is
        how much of the wait until the next try is over.
        """
        deadline = Deadline(settings.timeout_s)
        while (pulse := await self._ask_pulse(deadline)) is not None:
            if pulse.idle_s < settings.wait_s - LOOK_S:  # one that is as good as over is not waited for again
                self._waited_s = pulse.idle_s
                return Verdict()
            if pulse.draining:
                return None
            if pulse.load.running + pulse.load.waiting > 0:
                verdict = _judge_work(pulse, settings)
                if verdict is None:
                    again_s = _barren_due_s(settings) + LOOK_S / 2 - pulse.barren.for_s
                    self._waited_s = max(0.0, settings.wait_s - again_s)
                return verdict
            connection = self._connection
            verdict = await self._ask_token(settings, deadline)
            if verdict is not None or connection is self._connection:
                return verdict
        return Verdict(SILENT, f"the replica has not answered its node for {settings.timeout_s:g} s")

    async def _ask_pulse(self, deadline: Deadline) -> Pulse | None:
        """The replica's answer to a ping that was sent since; None if it gives none in time."""
        number, connection = 0, None
        while not deadline.over:
            if not self._welcomed:
                await self._connect(deadline)
                continue
            if connection is not self._connection:
                connection, number = self._connection, self._ping()
            if self._pulse is not None and self._pulse.number >= number:
                return self._pulse
            await deadline.wait(self._news, LOOK_S)
        return None

    async def _ask_token(self, settings: CanarySettings, deadline: Deadline) -> Verdict | None:
        """Whether it makes a token in time; None if it says why not, or the connection broke."""
        connection = self._connection
        self._attempt = next(self._numbers)
        self._admitted = self._answered = False
        self._refusal = None
        self._send(Start(self._attempt, canary_request(settings.prompt, 1)))
        while not (self._answered or deadline.over or connection is not self._connection):
            if not await deadline.wait(self._news, LOOK_S):
                self._ping()
        if not self._answered:
            self._send(Stop(self._attempt))
        self._attempt = 0
        refusal, pulse = self._refusal, self._pulse
        if refusal is not None:
            told = f"the engine refuses the canary: {refusal.message}"
            return None if refusal.retry else Verdict(NO_TOKEN, told)
        if self._answered:
            return Verdict()
        if connection is not self._connection:
            return None
        if pulse is not None and pulse.load.running + pulse.load.waiting > int(self._admitted):
            self._waited_s = settings.wait_s
            return None  # others came in between, and may be before it
        return Verdict(
            NO_TOKEN, f"the engine made no token within {settings.timeout_s:g} s, though the replica answers"
        )

    # --- the connection ---------------------------------------------------------------------------------

    async def _connect(self, deadline: Deadline) -> None:
        """Dial and be welcomed; a try that fails ends after a pause."""
        host, port = self._address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        dialling = asyncio.create_task(
            loop.create_connection(lambda: Connection(self._on_body, self._on_lost), host.strip("[]"), int(port))
        )
        dialling.add_done_callback(lambda _dialled: self._news.set())
        try:
            while not (dialling.done() or deadline.over):
                await deadline.wait(self._news, LOOK_S)
            if not dialling.done() or dialling.exception() is not None:
                await deadline.wait(self._news, REDIAL_S)
                return
            _transport, self._connection = dialling.result()
        finally:
            dialling.cancel()
        self._send(self._hello)
        while self._connection is not None and not (self._welcomed or deadline.over):
            await deadline.wait(self._news, LOOK_S)
        if not self._welcomed:
            self._leave()
            await deadline.wait(self._news, REDIAL_S)

    def _ping(self) -> int:
        number = next(self._numbers)
        self._send(Ping(number))
        return number

    def _send(self, frame: Hello | Ping | Start | Stop) -> None:
        if self._connection is not None:
            self._connection.send(frame)

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        self._welcomed = False
        if connection is not None:
            connection.abort()

    def _on_lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._welcomed = False
            self._news.set()

    def _on_body(self, connection: Connection, body: bytes) -> None:
        frame = decode_from_replica(body)
        if isinstance(frame, Welcome):
            if frame.replica != self._hello.replica:
                raise PeerViolation(f"{frame.replica} answers where {self._hello.replica} should")
            self._welcomed = True
            connection.introduced()
        elif isinstance(frame, Pulse):
            self._pulse = frame
        elif isinstance(frame, Admitted):
            self._admitted |= frame.attempt == self._attempt
        elif isinstance(frame, Refused) and frame.attempt == self._attempt:
            self._refusal, self._answered = frame, True
        elif isinstance(frame, Step) and self._attempt in [*frame.attempts, *(ended for ended, _ in frame.finished)]:
            self._answered = True
        self._news.set()


def _barren_due_s(settings: CanarySettings) -> float:
    """For how long an engine may step for nobody. As with an idle one, what is as good as over is not waited for."""
    return max(settings.timeout_s, settings.wait_s + settings.timeout_s - LOOK_S)


def _judge_work(pulse: Pulse, settings: CanarySettings) -> Verdict | None:
    """An engine that has work is left to it; unless it steps and steps, and nobody gets anything.

    What holds up its steps its replica looks after, and prompts may take their time.
    """
    barren = pulse.barren
    if barren.for_s < _barren_due_s(settings) or barren.steps < BARREN_STEPS:
        return None
    return Verdict(
        NO_TOKEN, f"the engine made {barren.steps} steps in {barren.for_s:.0f} s with work, and no token for anybody"
    )
