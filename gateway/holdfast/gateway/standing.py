"""Where a gateway stands, by its own account: what `/health` says of it, and why it takes no requests."""

from __future__ import annotations

import asyncio

from holdfast.core.errors import GatewayStopping
from holdfast.core.status import GatewayStatus

RETRY_AFTER_S = 1.0
"""A client without another gateway may try again after so long (seconds)."""

STARTING_S = 5.0
"""A gateway that has joined is starting for so long at most, in seconds, and until it can serve for the first time."""


def stopping(model: str = "") -> GatewayStopping:
    """503: the gateway takes no requests, or ends before the answer does. Another gateway can serve the request.

    `model` is as in `Overloaded`.
    """
    message = "This gateway is stopping; send the request again, to another gateway if there is one."
    return GatewayStopping(message, RETRY_AFTER_S, model=model)


class Standing:
    """STARTING, HEALTHY or UNHEALTHY, DRAINING, DRAINED. `why` is why it drains, for people."""

    def __init__(self) -> None:
        self.draining = False
        self.drained = False
        self.why = "it is shutting down"
        self._starting_until_s: float | None = None
        self._has_served = False

    def joined(self) -> None:
        """It is part of the cluster from now on."""
        self._starting_until_s = asyncio.get_running_loop().time() + STARTING_S

    @property
    def reasons(self) -> list[str]:
        """Why it takes no requests, whatever its replicas are like."""
        return [self.why] if self.draining else []

    def state(self, *, healthy: bool) -> GatewayStatus:
        """`healthy`: whether it can serve all that should be served."""
        if self.draining:
            return GatewayStatus.DRAINED if self.drained else GatewayStatus.DRAINING
        if healthy:
            self._has_served = True
            return GatewayStatus.HEALTHY
        until_s = self._starting_until_s
        starting = until_s is None or (not self._has_served and asyncio.get_running_loop().time() < until_s)
        return GatewayStatus.STARTING if starting else GatewayStatus.UNHEALTHY
