"""Where everything is wired together: a node process, a gateway process, and what tools need of either."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.actors.heap import keep_for_good
from holdfast.actors.identity import Identity, new_incarnation
from holdfast.actors.launcher import ProcessLauncher
from holdfast.actors.node import Node, NodeSettings
from holdfast.core.config import check_name
from holdfast.core.errors import LogUnavailable
from holdfast.core.ports import Launcher
from holdfast.gateway.addresses import advertised
from holdfast.gateway.machine import Machine
from holdfast.gateway.settings import GatewayProcessSettings, Settings
from holdfast.gateway.version import VERSION
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.jetstream import JetStreamLog
from holdfast.store.log_files import bounded
from holdfast.store.settings import EtcdSettings, JetStreamSettings

if TYPE_CHECKING:
    from holdfast.gateway.app import App
    from holdfast.gateway.gateway_process import Door, GatewayProcess
    from holdfast.gateway.reporting import WatchedLeases, WatchedLog

HURRY = signal.SIGUSR2
"""Tells a gateway to end as SIGTERM does, and soon: `holdfast up`, for which somebody waits, ends its gateways so."""

logger = logging.getLogger(__name__)


def etcd_leases(settings: EtcdSettings) -> WatchedLeases:
    """Leases on etcd, which are asked for only when they are used."""
    return EtcdLeases(EtcdGateway(settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """How a process gets to the log and the leases. The defaults are the real servers.

    `open_log` raises `LogUnavailable` when nobody answers; `leases` returns at once, whoever answers.
    """

    open_log: Callable[[JetStreamSettings], Awaitable[WatchedLog]] = JetStreamLog.open
    leases: Callable[[EtcdSettings], WatchedLeases] = etcd_leases


REAL_STORES = Stores()


def identify(settings: Settings, role: str, name: str) -> Identity:
    """A new incarnation of an actor in this process. Raises `InvalidConfig` for a bad name."""
    check_name(role, name)
    return Identity(settings.cluster, role, name, new_incarnation(), socket.gethostname(), os.getpid(), place())


def place() -> str:
    """Where a process id means one process: this boot of this kernel, and our namespace of process ids.

    Host names don't tell: machines may share one, and so may containers, where everybody's process id is 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


@contextlib.asynccontextmanager
async def open_log(settings: Settings) -> AsyncIterator[JetStreamLog]:
    """The cluster's log. Raises `LogUnavailable`, `IncompatibleServer`."""
    log = await JetStreamLog.open(settings.log_settings())
    try:
        yield log
    finally:
        await log.close()


@contextlib.asynccontextmanager
async def open_leases(settings: Settings) -> AsyncIterator[EtcdLeases]:
    """The cluster's leases. Raises `LeasesUnavailable`, `IncompatibleServer`."""
    leases = await EtcdLeases.open(settings.lease_settings())
    try:
        yield leases
    finally:
        await leases.close()


@contextlib.asynccontextmanager
async def await_log(
    settings: Settings, stop: asyncio.Event, stores: Stores = REAL_STORES
) -> AsyncIterator[WatchedLog | None]:
    """As `open_log`, for as long as it takes; None when told to stop meanwhile. Raises `Misuse`."""
    opening = asyncio.create_task(_open_log(settings, stores))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait({opening})
    if opening.cancelled():
        yield None
        return
    log = opening.result()
    try:
        yield log
    finally:
        await log.close()


async def _open_log(settings: Settings, stores: Stores) -> WatchedLog:
    while True:
        try:
            return await stores.open_log(settings.log_settings())
        except LogUnavailable as error:
            logger.warning("waiting for the log, without which nothing can start: %s", error)


@contextlib.asynccontextmanager
async def coming_leases(settings: Settings, stores: Stores = REAL_STORES) -> AsyncIterator[WatchedLeases]:
    """The cluster's leases, which may be away: what uses them asks again. Wrong settings show at the first answer."""
    leases = stores.leases(settings.lease_settings())
    try:
        yield leases
    finally:
        await leases.close()


async def run_node(settings: Settings, name: str, logs: Path, stop: asyncio.Event) -> None:
    """Run a node until `stop`. Raises `Superseded` and the store's errors."""
    identity = identify(settings, "node", name)
    launcher = ProcessLauncher(logs)
    keep_for_good()
    async with bounded(launcher.logs):
        await be_node(settings, identity, launcher, stop, REAL_STORES, Machine())


async def run_gateway(settings: Settings, name: str, stop: asyncio.Event, hurry: asyncio.Event | None = None) -> None:
    """Run a gateway until `stop`; once `hurry` is set it takes little time to end.

    Raises the store's errors, and `Misuse` when its port is taken.
    """
    # Imported here: nodes and tools use this module too, and none of them needs an HTTP server.
    from holdfast.gateway.gateway_process import http_server

    keep_for_good()
    await be_gateway(
        settings, identify(settings, "gateway", name), http_server, stop, REAL_STORES, Machine(), hurry=hurry
    )


async def be_node(
    settings: Settings,
    identity: Identity,
    launcher: Launcher,
    stop: asyncio.Event,
    stores: Stores,
    machine: Machine,
    made: Callable[[Node], object] = lambda _node: None,
) -> None:
    """As `run_node`, wherever it is: all that it takes from outside is given. `made(node)` is for who looks into it."""
    node_settings = NodeSettings(
        version=VERSION,
        lease_ttl_s=settings.lease_ttl_s,
        slots=settings.node.slots,
        host=settings.node.host,
        advertise_host=advertised(settings.node.host, settings.node.advertise_host),
        heartbeat_interval_s=settings.node.heartbeat_interval_s,
        system_port_first=settings.node.system_port_first,
        cut_off_timeout_s=settings.node.cut_off_timeout_s,
        drain_timeout_s=settings.node.drain_timeout_s,
        otlp_endpoint=settings.tracing.otlp_endpoint or "",
        xid_file=settings.node.xid_file or "",
    )
    async with coming_leases(settings, stores) as leases, await_log(settings, stop, stores) as log:
        if log is None:
            return
        node = Node(
            identity,
            node_settings,
            log=log,
            leases=leases,
            clock=machine.clock,
            launcher=launcher,
            rng=machine.rng,
        )
        made(node)
        await node.run(stop)


async def be_gateway(
    settings: Settings,
    identity: Identity,
    door: Callable[[App, GatewayProcessSettings], Door],
    stop: asyncio.Event,
    stores: Stores,
    machine: Machine,
    made: Callable[[GatewayProcess], object] = lambda _gateway: None,
    hurry: asyncio.Event | None = None,
) -> None:
    """As `run_gateway`, wherever it is: all that it takes from outside is given. `made` as in `be_node`."""
    from holdfast.gateway.gateway_process import GatewayProcess

    async with coming_leases(settings, stores) as leases, await_log(settings, stop, stores) as log:
        if log is not None:
            gateway = GatewayProcess(settings, identity, log, leases, machine, door)
            made(gateway)
            await gateway.run(stop, hurry)
