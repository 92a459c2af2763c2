"""What a gateway says of itself beyond its replicas: whether it still knows what happens in the cluster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from holdfast.actors.clock import SystemClock
from holdfast.actors.metric_families import PLANE_DOWN_SINCE, PLANE_UP
from holdfast.actors.metrics import Ledger
from holdfast.core.errors import LeasesUnavailable, LogUnavailable
from holdfast.core.ports import Clock, Leases, Log
from holdfast.core.thresholds import ThresholdChanges
from holdfast.gateway.backend import Health
from holdfast.gateway.busy_threshold import log_unavailable
from holdfast.gateway.serving import Serving


class Plane(Protocol):
    """The log or the leases, as both kinds of adapters show them."""

    @property
    def connected(self) -> bool: ...

    @property
    def down_since(self) -> float | None:
        """Time of the running loop."""
        ...


class WatchedLog(Log, Plane, Protocol):
    """A log that tells whether it is reached."""


class WatchedLeases(Leases, Plane, Protocol):
    """Leases that tell whether they are reached."""


class AskedPlane(Plane, Protocol):
    """A plane that can be asked how it stands."""

    async def status(self) -> object:
        """Bounded in time. Raises `LogUnavailable` or `LeasesUnavailable`."""
        ...


PROBE_INTERVAL_S = 2.0
"""Each plane is asked this often, times 0.75 to 1.25, in seconds: a gateway may have nothing else to ask it for long,
and a connection that stands doesn't tell that anybody answers on it."""

SLOW_S = 1.5
"""Servers that take longer to answer than this, in seconds, are held for down until they do."""


class Probe:
    """What one plane's answers say about it. `down_since` is time of the running loop, None while it is up."""

    def __init__(self, plane: AskedPlane, rng: random.Random) -> None:
        self._plane = plane
        self._rng = rng
        self._asked_s: float | None = None
        self._failed_s: float | None = None

    async def run(self) -> None:
        """Ask again and again until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._asked_s = loop.time()
            try:
                await self._plane.status()
            except (LogUnavailable, LeasesUnavailable):
                if self._failed_s is None:
                    self._failed_s = self._asked_s
            else:
                self._failed_s = None
            self._asked_s = None
            await asyncio.sleep(PROBE_INTERVAL_S * self._rng.uniform(0.75, 1.25))

    @property
    def down_since(self) -> float | None:
        now_s = asyncio.get_running_loop().time()
        unanswered_s = self._asked_s if self._asked_s is not None and now_s - self._asked_s > SLOW_S else None
        unconnected_s = None if self._plane.connected else self._plane.down_since or now_s
        return min((at for at in (unanswered_s, self._failed_s, unconnected_s) if at is not None), default=None)


class Planes:
    """Which of the planes are up: for people in `/health`, and for Prometheus."""

    def __init__(self, planes: Mapping[str, AskedPlane], rng: random.Random, clock: Clock) -> None:
        self._clock = clock
        self._probes = {name: Probe(plane, rng) for name, plane in planes.items()}

    async def run(self) -> None:
        """Keep asking until cancelled."""
        async with asyncio.TaskGroup() as group:
            for probe in self._probes.values():
                group.create_task(probe.run())

    def details(self) -> dict[str, Any]:
        """Each plane's state, and since when it is down (wall clock)."""
        return {
            name: {"up": True} if since is None else {"up": False, "down_since": since}
            for name, since in self._down_since().items()
        }

    def shown_in(self, ledger: Ledger) -> None:
        """Have a gateway's ledger read them."""
        ledger.read(PLANE_UP, lambda: [((name,), since is None) for name, since in self._down_since().items()])
        ledger.read(
            PLANE_DOWN_SINCE,
            lambda: [((name,), since.timestamp()) for name, since in self._down_since().items() if since is not None],
        )

    def _down_since(self) -> dict[str, datetime | None]:
        now, now_s = self._clock.now(), asyncio.get_running_loop().time()
        since = {name: probe.down_since for name, probe in self._probes.items()}
        return {name: None if at is None else now - timedelta(seconds=now_s - at) for name, at in since.items()}


class ReportingServing(Serving):
    """As `Serving`, with a report on the planes. A plane that is down is no reason to be unhealthy: streams go on."""

    planes = Planes({}, random.Random(), SystemClock())

    async def set_thresholds(self, model: str, changes: ThresholdChanges) -> None:
        """As `Backend.set_thresholds`; at once where the log is known to be away."""
        log = self.planes.details().get("log", {"up": True})
        if not log["up"]:
            raise log_unavailable("The log's servers don't answer: thresholds can't be changed until they do.")
        await super().set_thresholds(model, changes)

    def health(self) -> Health:
        """As `Backend.health`."""
        health = super().health()
        planes = self.planes.details()
        degraded = [f"the {name} servers don't answer" for name, told in planes.items() if not told["up"]]
        more = {"planes": planes, "degraded": degraded, "decisions_ignored": self._follower.state.ignored}
        return msgspec.structs.replace(health, details={**health.details, **more})
