"""What became of the attempts on one replica, as far as others must know: the deployment's rates, and its outliers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from holdfast.core.admission import Service

if TYPE_CHECKING:
    from holdfast.gateway.session import StreamRun


class LinkRecord:
    """Counts since `reset`: attempts that ended well or not, and the time to their first tokens (seconds)."""

    __slots__ = ("_service", "failed", "first_count", "first_sum_s", "well")

    def __init__(self, service: Service | None = None) -> None:
        self._service = service or Service()
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.well = self.failed = self.first_count = 0
        self.first_sum_s = 0.0

    def began(self, run: StreamRun) -> None:
        """The run's attempt is sent to the replica."""
        run.awaits_first = True
        self._service.began(run.claim.priority, run.began_s)

    def first_token(self, run: StreamRun) -> None:
        """The attempt's first token came."""
        run.awaits_first = False
        took_s = asyncio.get_running_loop().time() - run.began_s
        self._service.first_token(took_s)
        self.first_count += 1
        self.first_sum_s += took_s

    def ended(self, run: StreamRun) -> None:
        """The attempt left its place to others: it was finished, or nobody wants more."""
        self.well += 1
        if not run.awaits_first:
            self._service.stayed(asyncio.get_running_loop().time() - run.began_s)

    def broke(self, attempts: int = 1) -> None:
        """The replica lost so many attempts. One that it has no room for just now is none of them."""
        self.failed += attempts
