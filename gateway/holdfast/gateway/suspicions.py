"""Which replicas a gateway suspects, as far as it tells the log and Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.actors.metric_families import HEALTH_TRANSITIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.events import Fact, ReplicaSuspected, ReplicaTrusted
from holdfast.core.liveness import Suspicion
from holdfast.gateway.link import ReplicaLink

SUSPICIONS_TOLD_MAX = 100
"""While a gateway suspects so many replicas it tells the log of no more. Fifty gateways that lose sight of a thousand
replicas would write 50,000 events, just when the leader has decisions to write."""


class Suspicions:
    """What was told of replicas that are suspected now. `report` is as the fact writer's `note`."""

    def __init__(
        self,
        gateway: str,
        report: Callable[[Fact, str | None], str | None],
        ledger: Ledger,
        deployment_of: Callable[[str], str | None],
    ) -> None:
        self._gateway = gateway
        self._report = report
        self._ledger = ledger
        self._deployment_of = deployment_of
        self._told: dict[str, str | None] = {}

    def __contains__(self, replica: str) -> bool:
        return replica in self._told

    def suspected(self, link: ReplicaLink, reason: Suspicion, silence_s: float, streams: int) -> None:
        """The link lost so many streams to others."""
        fact = ReplicaSuspected(self._gateway, link.replica, round(silence_s, 3), streams, reason)
        told = self._report(fact, None) if len(self._told) < SUSPICIONS_TOLD_MAX else None
        if not link.retired:
            self._told[link.replica] = told
        self._turned(link, "suspected", reason)

    def trusted(self, link: ReplicaLink, suspected_s: float) -> None:
        """The replica is heard again."""
        self._turned(link, "trusted", "heard_again")
        cause = self._told.pop(link.replica, None)
        if link.retired or cause is None:
            return
        self._report(ReplicaTrusted(self._gateway, link.replica, round(suspected_s, 3)), cause)

    def forget(self, replica: str) -> None:
        """Nobody will hear of it again."""
        self._told.pop(replica, None)

    def _turned(self, link: ReplicaLink, to: str, reason: str) -> None:
        deployment = self._deployment_of(link.replica)
        if deployment is not None:
            self._ledger.add(HEALTH_TRANSITIONS, deployment, to, reason)
