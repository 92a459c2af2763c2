"""What the HTTP side counts. Nothing here is touched per token."""

from __future__ import annotations

import asyncio

from holdfast.actors.metric_families import (
    GATEWAY,
    GATEWAY_INFO,
    GENERATION_TOKENS,
    INFLIGHT,
    ITL,
    PROMPT_TOKENS,
    REQUEST_DURATION,
    REQUESTS,
    TASKS,
    TTFT,
)
from holdfast.actors.metrics import Ledger


class ModelMetrics:
    """What is counted for one model. There are as many as models were ever served, so clients can't add any."""

    __slots__ = ("_ledger", "_model", "durations", "itl", "ttft")

    def __init__(self, ledger: Ledger, model: str) -> None:
        self._ledger = ledger
        self._model = model
        self.ttft = ledger.histogram(TTFT, model)
        self.itl = ledger.histogram(ITL, model)
        self.durations = ledger.histogram(REQUEST_DURATION, model)

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """A request took so many tokens."""
        self._ledger.add(PROMPT_TOKENS, self._model, by=prompt_tokens)
        self._ledger.add(GENERATION_TOKENS, self._model, by=completion_tokens)


class Metrics:
    """The HTTP side's part of a gateway's ledger. `in_flight` counts requests for tokens that have no end yet."""

    def __init__(self, gateway_id: str, ledger: Ledger | None = None) -> None:
        self.in_flight = 0
        self.ledger = ledger or Ledger(GATEWAY)
        self._models: dict[str, ModelMetrics] = {}
        self.ledger.read(GATEWAY_INFO, lambda: [((gateway_id,), 1)])
        self.ledger.read(TASKS, lambda: [((), len(asyncio.all_tasks()))])
        self.ledger.read(INFLIGHT, lambda: [((), self.in_flight)])

    def model(self, model: str) -> ModelMetrics:
        """What is counted for `model`, which must be a deployed one."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics(self.ledger, model)
        return found

    def ended(self, route: str, model: str, outcome: str, *, resumed: bool) -> None:
        """A request came to its end, or to that of its part here. `model` is empty where it was refused before its
        model was known; `resumed` is one that goes on with a stream which another gateway, or this one, began."""
        self.ledger.add(REQUESTS, route, model, outcome, "true" if resumed else "false")

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return self.ledger.text()
