"""Everybody who uses a cluster: the clients and operators of a run, set to do in its time what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from holdfast.simulations.work.cancels import Cancellers
from holdfast.simulations.work.changes import Changers
from holdfast.simulations.work.clients import Client
from holdfast.simulations.work.items import (
    CLIENTS,
    Ask,
    Cancel,
    Change,
    Operation,
    WorkItem,
    draw_work,
    first_application,
)
from holdfast.simulations.work.operators import HOST, Operators
from holdfast.simulations.world.process import SimProcess

if TYPE_CHECKING:
    from holdfast.simulations.cluster.cluster import Cluster

__all__ = ["Workload", "draw_work"]


class Workload:
    """A plan's work on a cluster. `hosts` are those of clients and operators."""

    def __init__(self, cluster: Cluster, work: Sequence[WorkItem]) -> None:
        self._cluster = cluster
        self._asks = [item for item in work if isinstance(item, Ask)]
        self._operations = [item for item in work if isinstance(item, Operation)]
        self._cancels = [item for item in work if isinstance(item, Cancel)]
        self._cancellers = Cancellers(cluster)
        self._changes = [item for item in work if isinstance(item, Change)]
        self._changers = Changers(cluster)
        self._operators = Operators(cluster, first_application(cluster.plan.scenario, cluster.knobs))
        self.hosts = [*(f"c{number + 1}" for number in range(CLIENTS)), HOST]

    def arm(self) -> None:
        """Start the clients, and set the timers of all operations."""
        world = self._cluster.world
        for number in range(CLIENTS):
            name = self.hosts[number]
            world.spawn(name, name, partial(self._client, number))
        for cancel in self._cancels:
            world.scheduler.call_at(cancel.at_s, self._cancellers.act, cancel)
        for change in self._changes:
            world.scheduler.call_at(change.at_s, self._changers.act, change)
        for operation in self._operations:
            world.scheduler.call_at(operation.at_s, self._operators.act, operation)

    async def _client(self, number: int, process: SimProcess) -> None:
        gateways = self._cluster.gateway_urls()
        # What becomes of each try is judged where requests break engines: clients that try again would hide it.
        once = self._cluster.plan.scenario.poisoned > 0
        client = Client(process, self._cluster.history, gateways, sticky=number == 0, once=once)
        await client.run([ask for ask in self._asks if ask.client == number])
