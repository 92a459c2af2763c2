"""Operators who change a model's thresholds at a gateway, and take them back after a while."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from holdfast.gateway.busy_threshold import DECIDED_IN_S
from holdfast.simulations.cluster.asking import ask
from holdfast.simulations.work.items import Change
from holdfast.simulations.work.operators import HOST, RETRY_S, TRIES_MAX
from holdfast.simulations.world.process import SimProcess

if TYPE_CHECKING:
    from holdfast.simulations.cluster.cluster import Cluster

PATIENCE_S: Final = DECIDED_IN_S + 1.0
"""A gateway has so long to answer (seconds)."""

OK: Final = 200


class Changers:
    """Each change is a process of its own. It is asked for once, at one gateway; taken back until a gateway has it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def act(self, item: Change) -> None:
        """Begin one."""
        self._cluster.world.spawn(f"change-{item.number}", HOST, partial(self._run, item))

    async def _run(self, item: Change, process: SimProcess) -> int:
        urls = list(self._cluster.gateway_urls())
        first = int(item.amount * len(urls))
        await self._ask(process, urls[first], item, item.value)
        await asyncio.sleep(item.lasts_s)
        for tried in range(TRIES_MAX):
            if await self._ask(process, urls[(first + tried) % len(urls)], item, None):
                return 0
            await asyncio.sleep(RETRY_S)
        return 1

    async def _ask(self, process: SimProcess, url: str, item: Change, value: float | None) -> bool:
        """Ask a gateway; whether it says that the change holds."""
        cluster = self._cluster
        history = cluster.history
        history.note(cluster.world.now_s, HOST, f"sets {item.threshold} of {item.model} to {value} at {url}")
        body = msgspec.json.encode({"model": item.model, item.threshold: value})
        try:
            answer = await ask(process, "POST", f"{url}/busy_threshold", {}, PATIENCE_S, body)
        except (OSError, TimeoutError):
            return False
        if answer.status != OK:
            return False
        history.threshold_changed(cluster.world.now_s, item.model, item.threshold, value)
        return True
