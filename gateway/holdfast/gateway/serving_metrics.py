"""What a gateway's serving side shows when Prometheus asks: its replicas and queues as they stand."""

from __future__ import annotations

from holdfast.actors.metric_families import (
    GATEWAY_STATE,
    HELD_BACK,
    KV_USAGE,
    QUEUE_AGE,
    QUEUED,
    REPLICA_INFLIGHT,
    REPLICAS_READY,
    REPLICAS_WANTED,
)
from holdfast.actors.metrics import Samples
from holdfast.core.status import GatewayStatus
from holdfast.gateway.serving import Serving


def show_serving(serving: Serving) -> None:
    """Have the serving side's ledger read it."""
    ledger = serving.ledger

    def in_flight() -> Samples:
        return [((pool.model, at), streams) for pool in serving.pools() for at, streams in pool.in_flight.items()]

    def kv_usage() -> Samples:
        return [((pool.model, at), used) for pool in serving.pools() for at, used in pool.kv_used.items()]

    def ages() -> Samples:
        return [((pool.model, kind), age_s) for pool in serving.pools() for kind, age_s in pool.queue_ages_s.items()]

    def state() -> Samples:
        now = serving.health().state
        return [((one.value,), one is now) for one in GatewayStatus]

    ledger.read(GATEWAY_STATE, state)
    ledger.read(QUEUE_AGE, ages)
    ledger.read(REPLICAS_READY, lambda: [((pool.model,), pool.replicas_ready) for pool in serving.pools()])
    ledger.read(REPLICAS_WANTED, lambda: [((pool.model,), pool.replicas_wanted) for pool in serving.pools()])
    ledger.read(QUEUED, lambda: [((pool.model,), pool.queued) for pool in serving.pools()])
    ledger.read(HELD_BACK, lambda: [((model,), streams) for model, streams in serving.held_back().items()])
    ledger.read(REPLICA_INFLIGHT, in_flight)
    ledger.read(KV_USAGE, kv_usage)
