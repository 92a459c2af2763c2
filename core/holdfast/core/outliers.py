"""Which replicas serve so much worse than their peers that they are passed over for a while.

A replica that answers health checks and heartbeats may still fail its requests, or take far longer over them. It is
compared with the others of its deployment, never with a fixed number: what all of them suffer from is no reason to
have fewer of them. Never more than a tenth is passed over at a time, but one always may be, and never the last.

A replica is judged when it has shown enough, however long that took, by what the others showed last: replicas that get
few requests come to have shown enough at different times. One that gets too few for that is judged by its last ones
alone, if all of them were bad (`holdfast.core.rows`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

import msgspec

from holdfast.core.rows import FIRSTS, NO_ROW, Row

EJECTED_FRACTION_MAX = 0.1
"""At most this part of a deployment's replicas is passed over, but at least one may be."""

FAILED_FRACTION_MIN = 0.3
FAILED_FACTOR = 3.0
"""A replica fails too often if it fails this part of its attempts, and so many times the part that the others do."""

FIRST_FACTOR = 5.0
FIRST_MORE_S = 0.25
"""It is too slow if its first tokens take so many times as long as the others' median, and so much longer (seconds)."""


class Showing(msgspec.Struct, frozen=True):
    """What a replica showed since it was last judged: attempts that ended well or not, and how many first tokens there
    were to go by, with the median of the times to them (seconds; None where there were none). `row` is what it showed
    last, also if it was judged by that before."""

    well: int
    failed: int
    first_count: int
    first_s: float | None
    row: Row = NO_ROW

    @property
    def attempts(self) -> int:
        """How many there were whose end says something."""
        return self.well + self.failed


class Rules(msgspec.Struct, frozen=True):
    """From when on replicas are judged, and what follows.

    With fewer than `requests_min` attempts nothing is said about a replica's failures, nor with fewer first tokens
    about these, but by its row. What was shown longer than `window_s` seconds ago says nothing any more. A replica is
    passed over for `first_s` seconds, and twice as long each time again, up to `longest_s`.
    """

    requests_min: int = 10
    window_s: float = 60.0
    first_s: float = 10.0
    longest_s: float = 300.0

    def tells_failures(self, showing: Showing) -> bool:
        """Whether there were enough attempts to go by."""
        return showing.attempts >= self.requests_min

    def tells_firsts(self, showing: Showing) -> bool:
        """Whether there were enough first tokens to go by."""
        return showing.first_s is not None and showing.first_count >= self.requests_min


USUAL = Rules()


class Ejection(msgspec.Struct, frozen=True):
    """The replica is passed over for the reason given, until then (the caller's time, seconds)."""

    replica: str
    reason: str
    until_s: float


class _Known:
    """What each replica showed last, of one kind, while that is no older than `lasts_s` (seconds)."""

    def __init__(self, lasts_s: float) -> None:
        self._lasts_s = lasts_s
        self._shown: dict[str, tuple[Showing, float]] = {}

    def showed(self, replica: str, showing: Showing, now_s: float) -> None:
        """It showed enough just now."""
        self._shown[replica] = showing, now_s

    def keep(self, replicas: Collection[str], now_s: float) -> None:
        """Forget what is too old, and all others."""
        self._shown = {
            name: shown for name, shown in self._shown.items() if name in replicas and now_s - shown[1] <= self._lasts_s
        }

    def all(self) -> list[Showing]:
        """What is known."""
        return [showing for showing, _at_s in self._shown.values()]


class Outliers:
    """One deployment's replicas at one gateway. Call `look` every so often, with all its replicas."""

    def __init__(self, rules: Rules = USUAL) -> None:
        self._rules = rules
        self._times: dict[str, int] = {}
        self._failures = _Known(rules.window_s)
        self._firsts = _Known(rules.window_s)
        self.ejected: dict[str, Ejection] = {}

    def look(
        self, showings: Mapping[str, Showing], now_s: float, absent: Collection[str] = ()
    ) -> tuple[list[Ejection], list[str]]:
        """Who is passed over from now on, and who is no more. `showings`: of all replicas that can be reached; `absent`
        are those that can't just now: they are not judged, and what is known of them stays.
        """
        back = self._back(showings, now_s, absent)
        for replica in back:
            del self.ejected[replica]
        self._forgive(showings, absent)
        self._learn(showings, now_s)
        out = []
        for replica, reason in self._worst(showings):
            if len(self.ejected) >= ejected_max(self._counted(showings)):
                break
            times = self._times[replica] = self._times.get(replica, 0) + 1
            lasts_s = min(self._rules.first_s * 2 ** min(times - 1, 30), self._rules.longest_s)
            ejection = self.ejected[replica] = Ejection(replica, reason, now_s + lasts_s)
            out.append(ejection)
        return out, back

    def _back(self, showings: Mapping[str, Showing], now_s: float, absent: Collection[str]) -> list[str]:
        """Whose time is over, or who is gone; and where others went, so that fewer may be passed over, the last ones.

        One that is out of reach for a moment, as bad ones are, stays where it is.
        """
        ejected = self.ejected
        gone = [replica for replica in ejected if replica not in showings and replica not in absent]
        over = [replica for replica, one in ejected.items() if replica not in gone and now_s >= one.until_s]
        staying = [replica for replica in ejected if replica not in gone and replica not in over]
        counted = self._counted(showings) - sum(replica not in showings for replica in (*gone, *over))
        return [*gone, *over, *staying[ejected_max(counted) :]]

    def _counted(self, showings: Mapping[str, Showing]) -> int:
        """How many replicas there are of which a part may be passed over: who is out of reach serves nobody."""
        return len(showings) + sum(replica not in showings for replica in self.ejected)

    def _forgive(self, showings: Mapping[str, Showing], absent: Collection[str]) -> None:
        """Enough attempts of which none failed make up for one time that it was passed over."""
        for replica in list(self._times):
            showing = showings.get(replica)
            if showing is None:
                if replica not in absent:
                    del self._times[replica]
            elif replica not in self.ejected and showing.well >= self._rules.requests_min and not showing.failed:
                self._times[replica] -= 1
                if not self._times[replica]:
                    del self._times[replica]

    def _learn(self, showings: Mapping[str, Showing], now_s: float) -> None:
        """What others are compared with: never with who is passed over."""
        used = showings.keys() - self.ejected.keys()
        for known in (self._failures, self._firsts):
            known.keep(used, now_s)
        for replica in sorted(used):
            showing = showings[replica]
            if self._rules.tells_failures(showing):
                self._failures.showed(replica, showing, now_s)
            if self._rules.tells_firsts(showing):
                self._firsts.showed(replica, showing, now_s)

    def _worst(self, showings: Mapping[str, Showing]) -> list[tuple[str, str]]:
        """The outliers with the reason, the worst first."""
        rules = self._rules
        used = {replica: showing for replica, showing in showings.items() if replica not in self.ejected}
        known = self._failures.all()
        attempts = [*known, *(showing for showing in used.values() if not rules.tells_failures(showing))]
        failed, total = sum(one.failed for one in attempts), sum(one.attempts for one in attempts)
        usual_s = self._usual_s(used.values())
        found = []
        for replica, showing in used.items():
            reason, badness = "", 0.0
            if rules.tells_failures(showing) and len(known) > 1:
                reason, badness = _failing(showing, failed - showing.failed, total - showing.attempts)
            if not reason and rules.tells_firsts(showing) and usual_s is not None:
                reason, badness = _slow(showing, usual_s)
            if not reason:
                reason, badness = _bad_row(showing.row, [used[other].row for other in used if other != replica])
            if reason:
                found.append((-badness, replica, reason))
        return [(replica, reason) for _badness, replica, reason in sorted(found)]

    def _usual_s(self, showings: Collection[Showing]) -> float | None:
        """The others' time to a first token, whichever of the slow ones is judged by it; None if there are no others.

        What they begin to show counts where it is longer: the load may have grown for all.
        """
        known_s = _others_median(self._firsts.all())
        return None if known_s is None else max(known_s, _others_median(showings) or 0.0)


def ejected_max(replicas: int) -> int:
    """How many of so many replicas may be passed over at a time."""
    return min(max(1, math.floor(EJECTED_FRACTION_MAX * replicas)), max(0, replicas - 1))


def _others_median(showings: Collection[Showing]) -> float | None:
    """The median of all but one, which is among the slower half: it is the same whichever that is."""
    times_s = sorted(one.first_s for one in showings if one.first_s is not None)[:-1]
    return statistics.median(times_s) if times_s else None


def _failing(showing: Showing, others_failed: int, others_attempts: int) -> tuple[str, float]:
    """Why it is an outlier by its failures, and how far; an empty reason if it is none."""
    failed, theirs = showing.failed / showing.attempts, others_failed / others_attempts
    if failed >= FAILED_FRACTION_MIN and failed > FAILED_FACTOR * theirs:
        return f"it failed {failed:.0%} of its requests, the others {theirs:.0%}", 1_000.0 + failed
    return "", 0.0


def _slow(showing: Showing, usual_s: float) -> tuple[str, float]:
    """As `_failing`, by its first tokens."""
    took_s = showing.first_s or 0.0
    if took_s > FIRST_FACTOR * usual_s and took_s > usual_s + FIRST_MORE_S:
        return f"its first tokens took {took_s:.3f} s, the others' {usual_s:.3f} s", took_s / max(usual_s, 1e-6)
    return "", 0.0


def _bad_row(row: Row, others: Collection[Row]) -> tuple[str, float]:
    """As `_failing`, by what it showed last, each of it: that is so still, however long ago it began."""
    attempts, failed = sum(one.attempts for one in others), sum(one.failed for one in others)
    if row.all_failed and attempts >= row.attempts and FAILED_FACTOR * failed < attempts:
        return f"its last {row.attempts} attempts failed, of the others' {failed / attempts:.0%}", 1_001.0
    medians_s = [one.median_s for one in others if one.firsts == FIRSTS]
    if row.firsts < FIRSTS or not medians_s:
        return "", 0.0
    usual_s = statistics.median(medians_s)
    if row.shortest_s > FIRST_FACTOR * usual_s and row.shortest_s > usual_s + FIRST_MORE_S:
        took = f"each of its last {row.firsts} first tokens took {row.shortest_s:.3f} s or longer"
        return f"{took}, the others' {usual_s:.3f} s", row.shortest_s / max(usual_s, 1e-6)
    return "", 0.0
