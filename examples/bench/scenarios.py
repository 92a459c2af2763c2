"""What `bench faults` does to clusters, and what that may cost streams (issue 3's table)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import httpx
import msgspec

from examples.bench.fault_cluster import FAR_NODE, FaultCluster, Shape
from examples.bench.silence import BOTH, Direction
from holdfast.core.events import LeaderDeposed, ReplicaExited, ReplicaReady

RANDOM_EVERY_S = 2.0
RANDOM_SEED = 1
START_MARGIN_MS = 100.0
"""What the only replica's death may cost beyond its replacement's start."""

NONE_MS = 0.0

FAILED_STARTS = 5
"""After so many in a row the next start waits for eight seconds (`core/reconcile.py`): the load begins meanwhile."""

PROBES_PER_REPLICA = 4
PROBE_TIMEOUT_S = 30.0
"""So many requests for each replica reach all of them, and have their answer within this time."""


class Times(msgspec.Struct, frozen=True):
    """How long things last (seconds): what is frozen or silent, servers that are down, replicas killed at random."""

    frozen_s: float
    down_s: float


class Finding(msgspec.Struct, frozen=True):
    """What the log says of a row besides: in words, and the pause that it allows where that follows from it."""

    note: str
    allowed_ms: float | None = None


Fault = Callable[[FaultCluster, Times], Awaitable[None]]
"""Does its worst, and returns once that is over."""


def nothing_to_add(_cluster: FaultCluster, _began: datetime) -> Finding:
    """For most rows the table says it all."""
    return Finding("")


async def as_it_is(_cluster: FaultCluster) -> None:
    """For most rows nothing is to be prepared."""


class Scenario(msgspec.Struct, frozen=True):
    """One row. `allowed_ms` is the pause that the fault may add; None where `find` says.

    `resumes`: streams may break, since their gateway dies, and the client resumes them. `retries`: none may break, as
    any client sees it, but what had not begun may be sent again. Streams have `tokens_min` tokens at least. `strict`:
    a longer pause makes the command fail.
    """

    name: str
    fault: Fault
    allowed_ms: float | None = None
    shape: Shape = Shape()
    find: Callable[[FaultCluster, datetime], Finding] = nothing_to_add
    prepare: Callable[[FaultCluster], Awaitable[None]] = as_it_is
    resumes: bool = False
    retries: bool = False
    tokens_min: int = 0
    strict: bool = False


# --- faults ---------------------------------------------------------------------------------------------


def kill(*pids: int | None) -> None:
    """SIGKILL to processes that run."""
    for pid in pids:
        assert pid, "a process to be killed does not run"
        os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def frozen(*pids: int | None) -> AsyncIterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    stopped: list[int] = []
    try:
        for pid in pids:
            assert pid, "a process to be frozen does not run"
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):  # a replica that stood still for long has been replaced
                os.kill(pid, signal.SIGCONT)


async def nothing(_cluster: FaultCluster, times: Times) -> None:
    """The undisturbed run."""
    await asyncio.sleep(times.frozen_s)


async def processes_start(_cluster: FaultCluster, _times: Times) -> None:
    """What a dead leader brings besides: a node's and two replicas' worth of Python starts, and nothing fails."""
    imports = ["holdfast.gateway.processes", *["holdfast.actors.replica_main"] * 2]
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", f"import {name}", start_new_session=True)
        for name in imports
    ]
    await asyncio.gather(*(process.wait() for process in processes))


async def replica_killed(cluster: FaultCluster, _times: Times) -> None:
    kill(cluster.running()[0].pid)


async def replica_frozen(cluster: FaultCluster, times: Times) -> None:
    async with frozen(cluster.running()[0].pid):
        await asyncio.sleep(times.frozen_s)


async def engine_stuck(cluster: FaultCluster, _times: Times) -> None:
    os.kill(cluster.running()[0].pid, signal.SIGUSR1)


async def node_killed(cluster: FaultCluster, _times: Times) -> None:
    """A node that does not lead, and all its replicas."""
    node = next(node for node in cluster.state.nodes.values() if node.id != cluster.leader().id)
    kill(node.pid, *(one.pid for one in cluster.running() if one.node == node.id))


async def leader_killed(cluster: FaultCluster, _times: Times) -> None:
    kill(cluster.leader().pid)


async def replica_starts_failed(cluster: FaultCluster) -> None:
    """The newest replica's engine stuck soon after each of its starts, so that the next start waits for seconds."""
    for _ in range(FAILED_STARTS):
        await cluster.until(lambda _state: len(cluster.running()) == cluster.shape.replicas)
        newest = cluster.running()[-1]
        assert newest.pid
        os.kill(newest.pid, signal.SIGUSR1)
        async with asyncio.TaskGroup() as group:
            for _ in range(PROBES_PER_REPLICA * cluster.shape.replicas):
                group.create_task(_ask(cluster))
        await _until_ended(cluster, newest.id)


async def _until_ended(cluster: FaultCluster, replica: str) -> None:
    await cluster.until(lambda _state: replica not in {one.id for one in cluster.running()})


async def _ask(cluster: FaultCluster) -> None:
    """A short request, which shows a replica with a stuck engine that its engine is stuck, if it gets there."""
    body = {"model": cluster.shape.model, "prompt": "hello", "max_tokens": 5}
    async with httpx.AsyncClient(base_url=cluster.urls[0], timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
        (await client.post("/v1/completions", json=body)).raise_for_status()


async def leader_frozen(cluster: FaultCluster, times: Times) -> None:
    """It knows of a replacement that is due while it is frozen, and will want to decide that once it is thawed."""
    async with frozen(cluster.leader().pid):
        await asyncio.sleep(times.frozen_s)


def silent(directions: frozenset[Direction]) -> Fault:
    """The far node's network falls silent: its servers, its replicas' sockets, all at once."""

    async def fault(cluster: FaultCluster, times: Times) -> None:
        assert any(one.node == FAR_NODE for one in cluster.running())
        cluster.network.silence(directions)
        try:
            await asyncio.sleep(times.frozen_s)
        finally:
            cluster.network.heal()

    return fault


def server_killed(*names: str) -> Fault:
    """Servers that nobody restarts until the time is over."""

    async def fault(cluster: FaultCluster, times: Times) -> None:
        servers = [server for name in names for server in cluster.servers[name]]
        await asyncio.gather(*(server.kill() for server in servers))
        await asyncio.sleep(times.down_s)
        await asyncio.gather(*(server.start() for server in servers))

    return fault


def server_frozen(*names: str) -> Fault:
    async def fault(cluster: FaultCluster, times: Times) -> None:
        async with frozen(*(server.pid for name in names for server in cluster.servers[name])):
            await asyncio.sleep(times.down_s)

    return fault


def each_killed(name: str) -> Fault:
    """Each server of a kind in turn: killed, away for a while, back and serving before the next one goes."""

    async def fault(cluster: FaultCluster, times: Times) -> None:
        servers = cluster.servers[name]
        for server in servers:
            await server.kill()
            await asyncio.sleep(times.down_s / len(servers))
            await server.start()

    return fault


def each_frozen(name: str) -> Fault:
    async def fault(cluster: FaultCluster, times: Times) -> None:
        servers = cluster.servers[name]
        for server in servers:
            async with frozen(server.pid):
                await asyncio.sleep(times.down_s / len(servers))

    return fault


async def gateway_killed(cluster: FaultCluster, _times: Times) -> None:
    kill(cluster.gateway(0).pid)


async def replicas_at_random(cluster: FaultCluster, times: Times) -> None:
    rng = random.Random(RANDOM_SEED)
    until_s = time.monotonic() + times.down_s
    while time.monotonic() < until_s:
        running = cluster.running()
        if running:
            kill(rng.choice(running).pid)
        await asyncio.sleep(RANDOM_EVERY_S)


# --- what the log says besides ---------------------------------------------------------------------------


def replacement_start(cluster: FaultCluster, began: datetime) -> Finding:
    """How long the killed replica's replacement took to start, by its node's clock."""
    since = [record.event for record in cluster.records if record.event.time >= began]
    exited = next(event.time for event in since if isinstance(event.payload, ReplicaExited))
    ready = next(event.time for event in since if isinstance(event.payload, ReplicaReady))
    took_ms = 1000 * (ready - exited).total_seconds()
    return Finding(f"the replacement's start took {took_ms:.0f} ms", took_ms + START_MARGIN_MS)


def refused_decision(cluster: FaultCluster, began: datetime) -> Finding:
    """What the log tells of the leader that was frozen."""
    told = [record.event.payload for record in cluster.records if record.event.time >= began]
    for one in told:
        if isinstance(one, LeaderDeposed) and one.refused is not None:
            text = f"the log refused the {one.refused} of {one.node}, which had led with epoch {one.epoch}"
            return Finding(f"{text}; epoch {one.by_epoch} had been elected")
    if any(isinstance(one, LeaderDeposed) for one in told):
        return Finding("the thawed leader saw that it no longer led before it decided anything")
    return Finding("nobody else was elected: it was not frozen for as long as its lease lives")


THREE = Shape(servers=3)
TORCH = Shape(engine="torch", replicas=2)

SCENARIOS = [
    Scenario("undisturbed", nothing),
    Scenario("nothing fails, three processes start", processes_start),
    Scenario("replica kill -9", replica_killed, 50),
    Scenario("replica frozen, then thawed", replica_frozen, 1000),
    Scenario("engine stuck, heartbeats go on", engine_stuck, 3000),
    Scenario("node and its replicas kill -9", node_killed, 1000),
    Scenario("node's network silent", silent(BOTH), 1000, Shape(far=True)),
    Scenario("node's network silent, node to gateways", silent(frozenset({Direction.OUT})), 1000, Shape(far=True)),
    Scenario("node's network silent, gateways to node", silent(frozenset({Direction.IN})), 1000, Shape(far=True)),
    Scenario("leader kill -9", leader_killed, NONE_MS),
    Scenario("leader frozen, then thawed", leader_frozen, NONE_MS, Shape(), refused_decision, replica_starts_failed),
    Scenario("nats-server kill -9", server_killed("nats"), NONE_MS),
    Scenario("nats-server frozen", server_frozen("nats"), NONE_MS),
    Scenario("etcd kill -9", server_killed("etcd"), NONE_MS),
    Scenario("etcd frozen", server_frozen("etcd"), NONE_MS),
    Scenario("both servers kill -9", server_killed("nats", "etcd"), NONE_MS),
    Scenario("both servers frozen", server_frozen("nats", "etcd"), NONE_MS),
    Scenario("three servers: each nats-server kill -9 in turn", each_killed("nats"), NONE_MS, THREE),
    Scenario("three servers: each nats-server frozen in turn", each_frozen("nats"), NONE_MS, THREE),
    Scenario("three servers: each etcd kill -9 in turn", each_killed("etcd"), NONE_MS, THREE),
    Scenario("three servers: each etcd frozen in turn", each_frozen("etcd"), NONE_MS, THREE),
    Scenario("gateway kill -9, client resumes", gateway_killed, 500, resumes=True),
    Scenario("a random replica every 2 s", replicas_at_random, 100),
    Scenario("the only replica kill -9", replica_killed, None, Shape(replicas=1, nodes=1), replacement_start),
]

TORCH_SCENARIOS = [
    Scenario("torch: undisturbed", nothing, None, TORCH),
    Scenario("torch: replica kill -9", replica_killed, 50, TORCH),
    Scenario("torch: node and its replicas kill -9", node_killed, 1000, TORCH),
    Scenario("torch: the only replica kill -9", replica_killed, None, Shape("torch", 1, 1), replacement_start),
]
