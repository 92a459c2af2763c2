"""How many streams of a model were wanted at once: whether its replicas could have had room for another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from holdfast.simulations.history import History
from holdfast.simulations.records import CANCELLED, Request

TOLD_S: Final = 0.5
"""A replica may have a stream for so long after its end, in seconds."""


def wanted_until(history: History, request: Request) -> float:
    """Until when replicas may have its streams: gateways may take long to miss a client that left without a word."""
    ended_s = request.ended_s if request.ended_s is not None else history.ended_s
    if request.how == CANCELLED and not request.leaves_openly:
        return max(ended_s, request.deadline_s)
    return ended_s + TOLD_S


def most_at_once(wanted: Iterable[tuple[float, float, int]], from_s: float, until_s: float) -> int:
    """How many streams were wanted at the same time, between these times; (since, until, how many) of each request."""
    changes = []
    for since_s, over_s, streams in wanted:
        if since_s <= until_s and over_s > from_s:
            changes += [(max(since_s, from_s), streams), (min(over_s, until_s), -streams)]
    now = most = 0
    for _at_s, change in sorted(changes, key=lambda change: (change[0], -change[1])):
        now += change
        most = max(most, now)
    return most
