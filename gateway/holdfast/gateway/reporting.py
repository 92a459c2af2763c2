"""What a gateway says of itself beyond its replicas: whether it still knows what happens in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.core.ports import Leases, Log
from holdfast.gateway.backend import Health
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


class Planes(Collector):
    """Which of the planes are up: for people in `/health`, and for Prometheus."""

    def __init__(self, planes: Mapping[str, Plane]) -> None:
        self._planes = planes

    def details(self) -> dict[str, Any]:
        """Each plane's state, and since when it is down (wall clock)."""
        return {name: _told(plane) for name, plane in self._planes.items()}

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at every scrape."""
        text = "Whether the plane's servers answer this gateway."
        up = GaugeMetricFamily("holdfast_plane_up", text, labels=["plane"])
        for name, plane in self._planes.items():
            up.add_metric([name], plane.connected)
        yield up


def _told(plane: Plane) -> dict[str, Any]:
    if plane.connected or plane.down_since is None:
        return {"up": plane.connected}
    down_s = asyncio.get_running_loop().time() - plane.down_since
    return {"up": False, "down_since": datetime.now(UTC) - timedelta(seconds=down_s)}


class ReportingServing(Serving):
    """As `Serving`, with a report on the planes. A plane that is down is no reason to be unhealthy: streams go on."""

    planes = Planes({})

    def health(self) -> Health:
        """As `Backend.health`."""
        health = super().health()
        planes = self.planes.details()
        degraded = [f"the {name} servers don't answer" for name, told in planes.items() if not told["up"]]
        more = {"planes": planes, "degraded": degraded, "decisions_ignored": self._follower.state.ignored}
        return msgspec.structs.replace(health, details={**health.details, **more})
