"""What is wrong with one member of a simulated etcd, until it is healed; it outlives the member's processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from holdfast.simulations.etcd.state import UNAVAILABLE

if TYPE_CHECKING:
    from holdfast.simulations.etcd.member import Call

DROPPED: Final = "requests are dropped"
UNANSWERED: Final = "answers are lost"
REPEATED: Final = "requests are taken twice"
TIMED_OUT: Final = "requests are answered with a timeout"
"""Kinds of trouble with requests. A timeout may have had its effect, and is answered at the usual time."""

TIMEOUT = (UNAVAILABLE, "etcdserver: request timed out")

REPEATED_MAX_S = 3.0
"""The second of two comes up to so much later, in seconds."""


class Trouble:
    """`now`: whether requests are in trouble. `holds_expiry`, `holds_watches`: how many faults do that.

    Counted are the requests that came (`asked`), those that each kind of trouble befell (`befell`), and how often a
    lease that had ended and changes that a watch waited for were held back (`kept_leases`, `kept_changes`).
    """

    def __init__(self, rng: Random) -> None:
        self.now: list[tuple[str, float, float]] = []
        self.holds_expiry = 0
        self.holds_watches = 0
        self.asked = 0
        self.befell: Counter[str] = Counter()
        self.kept_leases = 0
        self.kept_changes = 0
        self._rng = rng

    def begin(self, kind: str, part: float, over_s: float = math.inf) -> Callable[[], None]:
        """Let this happen to a part (0 to 1) of the requests; gives what ends it. None comes again after `over_s`."""
        spell = (kind, part, over_s)
        self.now.append(spell)
        return lambda: self.now.remove(spell)

    def lets_in(self, call: Call, now_s: float, later: Callable[[float], None]) -> bool:
        """Whether a request that comes now gets to its member. `later(delay_s)` has it come once more."""
        for kind, part, over_s in self.now:
            if self._rng.random() >= part:
                continue
            self.befell[kind] += 1
            if kind == DROPPED:
                return False
            if kind == UNANSWERED:
                call.mute = True
            elif kind == REPEATED:
                later(max(0.0, min(REPEATED_MAX_S, over_s - now_s)) * self._rng.random())
            elif self._rng.random() < 0.5:
                call.instead = TIMEOUT
            else:
                call.fail(*TIMEOUT)
                return False
        return True
