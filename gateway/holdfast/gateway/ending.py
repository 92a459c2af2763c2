"""Ends the leases of nodes and gateways whose process has ended: for `holdfast up`, and for other service managers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from holdfast.actors.ended import end_leases
from holdfast.actors.identity import Holder
from holdfast.core.errors import HoldfastError
from holdfast.gateway.processes import open_leases, place
from holdfast.gateway.settings import Settings

TIMEOUT_S = 3.0
"""Lease servers that don't answer within this time, in seconds, end the lease by its time to live."""

logger = logging.getLogger(__name__)


async def end_lease(settings: Settings, role: str, name: str, pid: int) -> None:
    """End the lease of our child that was this process. Bounded in time; a failure is only logged."""
    try:
        async with asyncio.timeout(TIMEOUT_S), open_leases(settings) as leases:
            await end_leases(leases, role, name, lambda holder: _is_here(holder) and holder.pid == pid)
    except (HoldfastError, TimeoutError) as error:
        reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
        logger.warning("the lease of %s (process %d) ends with its time to live: %s", name, pid, reason)


async def end_leases_of_dead(settings: Settings, role: str, name: str) -> list[Holder]:
    """End the leases of this member's processes on this machine that exist no more; those.

    Raises `LeasesUnavailable`, `Misuse`.
    """
    async with open_leases(settings) as leases:
        return await end_leases(leases, role, name, lambda holder: _is_here(holder) and not _exists(holder.pid))


def _is_here(holder: Holder) -> bool:
    """Whether its process id means to us what it means to itself. One that does not tell its place is left alone."""
    return holder.host == socket.gethostname() and bool(holder.place) and holder.place == place()


def _exists(pid: int) -> bool:
    """Whether there is such a process, anybody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
