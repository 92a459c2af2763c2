"""Time from `kill -9` of a replica until its replacement serves: `python -m examples.bench recovery`."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.progress import track

from examples.bench.cluster import POLL_S, own_cluster, replicas_ready
from holdfast.core.breakdowns import KILLED_AT_ONCE_S
from holdfast.core.starts import STABLE_AFTER_S

RECOVERY_TIMEOUT_S = 60.0


def _replica_processes(started_after_s: float) -> list[psutil.Process]:
    """The replica processes that descend from this one, as the cluster does."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "holdfast.actors.replica_main" in process.cmdline() and process.create_time() >= started_after_s
    ]


def _wait(port: int, reached: Any) -> None:
    deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
    while not reached(replicas_ready(port)):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"the cluster did not recover within {RECOVERY_TIMEOUT_S:g} s")
        time.sleep(POLL_S / 4)


def recovery(
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How often a replica is killed.")] = 10,
    engine: Annotated[str, typer.Option(help="mock or torch.")] = "mock",
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Replicas of the cluster that is started.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Kill replicas, one at a time, and time how long until the gateway has its replacement."""
    began_s = time.time() - 1
    took_s = []
    with own_cluster(engine, replicas) as port:
        for _ in track(range(kills), "killing", console=Console(stderr=True)):
            # What is killed too soon, again and again, is replaced later and later.
            time.sleep(STABLE_AFTER_S if replicas == 1 else KILLED_AT_ONCE_S)
            victim = _replica_processes(began_s)[0]
            killed_s = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            _wait(port, lambda ready: ready < replicas)
            _wait(port, lambda ready: ready == replicas)
            took_s.append(time.monotonic() - killed_s)
    result = {"kills": kills, "median_s": statistics.median(took_s), "max_s": max(took_s)}
    if as_json:
        print(json.dumps(result))
    else:
        Console().print(
            f"{engine}, {replicas} replicas, {kills} times kill -9: replaced and serving again after "
            f"{result['median_s']:.2f} s (median), {result['max_s']:.2f} s (longest)"
        )
