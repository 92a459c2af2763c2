"""Whether servers that run already can be reached."""

from __future__ import annotations

import contextlib

from holdfast.gateway.settings import Settings
from holdfast.store.etcd import EtcdLeases
from holdfast.store.nats_connection import Session


async def reach_log(settings: Settings, timeout_s: float) -> str:
    """The URL of the log server that answers, and its version. Raises `LogUnavailable`, `Misuse`."""
    session = Session(settings.log_settings().model_copy(update={"open_timeout_s": timeout_s}))
    try:
        await session.open()
        connection = await session.connection(timeout_s)
        return f"{connection.url}, version {connection.server_version}"
    finally:
        await session.close()


async def reach_leases(settings: Settings, timeout_s: float) -> str:
    """The same of the lease servers. Raises `LeasesUnavailable`, `Misuse`."""
    leases = await EtcdLeases.open(settings.lease_settings().model_copy(update={"request_timeout_s": timeout_s}))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(leases.close)
        status = await leases.status()
        return f"{status.url}, version {status.version}"
