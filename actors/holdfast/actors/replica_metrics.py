"""What a replica counts of itself. Nothing here is done per token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.actors.engines.base import Engine
from holdfast.actors.metric_families import (
    ATTEMPTS,
    ENGINE_PROMPT_TOKENS,
    ENGINE_STEPS,
    ENGINE_TOKENS,
    GATEWAYS_CONNECTED,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    PREFILL_WAITING,
    QUEUE_TIME,
    REPLICA,
    REPLICA_INFO,
    REPLICA_TASKS,
    RUNNING,
    STEP_DURATION,
    STREAMS_KEPT,
    WAITING,
)
from holdfast.actors.metrics import Ledger, Samples

ADMITTED = "admitted"
BUSY = "busy"
REFUSED = "refused"


class ReplicaMetrics:
    """A replica's ledger, and what it counts in it."""

    def __init__(self, replica: str, model: str) -> None:
        self.ledger = Ledger(REPLICA)
        self.ledger.read(REPLICA_INFO, lambda: [((replica, model), 1)])
        self._steps = self.ledger.histogram(STEP_DURATION)
        self._queued = self.ledger.histogram(QUEUE_TIME)
        self._tokens = 0
        self.ledger.read(REPLICA_TASKS, lambda: [((), len(asyncio.all_tasks()))])
        self.ledger.read(ENGINE_TOKENS, lambda: [((), self._tokens)])

    def show(self, engine: Engine, gateways: Callable[[], int], kept: Callable[[], int]) -> None:
        """Have the ledger read the engine, how many gateways are connected, and how many streams are kept."""
        read, load = self.ledger.read, engine.load

        def usage() -> Samples:
            return [((), load().kv_blocks_used / max(1, load().kv_blocks))]

        def blocks() -> Samples:
            used = load().kv_blocks_used
            return [(("used",), used), (("free",), load().kv_blocks - used)]

        read(RUNNING, lambda: [((), load().running)])
        read(WAITING, lambda: [((), load().waiting)])
        read(PREFILL_WAITING, lambda: [((), load().prefill_tokens_waiting)])
        read(ENGINE_STEPS, lambda: [((), load().step)])
        read(KV_CACHE_USAGE, usage)
        read(KV_BLOCKS, blocks)
        read(GATEWAYS_CONNECTED, lambda: [((), gateways())])
        read(STREAMS_KEPT, lambda: [((), kept())])

    def stepped(self, took_s: float, tokens: int) -> None:
        """The engine made a step."""
        self._steps.observe(took_s)
        self._tokens += tokens

    def admitted(self, after_s: float, prompt_tokens: int) -> None:
        """The engine took an attempt in, so long after it came."""
        self._queued.observe(after_s)
        self.ledger.add(ATTEMPTS, ADMITTED)
        self.ledger.add(ENGINE_PROMPT_TOKENS, by=prompt_tokens)

    def turned_away(self, after_s: float, *, busy: bool) -> None:
        """An attempt was not taken in: there is no room, or the request can't be served."""
        self._queued.observe(after_s)
        self.ledger.add(ATTEMPTS, BUSY if busy else REFUSED)
