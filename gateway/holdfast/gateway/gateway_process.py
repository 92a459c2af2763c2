"""A gateway's process: its follower, links and sessions, HTTP server, lease and facts, from the first to the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from prometheus_client import ProcessCollector

from holdfast.actors.follower import UNREADABLE, Follower
from holdfast.actors.identity import Identity
from holdfast.actors.leasing import LeaseSession, check_name_free
from holdfast.actors.metric_families import LEASE_AGE
from holdfast.actors.node_metrics import lease_age
from holdfast.actors.writer import FactWriter
from holdfast.core.cluster import ClusterState, MemberStatus
from holdfast.core.errors import LogUnavailable
from holdfast.core.events import GatewayJoined, GatewayLeft, GatewayStopping
from holdfast.gateway.addresses import advertised, bracketed
from holdfast.gateway.app import App, create_app
from holdfast.gateway.draining import GatewayDrain
from holdfast.gateway.http_server import HttpServer
from holdfast.gateway.lag import LogLag
from holdfast.gateway.machine import Machine
from holdfast.gateway.reporting import Planes, ReportingServing, WatchedLeases, WatchedLog
from holdfast.gateway.serving_metrics import show_serving
from holdfast.gateway.settings import GatewayProcessSettings, Settings
from holdfast.gateway.tracing import tracer_of
from holdfast.gateway.version import VERSION

FLUSH_TIMEOUT_S = 2.0
"""How long a gateway that ends waits for its last fact to reach the log."""

CATCH_UP_RETRY_S = 0.5

logger = logging.getLogger(__name__)


class Door(Protocol):
    """What lets HTTP requests in to an application."""

    def bind(self) -> None:
        """Check that the address can be had. Raises `Misuse` when it can't."""
        ...

    async def run(self) -> None:
        """Serve until cancelled, then let open requests end for a bounded time. Raises `WorldFailure`."""
        ...

    async def listening(self) -> None:
        """Wait until clients can connect. Raises `TimeoutError` if they never can."""
        ...


def http_server(app: App, settings: GatewayProcessSettings) -> Door:
    """The real door."""
    # The process's memory, processor time and open files, as all Prometheus clients call them.
    ProcessCollector(registry=app.metrics.ledger.registry)
    return HttpServer(app, settings.host, settings.port, settings.backlog, settings.send_buffer_bytes)


class GatewayProcess:
    """A gateway's actors: follower, links and sessions, HTTP, lease and facts."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        log: WatchedLog,
        leases: WatchedLeases,
        machine: Machine | None = None,
        door: Callable[[App, GatewayProcessSettings], Door] = http_server,
    ) -> None:
        machine = machine or Machine()
        self._settings = settings
        self._identity = identity
        self._leases = leases
        rng = machine.rng
        self._follower = Follower(log)
        self._facts = FactWriter(log, machine.clock, identity)
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
            settings.admission,
        )
        ledger = self._serving.ledger
        self._tracer = tracer_of(settings.tracing, settings.cluster, identity.name)
        app = self._app = create_app(
            self._serving, settings.http, identity.name, machine, ledger, self._gateways, self._tracer
        )
        show_serving(self._serving)
        lag = LogLag(log, self._follower)
        lag.show(ledger)
        ledger.read(LEASE_AGE, lease_age(self._session))
        self._planes = self._serving.planes = Planes({"log": lag, "leases": leases}, rng, machine.clock)
        self._planes.shown_in(ledger)
        self._drain = GatewayDrain(identity.name, settings, self._serving, self._follower, self._facts)
        self._http = door(app, settings.gateway)

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event | None = None) -> None:
        """Serve until `stop`, then let go of what is open, soon once `hurry` is set, then end."""
        self._http.bind()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._follow()),
                group.create_task(self._follower.writing(self._facts.run())),
                group.create_task(self._session.run()),
            ]
            if await self._caught_up(group, stop):
                known = self._follower.state.gateways.get(self._identity.name)
                await check_name_free(self._leases, self._identity, known)
                await self._take_part(group, tasks, stop, hurry or asyncio.Event())
            for task in tasks:
                task.cancel()
        await self._session.release()
        await self._tracer.close()

    async def _take_part(
        self, group: asyncio.TaskGroup, tasks: list[asyncio.Task[None]], stop: asyncio.Event, hurry: asyncio.Event
    ) -> None:
        """Serve until `stop`, and leave. What goes on to the very end is added to `tasks`."""
        tasks += [group.create_task(self._serving.run()), group.create_task(self._planes.run())]
        tasks.append(group.create_task(self._app.kinship.run()))
        self._drain.look()
        http = group.create_task(self._http.run())
        await self._http.listening()
        joined = self._joined = self._join()
        self._serving.standing.joined()
        tasks.append(group.create_task(self._rejoin_when_given_up()))
        obeying = group.create_task(self._drain.run())
        await stop.wait()
        leaving = self._facts.record(GatewayStopping(self._identity.name), joined)
        obeying.cancel()
        await self._drain.end(hurry)
        http.cancel()
        await asyncio.wait([http])
        self._facts.record(GatewayLeft(self._identity.name), leaving)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._facts.flush()

    async def _caught_up(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> bool:
        """Read all there is; False if told to stop before that: the log may be away for long."""
        reading, stopped = group.create_task(self._catch_up()), group.create_task(stop.wait())
        await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if reading.done():
            reading.result()
            return True
        reading.cancel()
        return False

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

    def _gateways(self) -> dict[str, str]:
        """Where the gateways are that may live, by the log."""
        alive = (MemberStatus.ALIVE, MemberStatus.STOPPING)
        gateways = self._follower.state.gateways.values()
        return {gateway.id: gateway.url for gateway in gateways if gateway.status in alive}

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

        # Where the log can't be read any more, nobody needs to know.
        with contextlib.suppress(*UNREADABLE):
            while True:
                state = await self._follower.until(given_up)
                logger.warning("this gateway was given up; joining again")
                self._facts.record(self._joining(), state.gateways[mine.name].event)
                # By the time that we look it may have been given up once more: no single state must be waited for.
                await self._follower.reached(await self._facts.flush())
