"""Notes what gateways try again, and what not."""

from __future__ import annotations

from holdfast.core.budget import RetryBudget
from holdfast.simulations.history import History
from holdfast.simulations.leniency import Retry
from holdfast.simulations.world.process import SimProcess


class NotedBudget(RetryBudget):
    """A budget of whose answers notes are taken."""

    def __init__(self, budget: RetryBudget, process: SimProcess, history: History) -> None:
        self._budget = budget
        self._process = process
        self._history = history
        self._requests = 0

    def earn(self) -> None:
        """As `RetryBudget.earn`."""
        self._requests += 1
        self._budget.earn()

    def spend(self, open_streams: int, now_s: float) -> bool:
        """As `RetryBudget.spend`."""
        granted = self._budget.spend(open_streams, now_s)
        process = self._process
        self._history.retries.append(
            Retry(process.world.now_s, process.name, process.pid, now_s, open_streams, self._requests, granted)
        )
        return granted
