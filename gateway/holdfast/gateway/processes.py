"""Where everything is wired together: a node process, a gateway process, and what tools need of either."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.actors.clock import SystemClock
from holdfast.actors.follower import UNREADABLE, Follower
from holdfast.actors.identity import Identity, new_incarnation
from holdfast.actors.launcher import ProcessLauncher
from holdfast.actors.leasing import LeaseSession, check_name_free
from holdfast.actors.node import Node, NodeSettings
from holdfast.actors.writer import FactWriter
from holdfast.core.cluster import ClusterState, MemberStatus
from holdfast.core.config import check_name
from holdfast.core.errors import LogUnavailable
from holdfast.core.events import GatewayJoined, GatewayLeft, GatewayStopping
from holdfast.gateway.addresses import advertised, bracketed
from holdfast.gateway.problems import HttpRefusal, Problem
from holdfast.gateway.serving import RETRY_AFTER_S
from holdfast.gateway.settings import Settings
from holdfast.gateway.version import VERSION
from holdfast.store.etcd import EtcdLeases
from holdfast.store.etcd_gateway import EtcdGateway
from holdfast.store.jetstream import JetStreamLog

if TYPE_CHECKING:
    from holdfast.gateway.reporting import WatchedLeases, WatchedLog

FLUSH_TIMEOUT_S = 2.0
"""How long a gateway that ends waits for its last fact to reach the log."""

CATCH_UP_RETRY_S = 0.5

logger = logging.getLogger(__name__)


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
async def await_log(settings: Settings, stop: asyncio.Event) -> AsyncIterator[JetStreamLog | None]:
    """As `open_log`, for as long as it takes; None when told to stop meanwhile. Raises `Misuse`."""
    opening = asyncio.create_task(_open_log(settings))
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


async def _open_log(settings: Settings) -> JetStreamLog:
    while True:
        try:
            return await JetStreamLog.open(settings.log_settings())
        except LogUnavailable as error:
            logger.warning("waiting for the log, without which nothing can start: %s", error)


@contextlib.asynccontextmanager
async def coming_leases(settings: Settings) -> AsyncIterator[EtcdLeases]:
    """The cluster's leases, which may be away: what uses them asks again. Wrong settings show at the first answer."""
    leases = EtcdLeases(EtcdGateway(settings.lease_settings()))
    try:
        yield leases
    finally:
        await leases.close()


async def run_node(settings: Settings, name: str, logs: Path, stop: asyncio.Event) -> None:
    """Run a node until `stop`. Raises `Superseded` and the store's errors."""
    identity = identify(settings, "node", name)
    node_settings = NodeSettings(
        version=VERSION,
        lease_ttl_s=settings.lease_ttl_s,
        slots=settings.node.slots,
        host=settings.node.host,
        advertise_host=advertised(settings.node.host, settings.node.advertise_host),
        heartbeat_interval_s=settings.node.heartbeat_interval_s,
    )
    async with coming_leases(settings) as leases, await_log(settings, stop) as log:
        if log is None:
            return
        node = Node(
            identity,
            node_settings,
            log=log,
            leases=leases,
            clock=SystemClock(),
            launcher=ProcessLauncher(logs),
            rng=random.Random(),
        )
        await node.run(stop)


async def run_gateway(settings: Settings, name: str, stop: asyncio.Event) -> None:
    """Run a gateway until `stop`. Raises the store's errors, and `Misuse` when its port is taken."""
    identity = identify(settings, "gateway", name)
    async with coming_leases(settings) as leases, await_log(settings, stop) as log:
        if log is not None:
            await GatewayProcess(settings, identity, log, leases).run(stop)


def stopping() -> HttpRefusal:
    """503: the gateway ends before the answer does. Another gateway can serve the request."""
    message = "This gateway is stopping; send the request again, to another gateway if there is one."
    return HttpRefusal(Problem(503, message, "gateway_stopping", retry_after_s=RETRY_AFTER_S))


class GatewayProcess:
    """A gateway's actors: follower, links and sessions, HTTP, lease and facts."""

    def __init__(self, settings: Settings, identity: Identity, log: WatchedLog, leases: WatchedLeases) -> None:
        # Imported here: nodes and tools use this module too, and none of them needs an HTTP server.
        from holdfast.gateway.app import create_app
        from holdfast.gateway.http_server import HttpServer
        from holdfast.gateway.reporting import Planes, ReportingServing
        from holdfast.gateway.serving_metrics import ServingMetrics

        self._settings = settings
        self._identity = identity
        self._leases = leases
        rng = random.Random()
        self._follower = Follower(log)
        self._facts = FactWriter(log, SystemClock(), identity)
        keys = {identity.lease_key: identity.lease_value()}
        self._session = LeaseSession(leases, settings.lease_ttl_s, keys, rng)
        self._joined: str | None = None
        self._serving = ReportingServing(
            self._follower,
            settings.cluster,
            identity.name,
            settings.serving,
            rng,
            self._facts.note,
            settings.node.heartbeat_interval_s,
        )
        app = create_app(self._serving, settings.http, identity.name)
        app.metrics.registry.register(ServingMetrics(self._serving))
        self._planes = self._serving.planes = Planes({"log": log, "leases": leases}, rng)
        app.metrics.registry.register(self._planes)
        self._http = HttpServer(app, settings.gateway.host, settings.gateway.port, settings.gateway.backlog)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then let streams go on for the drain timeout, then end."""
        self._http.bind()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._follow()),
                group.create_task(self._follower.writing(self._facts.run())),
                group.create_task(self._session.run()),
            ]
            await self._catch_up()
            known = self._follower.state.gateways.get(self._identity.name)
            await check_name_free(self._leases, self._identity, known)
            tasks += [group.create_task(self._serving.run()), group.create_task(self._planes.run())]
            http = group.create_task(self._http.run())
            await self._http.listening()
            joined = self._joined = self._join()
            tasks.append(group.create_task(self._rejoin_when_given_up()))
            await stop.wait()
            leaving = self._facts.record(GatewayStopping(self._identity.name), joined)
            await self._drain()
            http.cancel()
            await asyncio.wait([http])
            self._facts.record(GatewayLeft(self._identity.name), leaving)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._facts.flush(), FLUSH_TIMEOUT_S)
            for task in tasks:
                task.cancel()
        await self._session.release()

    async def _follow(self) -> None:
        """Fold the log. Where it can't be read on, the gateway serves what it knows."""
        try:
            await self._follower.run()
        except UNREADABLE as error:
            if self._joined is None:
                raise
            logger.error("%s. This gateway serves on with the replicas that it knows", error)

    async def _catch_up(self) -> None:
        while True:
            try:
                return await self._follower.catch_up()
            except LogUnavailable as error:
                logger.warning("can't read the log yet: %s", error)
                await asyncio.sleep(CATCH_UP_RETRY_S)

    def _join(self) -> str:
        return self._facts.record(self._joining(), None)

    def _joining(self) -> GatewayJoined:
        gateway, identity = self._settings.gateway, self._identity
        url = f"http://{bracketed(advertised(gateway.host, gateway.advertise_host))}:{gateway.port}"
        return GatewayJoined(identity.name, identity.host, identity.pid, url, VERSION)

    async def _rejoin_when_given_up(self) -> None:
        """A gateway that stood still for longer than its lease was given up; it is back, so it says so."""
        mine = self._identity

        def given_up(state: ClusterState) -> bool:
            gateway = state.gateways.get(mine.name)
            return (
                gateway is not None and gateway.incarnation == mine.incarnation and gateway.status is MemberStatus.LOST
            )

        while True:
            state = await self._follower.until(given_up)
            logger.warning("this gateway was given up; joining again")
            self._facts.record(self._joining(), state.gateways[mine.name].event)
            await self._facts.flush()
            await self._follower.until(lambda state: not given_up(state))

    async def _drain(self) -> None:
        """Let streams go on for a while; what is open then is told to go elsewhere."""
        self._serving.draining = True
        try:
            async with asyncio.timeout(self._settings.gateway.drain_timeout_s):
                await self._serving.idle()
        except TimeoutError:
            self._serving.fail_all(stopping())
