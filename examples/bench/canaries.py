"""How long a sick replica stays unnoticed while nobody asks: `python -m examples.bench canaries`.

No client sends anything, so that no stream can stall: what finds the replica is its node, which asks for a token once
the replica has made none for `canary_wait_s`, and waits for `canary_timeout_s`. The replica falls sick at several
moments between two canaries, each in a cluster of its own. Times are the node's, in the log, and this process's, on
one machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from examples.bench.fault_cluster import FaultCluster, Shape, Strength, fault_cluster
from examples.bench.report import end_by, interruptible, print_table
from holdfast.core.events import Event, ReplicaExited, ReplicaReady, ReplicaUnhealthy

SICK_TIMEOUT_S = 60.0
SETTLED_S = 1.0

SICK_AFTER_S = (1.0, 5.0, 9.0)
"""Moments between two canaries, in seconds since the cluster was ready."""

NO_STALL_LIMIT = {"engine_stall_timeout_s": 600.0}
"""The canary's own token would else make the replica notice by itself that its engine stands still."""

HEADINGS = (
    "idle replica",
    "sick after",
    "found after",
    "how",
    "allowed",
    "met",
    "replaced after",
    "serves again after",
)


class Sickness(msgspec.Struct, frozen=True):
    """What befalls a replica, by a signal to its process. `deployment`: settings that are not the default."""

    name: str
    signal: signal.Signals
    deployment: dict[str, float] = {}


SICKNESSES = [
    Sickness("engine makes no token, and answers health checks", signal.SIGUSR1),
    Sickness("the same, without a limit to stalls", signal.SIGUSR1, NO_STALL_LIMIT),
    Sickness("replica frozen (SIGSTOP)", signal.SIGSTOP),
]


class Found(msgspec.Struct):
    """One replica that fell sick `sick_after_s` after the cluster was ready and had nothing to do. Times in seconds.

    `replaced_s`: until its replacement had made a token and was ready. `missed_s`: until all gateways had all replicas
    for good, None where they always had: who still answers is replaced first.
    """

    scenario: str
    sick_after_s: float
    found_s: float
    how: str
    allowed_s: float
    replaced_s: float
    missed_s: float | None

    @property
    def met(self) -> bool:
        """Whether it was found within a canary's wait and timeout."""
        return self.found_s <= self.allowed_s


async def _measure(sickness: Sickness, sick_after_s: float) -> Found:
    shape = Shape(deployment=sickness.deployment)
    async with fault_cluster(shape) as cluster:
        await asyncio.sleep(sick_after_s)
        strength = Strength(cluster.urls, shape.replicas)
        victim = cluster.running()[0]
        config = cluster.state.applications[victim.application].deployments[victim.deployment].config
        assert victim.pid
        async with asyncio.TaskGroup() as group:
            began_s, began = time.monotonic(), datetime.now(UTC)
            os.kill(victim.pid, sickness.signal)
            watching = group.create_task(strength.run())
            await cluster.until(lambda _state: _found(cluster, began, victim.id) is not None)
            await cluster.until(lambda _state: _ready(cluster, began) is not None)
            await strength.settled(time.monotonic(), SETTLED_S, SICK_TIMEOUT_S)
            watching.cancel()
        found, ready = _found(cluster, began, victim.id), _ready(cluster, began)
        assert found is not None
        assert ready is not None
        return Found(
            sickness.name,
            sick_after_s,
            (found.time - began).total_seconds(),
            _how(found),
            config.canary_wait_s + config.canary_timeout_s,
            (ready.time - began).total_seconds(),
            None if strength.weak_s is None else strength.weak_s - began_s,
        )


def _found(cluster: FaultCluster, began: datetime, replica: str) -> Event | None:
    """The first word that the replica is sick: its node's, or its own last one."""
    events = (record.event for record in cluster.records if record.event.time >= began)
    told = (ReplicaUnhealthy, ReplicaExited)
    return next((one for one in events if isinstance(one.payload, told) and one.payload.replica == replica), None)


def _ready(cluster: FaultCluster, began: datetime) -> Event | None:
    """When a replica became ready since."""
    events = (record.event for record in cluster.records if record.event.time >= began)
    return next((one for one in events if isinstance(one.payload, ReplicaReady)), None)


def _how(found: Event) -> str:
    told = found.payload
    assert isinstance(told, ReplicaUnhealthy | ReplicaExited)
    kind = told.kind if isinstance(told, ReplicaUnhealthy) else "it ended"
    return f"{kind}: {told.message}"


def _cells(row: Found) -> list[str]:
    seconds = (row.sick_after_s, row.found_s, row.allowed_s, row.replaced_s)
    after, found, allowed, replaced = (f"{value:.1f} s" for value in seconds)
    missed = "-" if row.missed_s is None else f"{row.missed_s:.1f} s"
    return [row.scenario, after, found, row.how, allowed, "yes" if row.met else "NO", replaced, missed]


def _why(row: Found) -> str:
    return f"{row.scenario}, {row.sick_after_s:g} s after it was ready: found after {row.found_s:.1f} s"


def canaries(
    quick: Annotated[bool, typer.Option("--quick", help="At one moment instead of several.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs/faults.md.")] = False,
) -> None:
    """Print after what time an idle replica that is sick is found, and replaced. Takes five minutes, --quick two.

    Exits with 1 if any was found later than a canary's wait and timeout allow.
    """
    moments = SICK_AFTER_S[:1] if quick else SICK_AFTER_S
    orders = [(sickness, moment) for sickness in SICKNESSES for moment in moments]
    rows: list[Found] = []
    with Progress(console=Console(stderr=True)) as progress:
        for sickness, moment in progress.track(orders, description="falling sick"):
            rows.append(asyncio.run(interruptible(_measure(sickness, moment))))
    if as_json:
        print(msgspec.json.encode(rows).decode())
    else:
        print_table(HEADINGS, map(_cells, rows), markdown)
    end_by([_why(row) for row in rows if not row.met])
