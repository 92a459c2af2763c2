"""What became of the attempts on one replica, as far as others must know: the deployment's rates, and its outliers.

A replica may get few requests, so what it showed is kept until it is enough to judge by, or too old (`show`).
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import deque
from typing import TYPE_CHECKING

from holdfast.core.admission import Service
from holdfast.core.outliers import USUAL, Rules, Showing
from holdfast.core.rows import Last

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun

FIRSTS_MAX = 100
"""Of so many first tokens at most, the last ones, it is known how long they took: the median needs no more."""


class LinkRecord:
    """Attempts that ended well or not, and the times to first tokens (seconds), since they were last judged by."""

    __slots__ = ("_attempts_end_s", "_firsts_end_s", "_firsts_s", "_last", "_service", "failed", "well")

    def __init__(self, service: Service | None = None) -> None:
        self._service = service or Service()
        self._firsts_s = deque[float](maxlen=FIRSTS_MAX)
        self._last = Last()
        self.well = self.failed = 0
        self._attempts_end_s = self._firsts_end_s = math.inf

    def reset(self) -> None:
        """Forget everything."""
        self._forget_attempts(math.inf)
        self._forget_firsts(math.inf)
        self._last.forget()

    def show(self, now_s: float, rules: Rules = USUAL) -> Showing:
        """What there is to judge by. What is enough for that is counted anew from now on, and what is too old."""
        firsts_s = self._firsts_s
        median_s = statistics.median(firsts_s) if firsts_s else None
        showing = Showing(self.well, self.failed, len(firsts_s), median_s, self._last.row(now_s))
        if rules.tells_failures(showing):
            self._forget_attempts(now_s + rules.window_s)
        if rules.tells_firsts(showing):
            self._forget_firsts(now_s + rules.window_s)
        self.forget_old(now_s, rules)
        return showing

    def forget_old(self, now_s: float, rules: Rules = USUAL) -> None:
        """Count anew what is too old, also while there is nothing to judge: nobody reaches the replica."""
        end_s = now_s + rules.window_s
        if now_s >= self._attempts_end_s:
            self._forget_attempts(end_s)
        if now_s >= self._firsts_end_s:
            self._forget_firsts(end_s)
        self._attempts_end_s = min(self._attempts_end_s, end_s)
        self._firsts_end_s = min(self._firsts_end_s, end_s)

    def began(self, run: StreamRun) -> None:
        """The run's attempt is sent to the replica."""
        run.awaits_first = True
        self._service.began(run.claim.priority, run.began_s)

    def first_token(self, run: StreamRun) -> None:
        """The attempt's first token came."""
        run.awaits_first = False
        if len(run.stream.accepted) > 1:
            # It read what was generated elsewhere as well: that it took longer is no fault of who took it over.
            return
        took_s = _age_s(run)
        self._service.first_token(took_s)
        self._first_took(took_s)

    def finished(self, run: StreamRun) -> None:
        """The attempt was finished."""
        self.well += 1
        self._last.ended(_now_s(), well=True)
        if not run.awaits_first:
            self._service.stayed(_age_s(run))

    def left(self, run: StreamRun) -> None:
        """Nobody wants more of the attempt.

        One that has brought nothing went neither well nor wrong: who leaves at once says nothing. But who waited for
        longer than first tokens take would have waited for longer still, so that counts as one that took so long:
        nobody may ever see a first token of a replica that is slow enough.
        """
        if not run.awaits_first:
            self.finished(run)
        elif not run.stream.accepted:
            age_s, usual_s = _age_s(run), self._service.first_s
            if usual_s is not None and age_s > usual_s:
                self._first_took(age_s)

    def broke(self, attempts: int = 1) -> None:
        """The replica lost so many attempts at once. One that it has no room for just now is none of them."""
        self.failed += attempts
        if attempts:
            self._last.ended(_now_s(), well=False)

    def _first_took(self, seconds: float) -> None:
        self._firsts_s.append(seconds)
        self._last.first_token(_now_s(), seconds)

    def _forget_attempts(self, end_s: float) -> None:
        self.well = self.failed = 0
        self._attempts_end_s = end_s

    def _forget_firsts(self, end_s: float) -> None:
        self._firsts_s.clear()
        self._firsts_end_s = end_s


def _age_s(run: StreamRun) -> float:
    return _now_s() - run.began_s


def _now_s() -> float:
    return asyncio.get_running_loop().time()
