"""How fast the log folds: decode, chain check and `apply`, event by event. `python -m examples.bench fold`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from holdfast.core import events as ev
from holdfast.core.cluster import ClusterState
from holdfast.core.config import ApplicationConfig, DeploymentConfig, EngineConfig
from holdfast.core.ports import LogEntry
from holdfast.core.requests import EngineInfo
from holdfast.core.state import apply

ROUNDS = 5


def payloads(count: int) -> list[tuple[str, ev.FactTypes | ev.DecisionTypes]]:
    """A life of replicas that start, run and are killed, with the subjects that it is told on."""
    config = DeploymentConfig("mock", EngineConfig("mock"), num_replicas=1)
    happened: list[tuple[str, ev.FactTypes | ev.DecisionTypes]] = [
        ("facts.node.node-1", ev.NodeJoined("node-1", "host", 1, "0", 16)),
        ("decisions", ev.LeaderElected("node-1", "i")),
        ("decisions", ev.ApplicationDeployed(ApplicationConfig("default", [config]))),
        ("decisions", ev.ReplicaPlaced("default.mock.1", "default", "mock", "node-1", "i")),
    ]
    info = EngineInfo("mock", 4096, 1024, 64, True, "none")
    number = 1
    while len(happened) < count:
        name, following = f"default.mock.{number}", f"default.mock.{number + 1}"
        happened += [
            ("facts.node.node-1", ev.ReplicaStarted(name, "node-1", number)),
            ("facts.node.node-1", ev.ReplicaReady(name, "node-1", "127.0.0.1:1", info)),
            ("facts.node.node-1", ev.ReplicaExited(name, "node-1", number, None, "SIGKILL", False, "")),
            ("decisions", ev.ReplicaReplaced(following, "default", "mock", "node-1", "i", name, "SIGKILL")),
        ]
        number += 1
    return happened[:count]


def entries(count: int) -> list[LogEntry]:
    """The payloads as they stand in a log, chained."""
    heads: dict[str, str] = {}
    made = []
    for sequence, (subject, payload) in enumerate(payloads(count), 1):
        event = ev.Event(
            id=f"node-1.i.{sequence}",
            time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=sequence),
            writer="node-1",
            incarnation="i",
            epoch=1 if subject == "decisions" else 0,
            cause=None,
            schema=ev.SCHEMA_VERSION,
            previous=heads.get(subject, ev.GENESIS),
            payload=payload,
        )
        data = ev.encode_event(event)
        heads[subject] = ev.digest(data)
        made.append(LogEntry(sequence, subject, data, event.id))
    return made


def fold(count: Annotated[int, typer.Option(min=10, help="Events to fold.")] = 20_000) -> None:
    """Fold a generated log and print the median rate."""
    log = entries(count)
    rates = []
    for _ in track(range(ROUNDS), "folding", console=Console(stderr=True)):
        began_s = time.perf_counter()
        state = ClusterState()
        for entry in log:
            state = apply(state, ev.decode_record(entry))
        rates.append(count / (time.perf_counter() - began_s))
        assert state.sequence == count
    rates.sort()
    Console().print(f"{count:,} events folded {ROUNDS} times: median {rates[ROUNDS // 2]:,.0f} events/s")
