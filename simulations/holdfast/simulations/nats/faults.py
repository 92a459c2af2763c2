"""What goes wrong within simulated JetStream servers, each for a window of time or once.

Every window has a generator of its own, so that one fault's draws change no other's. `happened` counts what really
befell a request or a delivery: a window in which nothing was asked has injected nothing.
"""

from __future__ import annotations

import math
from random import Random

import msgspec

ACK_LOST = "ack lost"
LATE = "append late"
TWICE = "append twice"
REFUSED = "append refused"
REFUSED_YET_LANDS = "append refused, yet landed"
FULL = "log full"
SLOW_DISK = "slow disk"
SLOW_DELIVERY = "slow delivery"
STALLED = "consumer stalled"
PULL_ENDED = "pull ended"
CONSUMER_DELETED = "consumer deleted"
SKIPPED = "delivery skipped"
MUTE_API = "api mute"
NO_RESPONDERS = "no responders"
LEADER_CHANGED = "leader changed"
UNSYNCED_LOST = "unsynced tail lost"
STALE_READ = "stale read"
ORPHAN_LANDED = "append of a former leader landed"
KINDS = (
    ACK_LOST, LATE, TWICE, REFUSED, REFUSED_YET_LANDS, FULL, SLOW_DISK, SLOW_DELIVERY, STALLED, PULL_ENDED,
    CONSUMER_DELETED, SKIPPED, MUTE_API, NO_RESPONDERS, LEADER_CHANGED, UNSYNCED_LOST, STALE_READ, ORPHAN_LANDED,
)  # fmt: skip
"""Everything that `Troubles.happened` counts."""


class Window(msgspec.Struct, gc=False):
    """Until `until_s` (true time) it strikes `part` of what it could, and then takes up to `max_s`.

    `struck` is how often it did. What it holds up is there by `over_s` (true time).
    """

    until_s: float
    rng: Random
    part: float = 1.0
    max_s: float = 0.0
    struck: int = 0
    over_s: float = math.inf

    def held_up_s(self, now_s: float) -> float:
        """Draw for how long (seconds) it holds up what comes now."""
        return max(0.0, min(self.max_s, self.over_s - now_s)) * self.rng.random()


class Troubles:
    """The windows that are open, by kind."""

    def __init__(self) -> None:
        self.happened: dict[str, int] = {}
        self._windows: dict[str, list[Window]] = {}

    def open(self, kind: str, window: Window) -> None:
        """Let it go wrong from now on."""
        self._windows.setdefault(kind, []).append(window)

    def strikes(self, kind: str, now_s: float) -> Window | None:
        """The window that strikes just now, if one does; it is counted."""
        windows = self._windows.get(kind)
        if not windows:
            return None
        windows[:] = [window for window in windows if window.until_s > now_s]
        for window in windows:
            if window.part >= 1 or window.rng.random() < window.part:
                self.count(kind)
                window.struck += 1
                return window
        return None

    def count(self, kind: str) -> None:
        self.happened[kind] = self.happened.get(kind, 0) + 1

    def heal(self) -> None:
        """Close all windows."""
        self._windows.clear()
