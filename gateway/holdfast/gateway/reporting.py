"""What a gateway says of itself beyond its replicas: whether it still knows what happens in the cluster."""

from __future__ import annotations

import msgspec

from holdfast.gateway.backend import Health
from holdfast.gateway.serving import Serving


class ReportingServing(Serving):
    """As `Serving`, with a report on the log."""

    def health(self) -> Health:
        """As `Backend.health`; a gateway that can't read the log serves on, but should be looked after."""
        health = super().health()
        unreadable = self._follower.unreadable
        if unreadable is None:
            return health
        return msgspec.structs.replace(health, healthy=False, reasons=[str(unreadable), *health.reasons])
