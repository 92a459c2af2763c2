"""What failures cost streams: `python -m examples.bench faults` (`make bench-faults`).

Each scenario runs streams over both gateways of a cluster of its own (mock engine, two nodes, four replicas), does its
worst in the middle of them, and compares every token with what the stream must say. A pause is the time between two
tokens of a stream; the longest one of the undisturbed run shows what the machine itself does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.bench.cluster import Running, running_cluster
from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.gateway.client import AsyncHoldfast, ClientError, Options

ITL_MS = 6
DEADLINE_S = 180.0
STRENGTH_TIMEOUT_S = 180.0
SETTLED_S = 5.0
"""Replicas that are all there for this long after the worst is over are back for good (seconds)."""

RANDOM_EVERY_S = 2.0

Fault = Callable[[Running, Any, float], Awaitable[None]]
"""Does its worst to a cluster, of which it is given the status from before, for as long as said (seconds)."""


class Outcome(msgspec.Struct):
    """One stream: whether it broke, whether its text was right, and its longest pause."""

    broken: bool
    wrong: bool
    pause_s: float


class Row(msgspec.Struct):
    """One scenario's result. Pauses in milliseconds; `strength_s` is None where no replica was missing."""

    scenario: str
    streams: int
    broken: int
    wrong: int
    longest_pause_ms: float
    p50_pause_ms: float
    strength_s: float | None


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def _freeze(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


async def nothing(cluster: Running, status: Any, seconds: float) -> None:
    """The undisturbed run."""


async def replica_killed(cluster: Running, status: Any, seconds: float) -> None:
    _kill(status["replicas"][0]["pid"])


async def replica_frozen(cluster: Running, status: Any, seconds: float) -> None:
    await _freeze(status["replicas"][0]["pid"], seconds)


async def engine_stuck(cluster: Running, status: Any, seconds: float) -> None:
    os.kill(status["replicas"][0]["pid"], signal.SIGUSR1)


async def node_killed(cluster: Running, status: Any, seconds: float) -> None:
    node = next(node for node in status["nodes"] if node["id"] != status["controller"]["node"])
    replicas = [one["pid"] for one in status["replicas"] if one["node"] == node["id"]]
    _kill(node["pid"], *replicas)


async def leader_killed(cluster: Running, status: Any, seconds: float) -> None:
    _kill(status["controller"]["pid"])


async def leader_frozen(cluster: Running, status: Any, seconds: float) -> None:
    await _freeze(status["controller"]["pid"], seconds)


def server_killed(*names: str) -> Fault:
    async def fault(cluster: Running, status: Any, seconds: float) -> None:
        services = status["services"]
        _kill(*(services[name]["pid"] for name in names))

    return fault


def server_frozen(*names: str) -> Fault:
    async def fault(cluster: Running, status: Any, seconds: float) -> None:
        services = status["services"]
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(_freeze(services[name]["pid"], seconds))

    return fault


async def gateway_killed(cluster: Running, status: Any, seconds: float) -> None:
    _kill(status["gateways"][0]["pid"])


async def replicas_one_by_one(cluster: Running, status: Any, seconds: float) -> None:
    rng = random.Random(1)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        now = await asyncio.to_thread(cluster.status)
        pids = [one["pid"] for one in now["replicas"] if one["state"] == "RUNNING"]
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
        await asyncio.sleep(RANDOM_EVERY_S)


SCENARIOS: dict[str, Fault] = {
    "undisturbed": nothing,
    "replica kill -9": replica_killed,
    "replica frozen, then thawed": replica_frozen,
    "engine stuck, heartbeats go on": engine_stuck,
    "node and its replicas kill -9": node_killed,
    "leader kill -9": leader_killed,
    "leader frozen, then thawed": leader_frozen,
    "nats-server kill -9 (restarted)": server_killed("nats"),
    "nats-server frozen": server_frozen("nats"),
    "etcd kill -9 (restarted)": server_killed("etcd"),
    "etcd frozen": server_frozen("etcd"),
    "both servers frozen": server_frozen("nats", "etcd"),
    "gateway kill -9, client resumes": gateway_killed,
    "a random replica every 2 s": replicas_one_by_one,
}


async def _stream(client: AsyncHoldfast, number: int, tokens: int, on_token: Callable[[], None]) -> Outcome:
    prompt, text, pause_s = f"stream {number}", "", 0.0
    last_s: float | None = None
    options = Options(deadline_s=DEADLINE_S)
    try:
        async with client.completions_stream(
            model="mock", prompt=prompt, seed=number, max_tokens=tokens, options=options
        ) as events:
            async for piece in events.texts():
                now_s = time.perf_counter()
                if last_s is not None:
                    pause_s = max(pause_s, now_s - last_s)
                last_s = now_s
                text += piece
                on_token()
    except ClientError:
        return Outcome(True, False, pause_s)
    expected = mock_text(EngineRequest(prompt=prompt, sampling=Sampling(seed=number)), tokens)
    return Outcome(False, text != expected, pause_s)


async def _waves(
    cluster: Running, fault: Fault, streams: int, tokens: int, seconds: float
) -> tuple[list[Outcome], float | None]:
    """Streams, one wave after the other until the fault is over; and how long replicas were missing after it began."""
    status = cluster.status()
    outcomes: list[Outcome] = []
    halfway, over = asyncio.Event(), asyncio.Event()
    received = 0

    def count() -> None:
        nonlocal received
        received += 1
        if received == streams * tokens // 3:
            halfway.set()

    async def worst() -> float | None:
        await halfway.wait()
        began_s = time.monotonic()
        weak = asyncio.create_task(asyncio.to_thread(cluster.weak_until, SETTLED_S + seconds, STRENGTH_TIMEOUT_S))
        await fault(cluster, status, seconds)
        over.set()
        weak_s = await weak
        return None if weak_s is None else weak_s - began_s

    async with AsyncHoldfast(cluster.urls) as client, asyncio.TaskGroup() as group:
        trouble = group.create_task(worst())
        while not outcomes or not over.is_set():
            numbers = range(len(outcomes), len(outcomes) + streams)
            outcomes += await asyncio.gather(*(_stream(client, number, tokens, count) for number in numbers))
    return outcomes, trouble.result()


def _row(name: str, outcomes: list[Outcome], strength_s: float | None) -> Row:
    pauses_ms = [1000 * outcome.pause_s for outcome in outcomes]
    return Row(
        name,
        len(outcomes),
        sum(outcome.broken for outcome in outcomes),
        sum(outcome.wrong for outcome in outcomes),
        max(pauses_ms),
        statistics.median(pauses_ms),
        strength_s,
    )


def _print(rows: list[Row]) -> None:
    table = Table(title="Streams under failures, mock engine, 6 ms between tokens, 2 nodes, 4 replicas, 2 gateways")
    for heading in ("scenario", "streams", "broken", "wrong", "longest pause", "p50 pause", "full strength after"):
        table.add_column(heading, justify="left" if heading == "scenario" else "right")
    for row in rows:
        table.add_row(
            row.scenario,
            str(row.streams),
            str(row.broken),
            str(row.wrong),
            f"{row.longest_pause_ms:.0f} ms",
            f"{row.p50_pause_ms:.0f} ms",
            "-" if row.strength_s is None else f"{row.strength_s:.1f} s",
        )
    Console(width=130).print(table)


def faults(
    streams: Annotated[int, typer.Option(min=1, max=1000, help="Streams at once.")] = 32,
    tokens: Annotated[int, typer.Option(min=10, max=10_000, help="Tokens of each.")] = 400,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long what is frozen stays frozen.")] = 20.0,
    only: Annotated[str, typer.Option(help="Run the scenarios whose name holds this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what each kind of failure costs streams. Exits with 1 if any broke or had a wrong token."""
    chosen = {name: fault for name, fault in SCENARIOS.items() if only in name}
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("failing", total=len(chosen))
        for name, fault in chosen.items():
            progress.update(task, description=name)
            arguments: dict[str, Any] = {"itl_ms": ITL_MS, "faults": True}
            with running_cluster("mock", 4, json.dumps(arguments), nodes=2, gateways=2) as cluster:
                rows.append(_row(name, *asyncio.run(_waves(cluster, fault, streams, tokens, seconds))))
            progress.advance(task)
    if as_json:
        print(msgspec.json.encode(rows).decode())
    else:
        _print(rows)
    if any(row.broken or row.wrong for row in rows):
        raise typer.Exit(1)
