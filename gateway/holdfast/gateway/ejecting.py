"""Passes over replicas that serve far worse than their peers, and says so to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from holdfast.actors.metric_families import HEALTH_TRANSITIONS
from holdfast.actors.metrics import Ledger
from holdfast.core.events import Fact, ReplicaEjected, ReplicaReinstated
from holdfast.core.outliers import Outliers, Showing
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
        self._rules = settings.outlier_rules()
        self._pools = pools
        self._report = report
        self._outliers: dict[str, Outliers] = {}
        self._told: dict[str, str | None] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while self._settings.outlier_ejection:
            await asyncio.sleep(self._settings.outlier_interval_s)
            pools = {pool.config.name: pool for pool in self._pools()}
            self._forget(pools)
            for name, pool in pools.items():
                self._look(name, pool)

    def _forget(self, pools: Mapping[str, Pool]) -> None:
        """What is not deployed any more has no outliers."""
        for name in [name for name in self._outliers if name not in pools]:
            for replica in self._outliers.pop(name).ejected:
                self._told.pop(replica, None)

    def _look(self, name: str, pool: Pool) -> None:
        outliers = self._outliers.setdefault(name, Outliers(self._rules))
        links = {link.replica: link for link in pool.links}
        now_s = asyncio.get_running_loop().time()
        showings = dict[str, Showing]()
        for replica, each in links.items():
            if each.ready:
                showings[replica] = each.record.show(now_s, self._rules)
            else:
                each.record.forget_old(now_s, self._rules)
        out, back = outliers.look(showings, now_s, links.keys() - showings.keys())
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
            links[ejection.replica].record.reset()
        for replica in outliers.ejected.keys() & links.keys():
            links[replica].passed_over = True  # again, if it was used for a moment in which all others were gone
        if back:
            self._pump(pool)
