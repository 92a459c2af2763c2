"""Ends the leases of nodes and gateways whose process has ended: for `holdfast up`, and for other service managers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from holdfast.actors.ended import end_leases
from holdfast.actors.identity import Holder
from holdfast.core.errors import HoldfastError
from holdfast.gateway.processes import open_leases
from holdfast.gateway.settings import Settings

TIMEOUT_S = 3.0
"""Lease servers that don't answer within this time, in seconds, end the lease by its time to live."""

logger = logging.getLogger(__name__)


async def end_lease(settings: Settings, role: str, name: str, pid: int) -> None:
    """End the lease of our child that was this process. Bounded in time; a failure is only logged."""
    host = socket.gethostname()
    try:
        async with asyncio.timeout(TIMEOUT_S), open_leases(settings) as leases:
            await end_leases(leases, role, name, lambda holder: (holder.host, holder.pid) == (host, pid))
    except (HoldfastError, TimeoutError) as error:
        reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
        logger.warning("the lease of %s (process %d) ends with its time to live: %s", name, pid, reason)


async def end_leases_of_dead(settings: Settings, role: str, name: str) -> list[Holder]:
    """End the leases of this member's processes on this machine that exist no more; those.

    Raises `LeasesUnavailable`, `Misuse`.
    """
    host = socket.gethostname()
    async with open_leases(settings) as leases:
        return await end_leases(leases, role, name, lambda holder: holder.host == host and not _exists(holder.pid))


def _exists(pid: int) -> bool:
    """Whether there is such a process, anybody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
