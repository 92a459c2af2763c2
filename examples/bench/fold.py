"""How fast the log folds: decode, chain check and `apply`, event by event. `python -m examples.bench fold`."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.entries import GENESIS, SCHEMA_VERSION, decode_record, digest, encode_event
from holdfast.core.ports import LogEntry
from holdfast.core.requests import EngineInfo
from holdfast.core.state import apply

ROUNDS = 5
REPLICAS_PER_NODE = 10
INFO = EngineInfo("mock", 4096, 1024, 64, True, "none")


Told = tuple[str, ev.FactTypes | ev.DecisionTypes]
"""A subject, and what is told on it."""


def payloads(count: int, replicas: int = 1) -> list[Told]:
    """A life of so many replicas that start, run, and are killed in turn."""
    config = DeploymentConfig("mock", EngineConfig("mock"), num_replicas=replicas)
    nodes = [f"node-{number}" for number in range(1, 2 + (replicas - 1) // REPLICAS_PER_NODE)]
    happened: list[Told] = [(_facts_of(node), ev.NodeJoined(node, "host", 1, "0", 16)) for node in nodes]
    happened += [
        ("decisions", ev.LeaderElected("node-1", "i")),
        ("decisions", ev.ApplicationDeployed(ApplicationConfig("default", [config]))),
    ]
    for number in itertools.count(1):
        name, node = f"default.mock.{number}", nodes[number % len(nodes)]
        if number <= replicas:
            happened.append(("decisions", ev.ReplicaPlaced(name, "default", "mock", node, "i")))
        else:
            gone, there = f"default.mock.{number - replicas}", nodes[(number - replicas) % len(nodes)]
            exited = ev.ReplicaExited(gone, there, number, None, "SIGKILL", False, "")
            happened.append((_facts_of(there), exited))
            happened.append(("decisions", ev.ReplicaReplaced(name, "default", "mock", node, "i", gone, "SIGKILL")))
        happened.append((_facts_of(node), ev.ReplicaStarted(name, node, number)))
        happened.append((_facts_of(node), ev.ReplicaReady(name, node, "127.0.0.1:1", INFO)))
        if len(happened) >= count:
            break
    return happened[:count]


def _facts_of(node: str) -> str:
    return f"facts.node.{node}"


def entries(count: int, replicas: int = 1) -> list[LogEntry]:
    """The payloads as they stand in a log, chained."""
    heads: dict[str, str] = {}
    made = []
    for sequence, (subject, payload) in enumerate(payloads(count, replicas), 1):
        event = ev.Event(
            id=f"node-1.i.{sequence}",
            time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=sequence),
            writer="node-1",
            incarnation="i",
            epoch=1 if subject == "decisions" else 0,
            cause=None,
            schema=SCHEMA_VERSION,
            previous=heads.get(subject, GENESIS),
            payload=payload,
        )
        data = encode_event(event)
        heads[subject] = digest(data)
        made.append(LogEntry(sequence, subject, data, event.id))
    return made


def fold(
    count: Annotated[int, typer.Option(min=10, help="Events to fold.")] = 20_000,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas that the events are about.")] = 1,
) -> None:
    """Fold a generated log and print the median rate."""
    log = entries(count, replicas)
    rates = []
    for _ in track(range(ROUNDS), "folding", console=Console(stderr=True)):
        began_s = time.perf_counter()
        state = ClusterState()
        for entry in log:
            state = apply(state, decode_record(entry))
        rates.append(count / (time.perf_counter() - began_s))
        assert state.sequence == count
    rates.sort()
    Console().print(f"{count:,} events folded {ROUNDS} times: median {rates[ROUNDS // 2]:,.0f} events/s")
