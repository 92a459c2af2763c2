"""What a node counts."""

from __future__ import annotations

from holdfast.actors.identity import Identity
from holdfast.actors.metric_families import NODE_HEALTH_TRANSITIONS
from holdfast.actors.node_metrics import NodeMetrics
from holdfast.core.events import ReplicaExited, ReplicaHealthy, ReplicaUnhealthy


def test_health_counts_when_it_turns_and_not_when_it_is_told_again() -> None:
    metrics = NodeMetrics(Identity("c", "node", "a", "i", "h", 1), "1", 4)

    def count(to: str, reason: str) -> float:
        return metrics.ledger.value(NODE_HEALTH_TRANSITIONS, "tiny", to, reason)

    metrics.judged("tiny", ReplicaHealthy("r", "a"))
    assert count("healthy", "well_again") == 0
    metrics.judged("tiny", ReplicaUnhealthy("r", "a", "canary", "no token came"))
    for _ in range(2):
        metrics.judged("tiny", ReplicaHealthy("r", "a"))
    assert (count("unhealthy", "canary"), count("healthy", "well_again")) == (1, 1)
    metrics.judged("tiny", ReplicaUnhealthy("r", "a", "silent", "it does not answer"))
    metrics.exited(ReplicaExited("r", "a", 7, 1, None, expected=False, message=""))
    metrics.judged("tiny", ReplicaHealthy("r", "a"))
    assert count("healthy", "well_again") == 1
