"""Guards of what gateways do about replicas that serve badly: whom they pass over, and what they try again."""

from __future__ import annotations

from typing import Final

from holdfast.core.budget import RetryBudget
from holdfast.core.outliers import Outliers
from holdfast.core.rows import Row
from holdfast.gateway.dispatch import Dispatch
from holdfast.gateway.ejecting import Ejector
from holdfast.gateway.link_record import LinkRecord
from holdfast.simulations.checkers.ejections import EJECTIONS
from holdfast.simulations.checkers.retries import RETRIES
from holdfast.simulations.mutants.edits import edit
from holdfast.simulations.mutants.mutant import Mutant, Setting
from holdfast.simulations.plan import UNEVEN

COMPARED: Final = Setting(UNEVEN)
"""Some replicas serve far worse than others."""

LONG_AGO: Final = Setting(
    UNEVEN,
    kinds=("flapping link",),
    shape={"faults_until_s": 9.0, "requests": 120, "shortest_s": 1.0, "longest_s": 3.0},
    knobs={"outlier_requests_min": 9, "outlier_window_s": 1.0},
)
"""What replicas show comes slowly, and all faults are over early."""

NOW_AND_THEN: Final = Setting(
    UNEVEN,
    kinds=("flapping link",),
    shape={"requests": 80, "shortest_s": 1.0, "longest_s": 3.0},
    knobs={"outlier_interval_s": 14.0},
)
"""Requests are few, and replicas are compared seldom: long after what befell them."""

MUTANTS: Final = (
    Mutant(
        "few-ejected",
        "no more than a tenth of the replicas is passed over at a time, but one always may be",
        (edit(Outliers.look, ("if len(self.ejected) >= ejected_max(self._counted(showings)):", "if False:")),),
        (EJECTIONS,),
        COMPARED,
    ),
    Mutant(
        "ejection-ends",
        "a replica that is passed over is taken back when its time is over",
        (edit(Outliers._back, ("now_s >= one.until_s", "False")),),
        (EJECTIONS,),
        COMPARED,
    ),
    Mutant(
        "ejected-out-of-reach",
        "a replica that is out of reach for a moment stays passed over",
        (edit(Outliers._back, (" and replica not in absent", "")),),
        (EJECTIONS,),
        COMPARED,
    ),
    Mutant(
        "ejected-again",
        "who was used while all others were gone is passed over again",
        (edit(Ejector._look, ("outliers.ejected.keys() & links.keys()", "(ejection.replica for ejection in out)")),),
        (EJECTIONS,),
        Setting(
            UNEVEN,
            kinds=("flapping link", "flapping link", "replica crash"),
            shape={"replicas": 3},
            knobs={"outlier_ejection_s": 8.0, "outlier_ejection_max_s": 8.0},
        ),
    ),
    Mutant(
        "ejection-doubles",
        "a replica is passed over for the time that is set, then for twice that again and again, up to a bound",
        (edit(Outliers.look, ("self._rules.first_s * 2 **", "self._rules.first_s * 3 **")),),
        (EJECTIONS,),
        COMPARED,
    ),
    Mutant(
        "recent-showing",
        "what a replica showed too long ago is nothing to judge it by",
        (
            edit(
                LinkRecord.forget_old,
                ("now_s >= self._attempts_end_s", "False"),
                ("now_s >= self._firsts_end_s", "False"),
            ),
        ),
        (EJECTIONS,),
        LONG_AGO,
    ),
    Mutant(
        "row-ends",
        "one attempt that went well ends a row of those that failed",
        (edit(Row.all_failed, ("self.attempts == self.failed == ATTEMPTS", "self.failed > 0")),),
        (EJECTIONS,),
        NOW_AND_THEN,
    ),
    Mutant(
        "retry-asked",
        "a stream without a token begins again only if the budget allows it",
        (edit(Dispatch._migrate, ("not self._may_retry()", "False")),),
        (RETRIES,),
        COMPARED,
    ),
    Mutant(
        "retry-spent",
        "what begins again is taken from the budget",
        (edit(RetryBudget.spend, ("self._held -= 1", "pass")),),
        (RETRIES,),
        COMPARED,
    ),
    Mutant(
        "retry-allowed",
        "a budget holds as much as is open, so that the loss of a replica is covered",
        (edit(RetryBudget.spend, ("max(self._burst, open_streams)", "self._burst")),),
        (RETRIES,),
        COMPARED,
    ),
    Mutant(
        "retry-earned",
        "requests and time earn what may begin again, no more and no less",
        (edit(RetryBudget.spend, ("* self._per_s", "* 2 * self._per_s")),),
        (RETRIES,),
        COMPARED,
    ),
)
