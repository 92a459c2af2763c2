"""People who cancel requests by their ids, at any gateway."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from holdfast.simulations.cluster.asking import ask
from holdfast.simulations.work.items import Cancel
from holdfast.simulations.work.operators import HOST
from holdfast.simulations.world.process import SimProcess

if TYPE_CHECKING:
    from holdfast.simulations.cluster.cluster import Cluster

PATIENCE_S: Final = 3.0
"""A gateway has so long to answer (seconds)."""

OK: Final = 200


class Cancellers:
    """Each cancellation is a process of its own, as a command is."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def act(self, item: Cancel) -> None:
        """Begin one."""
        self._cluster.world.spawn(f"cancel-{item.number}", HOST, partial(self._run, item))

    async def _run(self, item: Cancel, process: SimProcess) -> int:
        cluster = self._cluster
        history, urls = cluster.history, list(cluster.gateway_urls())
        url = urls[int(item.amount * len(urls))]
        record = history.cancellation(cluster.world.now_s, item.ask, item.mode)
        history.note(cluster.world.now_s, HOST, f"cancels request {item.ask} at {url} ({item.mode})")
        path = f"/v1/requests/request-{item.ask}?mode={item.mode}"
        try:
            answer = await ask(process, "DELETE", f"{url}{path}", {}, PATIENCE_S)
        except (OSError, TimeoutError):
            return 1
        if answer.status == OK:
            record.told_s = cluster.world.now_s
        return 0
