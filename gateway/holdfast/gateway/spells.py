"""Tells the log of rejections as spells, with a beginning and an end, and not one by one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from holdfast.core.events import Fact, RejectionsBegan, RejectionsEnded

QUIET_S = 10.0
"""A spell is over when nothing was rejected for so long (seconds): so there are few events, whatever clients do."""


class Spells:
    """The spells of one gateway, by model. `report` is as the fact writer's `note`."""

    def __init__(self, gateway: str, report: Callable[[Fact, str | None], str | None]) -> None:
        self._gateway = gateway
        self._report = report
        self._spells: dict[str, _Spell] = {}

    def rejected(self, model: str, reason: str) -> None:
        """A request for the model was rejected."""
        loop = asyncio.get_running_loop()
        spell = self._spells.get(model)
        if spell is None:
            cause = self._report(RejectionsBegan(self._gateway, model, reason), None)
            spell = self._spells[model] = _Spell(loop.time(), cause)
            loop.call_later(QUIET_S, self._look, model)
        spell.last_s = loop.time()
        spell.reasons[reason] += 1

    def _look(self, model: str) -> None:
        spell, loop = self._spells[model], asyncio.get_running_loop()
        quiet_s = loop.time() - spell.last_s
        if quiet_s < QUIET_S:
            loop.call_later(QUIET_S - quiet_s, self._look, model)
            return
        del self._spells[model]
        lasted_s = round(spell.last_s - spell.began_s, 3)
        self._report(RejectionsEnded(self._gateway, model, lasted_s, dict(spell.reasons)), spell.event)


class _Spell:
    """`event` is the one that told of its beginning; times are the loop's."""

    def __init__(self, began_s: float, event: str | None) -> None:
        self.began_s = self.last_s = began_s
        self.event = event
        self.reasons: Counter[str] = Counter()
