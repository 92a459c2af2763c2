"""How far a gateway is behind the log: noted whenever the log is asked how it stands."""

from __future__ import annotations

import asyncio

from holdfast.actors.follower import Follower
from holdfast.actors.metric_families import LOG_LAG, LOG_LAG_SECONDS, LOG_SEQUENCE
from holdfast.actors.metrics import Ledger
from holdfast.core.ports import LogStatus
from holdfast.gateway.reporting import WatchedLog


class LogLag:
    """The log as an `AskedPlane`, and what its answers say about the follower."""

    def __init__(self, log: WatchedLog, follower: Follower) -> None:
        self._log = log
        self._follower = follower
        self._told = 0
        self._behind_since_s: float | None = None

    @property
    def connected(self) -> bool:
        """As `Plane.connected`."""
        return self._log.connected

    @property
    def down_since(self) -> float | None:
        """As `Plane.down_since`."""
        return self._log.down_since

    async def status(self) -> LogStatus:
        """As `Log.status`."""
        status = await self._log.status()
        if not self.sequences:
            self._behind_since_s = None
        self._told = status.last_sequence
        if self.sequences and self._behind_since_s is None:
            self._behind_since_s = asyncio.get_running_loop().time()
        return status

    @property
    def sequences(self) -> int:
        """Events that the log told of and the follower has not read."""
        return max(0, self._told - self._follower.state.sequence)

    @property
    def seconds(self) -> float:
        """For how long there have been some, whenever the log was asked."""
        if not self.sequences or self._behind_since_s is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._behind_since_s

    def show(self, ledger: Ledger) -> None:
        """Have a gateway's ledger read it."""
        ledger.read(LOG_LAG, lambda: [((), self.sequences)])
        ledger.read(LOG_LAG_SECONDS, lambda: [((), self.seconds)])
        ledger.read(LOG_SEQUENCE, lambda: [((), self._follower.state.sequence)])
