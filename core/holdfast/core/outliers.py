"""Which replicas serve so much worse than their peers that they are passed over for a while.

A replica that answers health checks and heartbeats may still fail its requests, or take far longer over them. It is
compared with the others of its deployment, never with a fixed number: what all of them suffer from is no reason to
have fewer of them. Never more than a tenth is passed over at a time, but one always may be, and never the last.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import msgspec

EJECTED_FRACTION_MAX = 0.1
"""At most this part of a deployment's replicas is passed over, but at least one may be."""

ATTEMPTS_MIN = 10
"""With fewer attempts in an interval nothing is said about a replica."""

FAILED_FRACTION_MIN = 0.3
FAILED_FACTOR = 3.0
"""A replica fails too often if it fails this part of its attempts, and so many times the part that the others do."""

FIRST_FACTOR = 5.0
FIRST_MORE_S = 0.25
"""It is too slow if its first tokens take so many times as long as the others' median, and so much longer (seconds)."""


class Showing(msgspec.Struct, frozen=True):
    """What a replica showed in one interval: attempts that ended well or not, and its mean time to a first token."""

    well: int
    failed: int
    first_s: float | None


class Ejection(msgspec.Struct, frozen=True):
    """The replica is passed over for the reason given, until then (the caller's time, seconds)."""

    replica: str
    reason: str
    until_s: float


class Outliers:
    """One deployment's replicas at one gateway. Call `look` once an interval, with all its replicas."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """A replica is passed over for `first_s` seconds, and twice as long each time again, up to `longest_s`."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._times: dict[str, int] = {}
        self.ejected: dict[str, Ejection] = {}

    def look(self, showings: Mapping[str, Showing], now_s: float) -> tuple[list[Ejection], list[str]]:
        """Who is passed over from now on, and who is no more. `showings`: of all replicas that can be reached."""
        back = [replica for replica, ejection in self.ejected.items() if self._is_over(ejection, showings, now_s)]
        for replica in back:
            del self.ejected[replica]
        self._forgive(showings)
        out = []
        for replica, reason in self._worst(showings):
            if len(self.ejected) >= ejected_max(len(showings)):
                break
            times = self._times[replica] = self._times.get(replica, 0) + 1
            lasts_s = min(self._first_s * 2 ** min(times - 1, 30), self._longest_s)
            ejection = self.ejected[replica] = Ejection(replica, reason, now_s + lasts_s)
            out.append(ejection)
        return out, back

    def _is_over(self, ejection: Ejection, showings: Mapping[str, Showing], now_s: float) -> bool:
        """Also where others went, so that fewer may be passed over."""
        gone = ejection.replica not in showings
        return gone or now_s >= ejection.until_s or len(self.ejected) > ejected_max(len(showings))

    def _forgive(self, showings: Mapping[str, Showing]) -> None:
        """An interval in which it served well makes up for one time that it was passed over."""
        for replica in list(self._times):
            showing = showings.get(replica)
            if showing is None:
                del self._times[replica]
            elif replica not in self.ejected and showing.well >= ATTEMPTS_MIN and not showing.failed:
                self._times[replica] -= 1
                if not self._times[replica]:
                    del self._times[replica]

    def _worst(self, showings: Mapping[str, Showing]) -> list[tuple[str, str]]:
        """The outliers with the reason, the worst first."""
        judged = {
            replica: showing
            for replica, showing in showings.items()
            if replica not in self.ejected and showing.well + showing.failed >= ATTEMPTS_MIN
        }
        found = []
        for replica, showing in judged.items():
            others = [other for name, other in judged.items() if name != replica]
            if others:
                reason, badness = _compared(showing, others)
                if reason:
                    found.append((-badness, replica, reason))
        return [(replica, reason) for _badness, replica, reason in sorted(found)]


def ejected_max(replicas: int) -> int:
    """How many of so many replicas may be passed over at a time."""
    return min(max(1, math.floor(EJECTED_FRACTION_MAX * replicas)), max(0, replicas - 1))


def _compared(showing: Showing, others: list[Showing]) -> tuple[str, float]:
    """Why it is an outlier, and how far; an empty reason if it is none."""
    failed = showing.failed / (showing.well + showing.failed)
    theirs = sum(one.failed for one in others) / sum(one.well + one.failed for one in others)
    if failed >= FAILED_FRACTION_MIN and failed > FAILED_FACTOR * theirs:
        return f"it failed {failed:.0%} of its requests, the others {theirs:.0%}", 1_000.0 + failed
    firsts = [one.first_s for one in others if one.first_s is not None]
    if showing.first_s is not None and firsts:
        usual_s = statistics.median(firsts)
        if showing.first_s > FIRST_FACTOR * usual_s and showing.first_s > usual_s + FIRST_MORE_S:
            text = f"its first tokens took {showing.first_s:.3f} s, the others' {usual_s:.3f} s"
            return text, showing.first_s / max(usual_s, 1e-6)
    return "", 0.0
