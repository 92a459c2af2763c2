"""Passes over replicas that serve far worse than their peers, and says so to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from holdfast.actors.metric_families import HEALTH_TRANSITIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.events import Fact, ReplicaEjected, ReplicaReinstated
from holdfast.core.outliers import Outliers
from holdfast.gateway.admission_settings import AdmissionSettings
from holdfast.gateway.pool import Pool


class Ejector:
    """Compares the replicas of each of a gateway's deployments every so often."""

    def __init__(
        self,
        gateway: str,
        settings: AdmissionSettings,
        pools: Callable[[], Iterable[Pool]],
        report: Callable[[Fact, str | None], str | None],
        pump: Callable[[Pool], None],
        ledger: Ledger,
    ) -> None:
        """`pump(pool)` is called when a replica of it is used again."""
        self._pump = pump
        self._ledger = ledger
        self._gateway = gateway
        self._settings = settings
        self._pools = pools
        self._report = report
        self._outliers: dict[str, Outliers] = {}
        self._told: dict[str, str | None] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while self._settings.outlier_ejection:
            await asyncio.sleep(self._settings.outlier_interval_s)
            pools = {pool.config.name: pool for pool in self._pools()}
            self._outliers = {name: found for name, found in self._outliers.items() if name in pools}
            for name, pool in pools.items():
                self._look(name, pool)

    def _look(self, name: str, pool: Pool) -> None:
        settings = self._settings
        outliers = self._outliers.get(name)
        if outliers is None:
            outliers = Outliers(settings.outlier_ejection_s, settings.outlier_ejection_max_s)
            self._outliers[name] = outliers
        links = {link.replica: link for link in pool.links}
        now_s = asyncio.get_running_loop().time()
        showings = {replica: link.record.show(now_s) for replica, link in links.items() if link.ready}
        out, back = outliers.look(showings, now_s)
        # One whose time is over may be the worst again by what it showed meanwhile: then it is passed over in the end.
        for replica in back:
            cause = self._told.pop(replica, None)
            link = links.get(replica)
            if link is not None:
                link.passed_over = False
                link.record.reset()
                self._ledger.add(HEALTH_TRANSITIONS, name, "reinstated", "time")
                self._report(ReplicaReinstated(self._gateway, replica), cause)
        for ejection in out:
            seconds = round(ejection.until_s - now_s, 3)
            fact = ReplicaEjected(self._gateway, ejection.replica, ejection.reason, seconds)
            self._told[ejection.replica] = self._report(fact, None)
            self._ledger.add(HEALTH_TRANSITIONS, name, "ejected", "outlier")
            links[ejection.replica].passed_over = True
            links[ejection.replica].record.reset()
        if back:
            self._pump(pool)
