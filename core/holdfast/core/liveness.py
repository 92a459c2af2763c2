"""Whether a replica is alive, hears us, and works: what a gateway can tell from its side of the connection.

Three kinds of evidence. It sends something (heartbeats at least). Its heartbeats give back the numbers of our pings:
where they do not, what we send is lost, though all that it sends arrives. And its engine's step counter rises while
it has streams. Silence and deafness are judged by phi accrual, which learns each replica's own rhythm; an engine by
a limit that stretches with the longest steps that it has made.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum

from holdfast.core.detector import PhiAccrual
from holdfast.core.requests import EngineLoad

PAUSE_S = 0.2
ECHO_INTERVALS = 1.5
DEVIATION_MIN_S = 0.03
"""What `PhiAccrual` allows for: with heartbeats every 0.1 s a silence of about 0.5 s is suspect, and pings that have
not been given back for about 0.65 s (seconds). Pings take two ways, and wait for the next heartbeat: one that just
missed it is given back a whole interval later, so that pause is longer by `ECHO_INTERVALS`."""

TRUST_BEATS = 3
"""Heartbeats from a suspect that show progress in what it was suspected for, until it is trusted again. Pings and steps
may come more rarely than heartbeats, so one without progress proves nothing."""

STEP_GAPS = 64
STEP_FACTOR = 10
STEP_FIRST_S = 60.0
STEP_FIRST = 3
"""An engine is stuck when its counter stands still for its limit, and for `STEP_FACTOR` times the longest of the last
`STEP_GAPS` times between two counts. Its first steps may take longer: devices warm up, kernels are compiled."""


class Suspicion(StrEnum):
    """What a replica is suspected of: it sends nothing, hears nothing, or its engine makes no steps."""

    SILENT = "silent"
    DEAF = "deaf"
    STUCK = "stuck"


class Liveness:
    """What is known of one replica over one connection. Times are monotonic seconds."""

    def __init__(self, interval_s: float, phi_max: float, stall_s: float, now_s: float) -> None:
        """Heartbeats come every `interval_s`; `phi_max` is where suspicion begins; `stall_s` is an engine's limit."""
        self._voice = PhiAccrual(interval_s, PAUSE_S, DEVIATION_MIN_S, now_s)
        self._echo = PhiAccrual(interval_s, PAUSE_S + ECHO_INTERVALS * interval_s, DEVIATION_MIN_S, now_s)
        self._interval_s = interval_s
        self._phi_max = phi_max
        self._stall_s = stall_s
        self._pinged = 0
        self._heard = 0
        self._echoed_s = now_s
        self._step = 0
        self._busy = False
        self._stepped_s = now_s
        self._gaps_s: deque[float] = deque(maxlen=STEP_GAPS)
        self._good_beats = 0
        self.suspicion: Suspicion | None = None

    def ping(self) -> int:
        """The number of the next ping."""
        self._pinged += 1
        return self._pinged

    @property
    def pinged(self) -> int:
        """The number of the last ping; 0 for none."""
        return self._pinged

    def beat(self, heard: int, load: EngineLoad, now_s: float) -> None:
        """A heartbeat came. Ends a suspicion whose cause is over."""
        self._voice.beat(now_s)
        good = self.suspicion is not Suspicion.DEAF
        if heard > self._heard:
            self._heard = heard
            self._echo.beat(now_s)
            self._echoed_s = now_s
            good = True
        if self.suspicion is Suspicion.STUCK and load.running and load.step == self._step:
            # One that has dropped its work since has come to, and need not step any more.
            good = False
        self._note_step(load, now_s)
        self._good_beats += good
        if self.suspicion is not None and self._good_beats >= TRUST_BEATS:
            self.suspicion = None

    def heard(self, now_s: float) -> None:
        """Something came, at this time."""
        self._voice.heard(now_s)

    def stood_still(self, now_s: float) -> None:
        """It was us who stood still: what the replica sent meanwhile has still to be read, and to be asked for."""
        self._voice.restart(now_s)
        self._echo.restart(now_s)
        self._echoed_s = now_s
        self._stepped_s = now_s

    def look(self, now_s: float) -> Suspicion | None:
        """The suspicion, if it arises now."""
        doubt = self.doubt(now_s)
        if doubt is not None:
            self.suspicion = doubt
            self._good_beats = 0
        return doubt

    def doubt(self, now_s: float) -> Suspicion | None:
        """The suspicion that would arise if nothing more had come until now."""
        if self.suspicion is not None:
            return None
        if self._voice.phi(now_s) >= self._phi_max:
            return Suspicion.SILENT
        if self._echo.phi(now_s) >= self._phi_max:
            return Suspicion.DEAF
        if self._busy and now_s - self._stepped_s > self._step_may_take_s():
            return Suspicion.STUCK
        return None

    def due_s(self) -> float:
        """When a suspicion will arise if nothing comes until then; infinite while there is one."""
        if self.suspicion is not None:
            return math.inf
        due_s = min(self._voice.due_s(self._phi_max), self._echo.due_s(self._phi_max))
        return min(due_s, self._stepped_s + self._step_may_take_s()) if self._busy else due_s

    def unheard_s(self, now_s: float) -> float:
        """For how long nothing has come that shows that it hears us, beyond what a ping may take.

        A ping waits up to an interval for the next heartbeat, and the next ping up to another.
        """
        return max(0.0, now_s - self._echoed_s - 2 * self._interval_s)

    @property
    def step(self) -> int:
        """The engine's steps, by its last heartbeat."""
        return self._step

    def _note_step(self, load: EngineLoad, now_s: float) -> None:
        busy = load.running > 0
        if load.step != self._step or not self._busy or not busy:
            if load.step != self._step and self._busy:
                self._gaps_s.append(now_s - self._stepped_s)
            self._stepped_s = now_s
        self._step = load.step
        self._busy = busy

    def _step_may_take_s(self) -> float:
        if self._step < STEP_FIRST or not self._gaps_s:
            return STEP_FIRST_S
        return max(self._stall_s, STEP_FACTOR * max(self._gaps_s))
