"""Streams that left a replica: what came of each, and for how long it brought nothing."""

from __future__ import annotations

from holdfast.actors.metric_families import MIGRATION_PAUSE, MIGRATIONS
from holdfast.actors.metrics import Ledger

RESUMED = "resumed"
LOST_AGAIN = "lost_again"
FAILED = "failed"
CANCELLED = "cancelled"


class Move:
    """One stream between two replicas. It ends once, as one of the outcomes above. Times are the loop's."""

    __slots__ = ("_cause", "_ledger", "_model", "_since_s")

    def __init__(self, ledger: Ledger, model: str, cause: str, since_s: float) -> None:
        """`since_s` is when its replica told of a step for the last time."""
        self._ledger = ledger
        self._model = model
        self._cause = cause
        self._since_s = since_s

    def resumed(self, now_s: float) -> None:
        """It brought its next token, or its end."""
        self._ledger.observe(MIGRATION_PAUSE, now_s - self._since_s, self._model, self._cause)
        self.ended(RESUMED)

    def ended(self, outcome: str) -> None:
        """That came of it."""
        self._ledger.add(MIGRATIONS, self._model, self._cause, outcome)
