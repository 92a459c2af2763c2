"""Whether servers can be reached, and whether clusters of them can serve."""

from __future__ import annotations

import asyncio
import contextlib

from holdfast.gateway.settings import Settings
from holdfast.store.etcd import EtcdLeases
from holdfast.store.jetstream_api import JetStreamApi
from holdfast.store.nats_session import Session


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


async def await_leader(settings: Settings, timeout_s: float) -> None:
    """Wait until both kinds of servers have a majority and a leader. Raises `LogUnavailable`, `LeasesUnavailable`."""
    await asyncio.gather(_await_log_leader(settings, timeout_s), reach_leases(settings, timeout_s))


async def _await_log_leader(settings: Settings, timeout_s: float) -> None:
    """In a cluster only the leader of JetStream's meta group answers for the account."""
    log_settings = settings.log_settings().model_copy(update={"open_timeout_s": timeout_s})
    session = Session(log_settings)
    await session.open()
    try:
        api = JetStreamApi(session, log_settings)
        api.opened = True  # we wrote their configuration: what isn't enabled yet will be
        await api.call("INFO", timeout_s=timeout_s)
    finally:
        await session.close()
