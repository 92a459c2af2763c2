"""How fast streams are served: the time to a first token, and how long streams stay. Of a gateway, or of a replica."""

from __future__ import annotations

import msgspec

RISE, FALL = 0.02, 0.25
"""How much of a new measurement counts, where it is slower than the last ones, and where it is faster: what is wanted
is the time that an unloaded replica takes."""

STAY_SHARE = 0.1
"""How much of a new measurement of how long streams stay counts."""


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """What a replica was measured to do, for whomever. Times in seconds, 0 while nothing is known.

    `first_s` and `stay_s` are as in `Measured`; until a stream has ended, they stay for as long as the oldest has by
    now. `gateways` is how many have streams there.
    """

    first_s: float = 0.0
    stay_s: float = 0.0
    gateways: int = 0


class Measured:
    """The two times, from one measurement after another."""

    __slots__ = ("first_s", "stay_s")

    def __init__(self) -> None:
        self.first_s: float | None = None
        """From when a replica is sent a stream to its first token, on an unloaded one (seconds)."""
        self.stay_s: float | None = None
        """How long streams stay on their replicas (seconds)."""

    def first_token(self, took_s: float) -> None:
        """A stream's first token came, so long after it was sent to its replica."""
        known_s = self.first_s
        if known_s is None:
            self.first_s = took_s
        else:
            self.first_s = known_s + (took_s - known_s) * (RISE if took_s > known_s else FALL)

    def stayed(self, took_s: float) -> None:
        """A stream ended after so long on its replica."""
        self.stay_s = took_s if self.stay_s is None else self.stay_s + (took_s - self.stay_s) * STAY_SHARE
