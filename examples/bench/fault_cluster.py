"""The cluster that `bench faults` does its worst to: `holdfast up`, servers that nobody else restarts, a far node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx
import msgspec

from examples.bench.cluster import START_TIMEOUT_S, STOP_TIMEOUT_S
from examples.bench.silence import Direction, SilentNetwork
from holdfast.actors.clock import SystemClock
from holdfast.actors.follower import Follower
from holdfast.actors.operator import Operator
from holdfast.core.cluster import ClusterState, GatewayState, NodeState, ReplicaState, ReplicaStatus
from holdfast.core.events import Record, ReplicaSuspected, StreamsMigrated
from holdfast.gateway.goal import SHIPPED_MODEL_NAME, Wish, application_for
from holdfast.gateway.leftovers import MARK, kill_marked
from holdfast.gateway.processes import identify, open_log
from holdfast.gateway.settings import Settings, load_settings
from holdfast.store.embedded import ChildProcess, free_ports
from holdfast.store.embedded_cluster import Count, etcd_servers, nats_servers

ITL_MS = 6
LOOK_S = 0.1
"""How often gateways are asked how many replicas they have (seconds). Each answer costs them some 2 ms."""

WAIT_TIMEOUT_S = 60.0

FAR_HOST = "127.0.0.2"
NEAR_HOST = "127.0.0.1"
FAR_NODE = "node-2"

READY_LINE = "Holdfast serves on"

LEFT = (StreamsMigrated, ReplicaSuspected)
"""What gateways say of streams that leave a replica: its connection or the stream broke, or it is suspected."""


class Shape(msgspec.Struct, frozen=True):
    """What to start; `servers` of each kind. With `far` the second node is behind a network that can fall silent.

    `deployment`: settings of the deployment that are not the default.
    """

    engine: Literal["mock", "torch"] = "mock"
    replicas: int = 4
    nodes: int = 2
    gateways: int = 2
    servers: Count = 1
    far: bool = False
    deployment: dict[str, float] = {}

    @property
    def wish(self) -> Wish:
        """What is deployed."""
        arguments = json.dumps({"itl_ms": ITL_MS, "faults": True}) if self.engine == "mock" else "{}"
        return Wish(self.replicas, self.engine, arguments, json.dumps(self.deployment))

    @property
    def model(self) -> str:
        """What clients ask for."""
        return "mock" if self.engine == "mock" else SHIPPED_MODEL_NAME


class FaultCluster:
    """A cluster that runs: how to reach it, what its log says, and its servers."""

    def __init__(
        self,
        shape: Shape,
        settings: Settings,
        urls: list[str],
        follower: Follower,
        servers: dict[str, list[ChildProcess]],
        network: SilentNetwork,
    ) -> None:
        self.shape = shape
        self._settings = settings
        self.urls = urls
        self.servers = servers
        self.network = network
        self.records: list[Record] = []
        self._follower = follower
        follower.observe(lambda record, _state: self.records.append(record))

    @property
    def state(self) -> ClusterState:
        """What the log says now."""
        return self._follower.state

    async def until(self, predicate: Callable[[ClusterState], bool]) -> None:
        """Wait until the log says so. Raises `SystemExit`."""
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await self._follower.until(predicate)
        except TimeoutError:
            raise SystemExit(f"what was waited for was not in the log within {WAIT_TIMEOUT_S:g} s") from None

    def operating(self) -> contextlib.AbstractAsyncContextManager[Operator]:
        """Somebody who can ask for drains, as `holdfast drain` does: one more Python would cost the streams pauses."""
        return operating(self._settings, self._follower)

    def running(self) -> list[ReplicaState]:
        """The replicas that run, oldest first."""
        return [one for one in self.state.replicas.values() if one.status is ReplicaStatus.RUNNING]

    def migrated(self, since: datetime) -> int:
        """How often a stream has left a replica, as far as gateways told the log."""
        events = [record.event for record in self.records if record.event.time >= since]
        return sum(one.payload.streams for one in events if isinstance(one.payload, LEFT))

    def leader(self) -> NodeState:
        """The node that leads."""
        assert self.state.leader is not None
        return self.state.nodes[self.state.leader]

    def gateway(self, number: int) -> GatewayState:
        """A gateway, counted from 0."""
        return self.state.gateways[f"gateway-{number + 1}"]


class Strength:
    """Asks the gateways all the time how many replicas they have, and keeps when that was too few last."""

    def __init__(self, urls: Iterable[str], replicas: int) -> None:
        self._urls = list(urls)
        self._replicas = replicas
        self._whole_since_s: float | None = None
        self.weak_s: float | None = None
        """When some gateway last lacked a replica, or did not answer (monotonic); None if that never was."""

    async def run(self) -> None:
        """Look until cancelled."""
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            while True:
                ready = await asyncio.gather(*(replicas_ready(client, url) for url in self._urls))
                now_s = time.monotonic()
                if min(ready) < self._replicas:
                    self.weak_s, self._whole_since_s = now_s, None
                elif self._whole_since_s is None:
                    self._whole_since_s = now_s
                await asyncio.sleep(LOOK_S)

    async def settled(self, after_s: float, for_s: float, timeout_s: float) -> None:
        """Wait until all has been well for so long after a time. Raises `SystemExit`."""
        deadline_s = time.monotonic() + timeout_s
        while self._whole_since_s is None or time.monotonic() - max(self._whole_since_s, after_s) < for_s:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the cluster was not at full strength again within {timeout_s:g} s")
            await asyncio.sleep(LOOK_S)


def cpu_seconds() -> tuple[float, float]:
    """How long this machine's cores worked, for anybody, and how long there were cores at all (seconds, summed)."""
    user, nice, system, idle, iowait, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    worked = user + nice + system + sum(others)
    ticks = os.sysconf("SC_CLK_TCK")
    return worked / ticks, (worked + idle + iowait) / ticks


async def replicas_ready(client: httpx.AsyncClient, url: str) -> int:
    """How many replicas the gateway can send streams to; -1 while it does not answer."""
    try:
        models = (await client.get(f"{url}/health")).json()["details"]["models"].values()
    except (httpx.HTTPError, ValueError):
        return -1
    return sum(model["replicas_ready"] for model in models)


@contextlib.asynccontextmanager
async def fault_cluster(shape: Shape) -> AsyncIterator[FaultCluster]:
    """A cluster of its own with all its replicas, and nothing of it left at the end. Raises `SystemExit`."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        servers = await _start_servers(stack, shape.servers, directory)
        settings = load_settings(
            nats={"urls": tuple(server.url for server in servers["nats"]), "replicas": shape.servers},
            etcd={"endpoints": tuple(server.url for server in servers["etcd"])},
        )
        network = await stack.enter_async_context(SilentNetwork())
        first = free_ports(shape.gateways)
        urls = [f"http://{NEAR_HOST}:{first + number}" for number in range(shape.gateways)]
        up = await stack.enter_async_context(_up(shape, settings, first, directory))
        follower = await stack.enter_async_context(following(settings))
        if shape.far:
            await stack.enter_async_context(far_node(settings, follower, network, directory / "data"))
            await deploy(settings, follower, shape.wish)
        await _all_ready(urls, shape.replicas, up)
        yield FaultCluster(shape, settings, urls, follower, servers, network)


async def _start_servers(
    stack: contextlib.AsyncExitStack, count: Count, directory: Path
) -> dict[str, list[ChildProcess]]:
    """Log and lease servers, which the stack stops, frozen ones too. Nobody but the bench starts them again."""
    servers = {"nats": nats_servers(directory / "nats", count), "etcd": etcd_servers(directory / "etcd", count)}
    both = [*servers["nats"], *servers["etcd"]]
    for server in both:
        stack.push_async_callback(server.stop)
        stack.callback(_thaw, server)
    await asyncio.gather(*(server.start() for server in both))
    return servers


@contextlib.asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Follower]:
    """The log as it is and as it goes on, whatever happens to its server."""
    async with open_log(settings) as log:
        follower = Follower(log)
        task = asyncio.create_task(follower.run())
        try:
            await follower.catch_up()
            yield follower
        finally:
            task.cancel()
            await asyncio.wait([task])


async def deploy(settings: Settings, follower: Follower, wish: Wish) -> None:
    """Ask for replicas, as `holdfast up` does once its nodes have joined."""
    async with operating(settings, follower) as operator:
        await operator.deploy(application_for(wish, None))


@contextlib.asynccontextmanager
async def operating(settings: Settings, follower: Follower) -> AsyncIterator[Operator]:
    """Somebody who asks things of the cluster."""
    async with open_log(settings) as log:
        yield Operator(log, SystemClock(), identify(settings, "operator", "bench"), follower)


@contextlib.asynccontextmanager
async def far_node(
    settings: Settings, follower: Follower, network: SilentNetwork, data_dir: Path, *, only_log: bool = False
) -> AsyncIterator[ChildProcess]:
    """One more node of a cluster of `holdfast up`, behind the network: itself and its replicas. It has joined.

    Its replicas listen on 127.0.0.1 and are reached by 127.0.0.2, where the network's relays are. It reaches its
    servers through relays too. With `only_log` nothing but the log is behind the network. `up` ends what is left of
    it, by its mark.
    """
    nats, etcd = (urlsplit(one) for one in (settings.nats.urls[0], settings.etcd.endpoints[0]))
    through = {"HOLDFAST_ETCD__ENDPOINTS": json.dumps([etcd.geturl()])}
    for part, url in (("NATS__URLS", nats), ("ETCD__ENDPOINTS", etcd))[: 1 if only_log else 2]:
        to = (url.hostname or NEAR_HOST, url.port or 0)
        host, port = network.relay((FAR_HOST, 0), to, Direction.OUT)
        through[f"HOLDFAST_{part}"] = json.dumps([f"{url.scheme}://{host}:{port}"])
    mine = {
        "HOLDFAST_CLUSTER": settings.cluster,
        "HOLDFAST_LEASE_TTL_S": f"{settings.lease_ttl_s:g}",
        "HOLDFAST_NODE__HOST": NEAR_HOST,
        "HOLDFAST_NODE__ADVERTISE_HOST": NEAR_HOST if only_log else FAR_HOST,
        "HOLDFAST_NODE__CUT_OFF_TIMEOUT_S": f"{settings.node.cut_off_timeout_s:g}",
        MARK: str(data_dir),
    }
    logs = data_dir / "logs"
    process = ChildProcess(
        FAR_NODE,
        [sys.executable, "-m", "holdfast.gateway.cli", "node", FAR_NODE, "--logs", str(logs)],
        url="",
        log_path=logs / f"{FAR_NODE}.log",
        ready=_at_once,
        environment=plain_environment() | through | mine,
    )
    relaying = asyncio.create_task(_relay_replicas(follower, network))
    try:
        async with process:
            async with asyncio.timeout(START_TIMEOUT_S):
                await follower.until(lambda state: FAR_NODE in state.nodes)
            yield process
    finally:
        relaying.cancel()
        await asyncio.wait([relaying])


def plain_environment() -> dict[str, str]:
    """The environment without settings of Holdfast."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


async def _relay_replicas(follower: Follower, network: SilentNetwork) -> None:
    """Relay to every replica that the far node has, as soon as the log tells its address."""
    while True:
        for replica in follower.state.replicas.values():
            if replica.node == FAR_NODE and replica.address:
                port = int(replica.address.rpartition(":")[2])
                network.relay((FAR_HOST, port), (NEAR_HOST, port), Direction.IN)
        await follower.change()


@contextlib.asynccontextmanager
async def _up(
    shape: Shape, settings: Settings, port: int, directory: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`holdfast up`, once it says that it serves. With a far node it deploys nothing yet."""
    nodes, replicas = (1, 0) if shape.far else (shape.nodes, shape.replicas)
    wish, log, data_dir = shape.wish, directory / "up.log", directory / "data"
    command = [sys.executable, "-m", "holdfast.gateway.cli", "up", "--data-dir", str(data_dir), "--port", str(port)]
    command += ["--engine", shape.engine, "--engine-args", wish.engine_args or "{}", "--replicas", str(replicas)]
    command += ["--deployment-args", wish.deployment_args or "{}"]
    command += ["--nodes", str(nodes), "--gateways", str(shape.gateways)]
    command += ["--nats", ",".join(settings.nats.urls), "--etcd", ",".join(settings.etcd.endpoints)]
    environment = plain_environment() | {"HOLDFAST_NATS__REPLICAS": str(settings.nats.replicas)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while READY_LINE not in log.read_text():
            if process.returncode is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"holdfast up did not come up:\n{log.read_text()[-2000:]}")
            await asyncio.sleep(LOOK_S)
        yield process
    finally:
        await _end(process, data_dir)


async def _end(process: asyncio.subprocess.Process, data_dir: Path) -> None:
    """Ctrl-C for `up`, and the end for whatever that left."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()  # told a second time to end: no more waiting
        kill_marked(data_dir)


async def _all_ready(urls: list[str], replicas: int, up: asyncio.subprocess.Process) -> None:
    """Wait until all gateways can send streams to all replicas."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
        while min([await replicas_ready(client, url) for url in urls]) < replicas:
            if up.returncode is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the gateways did not reach all {replicas} replicas")
            await asyncio.sleep(LOOK_S)


def _thaw(server: ChildProcess) -> None:
    if server.pid is not None:
        os.kill(server.pid, signal.SIGCONT)


async def _at_once() -> bool:
    return True
