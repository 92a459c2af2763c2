"""Notes which replicas gateways pass over."""

from __future__ import annotations

from typing import Final

from holdfast.gateway.gateway_process import GatewayProcess
from holdfast.simulations.cluster.cluster import Cluster
from holdfast.simulations.leniency import Limits, Passing
from holdfast.simulations.plan import Knobs
from holdfast.simulations.world.process import SimProcess

LOOK_S: Final = 0.25
"""Between two looks at who is passed over, in virtual seconds."""


class Passings:
    """Looks at all gateways. Two looks at one deployment that see the same are one record."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last: dict[tuple[int, str], tuple[frozenset[str], frozenset[str]]] = {}

    def arm(self) -> None:
        """Begin to look."""
        self._cluster.world.scheduler.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        for member in self._cluster.gateways:
            inside, process = self._cluster.inside.get(member.name), member.process
            if isinstance(inside, GatewayProcess) and process is not None and process.alive:
                self._look_at(process, inside)
        self.arm()

    def _look_at(self, process: SimProcess, gateway: GatewayProcess) -> None:
        for name, pool in gateway._serving._pools.items():
            reached = frozenset(link.replica for link in pool.links if link.ready)
            passed = frozenset(link.replica for link in pool.links if link.passed_over)
            if self._last.get((process.pid, name)) != (reached, passed):
                self._last[process.pid, name] = reached, passed
                now_s = self._cluster.world.now_s
                self._cluster.history.passings.append(Passing(now_s, process.name, process.pid, name, reached, passed))


def limits_of(knobs: Knobs) -> Limits:
    """What gateways are set to."""
    return Limits(
        knobs.outlier_interval_s,
        knobs.outlier_window_s,
        knobs.outlier_ejection_s,
        knobs.outlier_ejection_max_s,
        knobs.retry_budget_ratio,
        knobs.retry_budget_min_per_s,
        knobs.retry_budget_burst,
    )
