"""A node's judgement on one of its replicas: from its reports and the canary, what the log is told of its health.

A replica is unhealthy as long as any check fails, and that is told once, as is its end. Of one that has been well for
so long that every check had the time to fail, it is told only where its deployment had breakdowns before: that ends
their row. One that does not get ready in time has failed to start: nobody may wait for ever for a process that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, NoReturn

from holdfast.actors.canary import LOOK_S, SILENT, Canary, CanarySettings, Verdict
from holdfast.core.barren import NO_TOKEN
from holdfast.core.breakdowns import proven_s
from holdfast.core.cluster import DeploymentState
from holdfast.core.events import Fact, ReplicaHealthy, ReplicaUnhealthy

CHECK_HEALTH: Final = "check_health"
START: Final = "start"
"""Kinds of `ReplicaUnhealthy`."""


class ReplicaWatch:
    """Watches a replica from its start on. `record(fact, cause)` tells the log, unless the replica is stopping."""

    def __init__(
        self,
        cluster: str,
        node: str,
        replica: str,
        deployment: Callable[[], DeploymentState | None],
        record: Callable[[Fact, str], object],
    ) -> None:
        """`deployment()` is the replica's, as the log has it now; None where it is gone."""
        self._cluster = cluster
        self._node = node
        self._replica = replica
        self._deployment = deployment
        self._record = record
        self._address = ""
        self._cause = ""
        self._ready = asyncio.Event()
        self._failing: dict[str, str] = {}

    def ready(self, address: str, cause: str) -> None:
        """It listens there, as the event `cause` said."""
        self._address, self._cause = address, cause
        self._ready.set()

    def checked(self, message: str) -> None:
        """Its engine's own check fails for this reason; empty: it passes."""
        self._judge({CHECK_HEALTH: message})

    async def run(self, started: str) -> NoReturn:
        """Watch until cancelled a replica whose process was started, as the event says."""
        await self._get_ready(started)
        canary = Canary(
            self._cluster, self._node, self._replica, self._address, self._canary_settings, self._canary_tells
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(canary.run())
            group.create_task(self._end_rows())
        raise AssertionError("a watch has no end")

    async def _get_ready(self, started: str) -> None:
        """Wait until it is ready, and tell if that takes too long.

        Looks are counted rather than time: this process may stand still itself, for which nobody is to blame.
        """
        looks, late = 0, False
        while not self._ready.is_set():
            deployment = self._deployment()
            if deployment is not None and not late and looks * LOOK_S >= deployment.config.start_timeout_s:
                late = True
                message = f"it did not get ready within {deployment.config.start_timeout_s:g} s (start_timeout_s)"
                self._record(ReplicaUnhealthy(self._replica, self._node, START, message), started)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._ready.wait()
            looks += 1

    def _canary_settings(self) -> CanarySettings | None:
        deployment = self._deployment()
        if deployment is None or not deployment.config.canary:
            return None
        config = deployment.config
        return CanarySettings(config.canary_wait_s, config.canary_timeout_s, config.canary_prompt)

    def _canary_tells(self, verdict: Verdict) -> None:
        self._judge({kind: verdict.message if kind == verdict.kind else "" for kind in (SILENT, NO_TOKEN)})

    def _judge(self, checks: dict[str, str]) -> None:
        """Tell what has changed by these checks' messages."""
        before = next(iter(self._failing), None)
        for kind, message in checks.items():
            if message:
                self._failing[kind] = message
            else:
                self._failing.pop(kind, None)
        after = next(iter(self._failing), None)
        if after is not None and after != before:
            self._record(ReplicaUnhealthy(self._replica, self._node, after, self._failing[after]), self._cause)
        elif after is None and before is not None:
            self._record(ReplicaHealthy(self._replica, self._node), self._cause)

    async def _end_rows(self) -> NoReturn:
        """Say that the replica is well where its deployment's row of breakdowns has not grown for long enough."""
        row: tuple[int, int] | None = None
        while True:
            deployment = self._deployment()
            await asyncio.sleep(proven_s(deployment.config) if deployment is not None else 1.0)
            deployment = self._deployment()
            now = (deployment.breakdowns, deployment.broken_after) if deployment is not None else None
            if now is not None and now == row and now[0] and not self._failing:
                self._record(ReplicaHealthy(self._replica, self._node), self._cause)
            row = now
