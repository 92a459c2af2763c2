"""What gateways try again that has no token yet: no more than their budgets allow, and all that they allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final

from holdfast.core.admission import Reason
from holdfast.simulations.checkers.judged import Judged
from holdfast.simulations.checkers.violation import Violation
from holdfast.simulations.history import History
from holdfast.simulations.leniency import Limits, Retry
from holdfast.simulations.records import REPLICA, Request

RETRIES: Final = "retries"

NEARLY: Final = 1e-6
"""A budget this close to one retry may be read either way."""


def retries(history: History, judged: Judged) -> list[Violation]:
    """A gateway tries again what its budget allows, and nothing else, and rejects nothing that the budget allows.

    The budget is worked out anew from the requests that came, the time and what was tried again. That engines were
    given streams a second time, and that clients were told of the budget, must have been asked of it.
    """
    limits = history.limits
    if limits is None:
        return []
    judged["what was asked of budgets"] += len(history.retries)
    asked = sorted(history.retries, key=lambda retry: retry.pid)
    found = [
        violation for _pid, each in groupby(asked, lambda retry: retry.pid) for violation in _over(limits, list(each))
    ]
    return [*found, *_earned(history), *_unasked(history), *_not_refused(history)]


def _over(limits: Limits, asked: list[Retry]) -> Iterator[Violation]:
    """One process's budget: it begins full."""
    held, at_s, requests = float("inf"), 0.0, 0
    for retry in asked:
        held += (retry.requests - requests) * limits.ratio + (retry.loop_s - at_s) * limits.per_s
        held = min(held, max(limits.burst, retry.open_streams))
        at_s, requests = retry.loop_s, retry.requests
        if retry.granted and held < 1 - NEARLY:
            yield Violation(RETRIES, retry.at_s, f"{retry.gateway} tries again with {held:.3f} in its budget")
        elif not retry.granted and held > 1 + NEARLY:
            yield Violation(RETRIES, retry.at_s, f"{retry.gateway} gives up with {held:.3f} in its budget")
        held -= retry.granted


def _earned(history: History) -> Iterator[Violation]:
    """Each request earns once."""
    came = Counter(exchange.pid for exchange in history.exchanges)
    for retry in history.retries:
        if retry.requests > came[retry.pid]:
            message = f"{retry.gateway} earned by {retry.requests} requests, and {came[retry.pid]} came to it"
            yield Violation(RETRIES, retry.at_s, message)


def _granted(history: History, *, granted: bool) -> Mapping[str, int]:
    return Counter(retry.gateway for retry in history.retries if retry.granted is granted)


def _unasked(history: History) -> Iterator[Violation]:
    """Engines were not given more streams a second time than gateways asked for."""
    granted, again, last_s = _granted(history, granted=True), Counter[str](), dict[str, float]()
    told = {process.replica: process.told_s for process in history.processes if process.role == REPLICA}
    for request in history.requests:
        if len(request.tries) == 1 and request.n == 1 and not _handed_over(request, told):
            begun = [attempt for attempt in request.attempts if not attempt.accepted]
            gateway = request.tries[0].gateway
            again[gateway] += max(0, len(begun) - 1)
            last_s[gateway] = max([last_s.get(gateway, 0.0), *(attempt.at_s for attempt in begun)])
    for gateway, times in again.items():
        if times > granted.get(gateway, 0):
            allowed = f"and its budget allowed {granted.get(gateway, 0)}"
            message = f"{gateway} began {times} streams again that had no token, {allowed}"
            yield Violation(RETRIES, last_s[gateway], message)


def _handed_over(request: Request, told: Mapping[str, float | None]) -> bool:
    """Whether it may have left a replica that was told to stop: that needs no budget."""
    return any(told.get(attempt.replica) is not None for attempt in request.attempts[:-1])


def _not_refused(history: History) -> Iterator[Violation]:
    """Nobody is told of a budget that was not asked."""
    refused, told, last_s = _granted(history, granted=False), Counter[str](), dict[str, float]()
    for request in history.requests:
        for sent in request.tries:
            if sent.rejected == Reason.RETRY_BUDGET:
                told[sent.gateway] += 1
                last_s[sent.gateway] = max(last_s.get(sent.gateway, 0.0), sent.at_s)
    for gateway, times in told.items():
        if times > refused.get(gateway, 0):
            message = f"{gateway} rejected {times} requests for its budget, which refused {refused.get(gateway, 0)}"
            yield Violation(RETRIES, last_s[gateway], message)
