"""A load of ten times what the cluster can do: `python -m examples.bench overload`, `make bench-overload`.

First a light load shows how long a first token takes, then as many streams as fit at once show the most that the
cluster can do. Then requests come at ten times that rate, whether or not others have been answered, a few of them
critical, many of them batch. Every answer must be whole or a well-formed rejection.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections import Counter
from typing import Annotated, Final

import msgspec
import psutil
import typer
import uvloop

from examples.bench.cluster import own_cluster
from examples.bench.report import end_by, interruptible, print_table
from examples.bench.shots import Gun, Shot

REPLICAS: Final = 2
STREAMS: Final = 16
"""So many streams run at once on each replica."""

TOKENS: Final = 32
ENGINE_ARGS: Final = {"ttft_ms": 200, "itl_ms": 30, "streams_max": STREAMS}

TIMES: Final = 10
MIX: Final = (("critical", 0.04), ("default", 0.36), ("batch", 0.60))
LOWEST: Final = "batch"
"""The parts of the load. All critical requests together are less than half of what the cluster can do; what has the
lowest priority must be shed."""

LIGHT_S: Final = 5.0
LIGHT_STREAMS: Final = 4
FULL_S: Final = 8.0
WARM_S: Final = 2.0
USUAL: Final = 0.7
LEAD_S: Final = 4.0
"""Before the overload the load is this part of what the cluster can do, for so long."""

MEMORY_LOOK_S: Final = 1.0
OPEN_MAX: Final = 4_000
"""So many requests are open at once at most: beyond that the bench itself would be what is overloaded."""

REJECTED_WITHIN_S: Final = 0.05
FIRST_TIMES_MAX: Final = 3.0
THROUGHPUT_MIN: Final = 0.9
GROWTH_MAX_MIB: Final = 32.0
OFFERED_MIN: Final = 0.98
"""What is asked for: every rejection in this time, first tokens within so many times the unloaded p99, this part of the
highest throughput, and no more memory than so much above that of the first second. Of the load that was to be, this
part must have been sent within the time that it was to take, and nothing left out."""


class Report(msgspec.Struct, frozen=True):
    """What came of it. Times in seconds; p99 over all requests of a kind; memory of the gateway in MiB, by second.

    `offered_per_s` is what was sent, `left_out` counts what the bench could not send besides. `shed` is rejections by
    priority.
    """

    light_first_p99_s: float
    full_per_s: float
    wanted_per_s: float
    offered_per_s: float
    left_out: int
    answers: dict[str, int]
    rejections: dict[str, int]
    rejected_p99_s: float
    rejected_max_s: float
    first_p99_s: float
    accepted_per_s: float
    shed: dict[str, int]
    critical_lost: int
    wrong: list[str]
    memory_mib: list[float]

    def failures(self) -> list[str]:
        """What is not as it must be."""
        found = [f"{len(self.wrong)} answers are wrong, as {self.wrong[0]}"] if self.wrong else []
        if self.rejected_max_s > REJECTED_WITHIN_S:
            found.append(f"the longest rejection took {1000 * self.rejected_max_s:.0f} ms")
        if self.first_p99_s > FIRST_TIMES_MAX * self.light_first_p99_s:
            found.append(f"first tokens took {self.first_p99_s / self.light_first_p99_s:.1f} times the unloaded time")
        if self.accepted_per_s < THROUGHPUT_MIN * self.full_per_s:
            found.append(f"throughput fell to {self.accepted_per_s / self.full_per_s:.0%}")
        if self.left_out or self.offered_per_s < OFFERED_MIN * self.wanted_per_s:
            sent = f"{self.offered_per_s:.0f}/s of {self.wanted_per_s:.0f}/s were sent"
            found.append(f"the bench itself did not keep up: {sent}, {self.left_out} left out")
        if self.wanted_per_s > self.full_per_s and not self.shed.get(LOWEST):
            found.append(f"no {LOWEST} request was shed")
        if self.critical_lost:
            found.append(f"{self.critical_lost} critical requests were lost")
        if self.memory_mib and max(self.memory_mib) - self.memory_mib[0] > GROWTH_MAX_MIB:
            found.append(f"the gateway's memory grew: {self.memory_mib}")
        return found


def p99(values: list[float]) -> float:
    """The 99th percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0


def ended_per_s(shots: list[Shot], seconds: float) -> float:
    """Answers that came whole, per second of the load: from when the first streams had time to end to its end."""
    began_s = min(shot.asked_s for shot in shots)
    ends = [shot.asked_s + shot.whole_s - began_s for shot in shots if shot.status == 200]
    warm_s = min(WARM_S, seconds / 2)
    return sum(warm_s <= end_s < seconds for end_s in ends) / (seconds - warm_s)


def sent_per_s(shots: list[Shot], seconds: float) -> float:
    """Requests per second of the load, or of the time that it took to send them if that was longer."""
    asked = [shot.asked_s for shot in shots]
    return len(shots) / max(seconds, max(asked) - min(asked)) if asked else 0.0


async def closed(gun: Gun, streams: int, seconds: float) -> list[Shot]:
    """So many streams at a time, one after the other."""
    loop = asyncio.get_running_loop()
    until_s, shots = loop.time() + seconds, list[Shot]()

    async def place() -> None:
        while loop.time() < until_s:
            shots.append(await gun.shoot("critical"))

    await asyncio.gather(*(place() for _ in range(streams)))
    return shots


async def opened(gun: Gun, per_s: float, seconds: float, rng: random.Random) -> tuple[list[Shot], int]:
    """Requests at this rate, at random moments, whatever becomes of them; and how many the bench left out.

    Before that, for `LEAD_S`, the load is usual: what it is that the overload comes on top of.
    """
    loop = asyncio.get_running_loop()
    began_s, shots, left_out, under_way = loop.time() + LEAD_S, list[Shot](), 0, 0
    lead = sorted(rng.uniform(-LEAD_S, 0.0) for _ in range(math.ceil(USUAL * per_s / TIMES * LEAD_S)))
    moments = [*lead, *sorted(rng.uniform(0.0, seconds) for _ in range(math.ceil(per_s * seconds)))]
    names, weights = [name for name, _ in MIX], [weight for _, weight in MIX]

    async def one(priority: str) -> None:
        nonlocal under_way
        try:
            shots.append(await gun.shoot(priority))
        finally:
            under_way -= 1

    async with asyncio.TaskGroup() as group:
        for at_s in moments:
            await asyncio.sleep(max(0.0, began_s + at_s - loop.time()))
            if under_way >= OPEN_MAX:
                left_out += at_s >= 0
                continue
            under_way += 1
            group.create_task(one(rng.choices(names, weights)[0]))
    return [shot for shot in shots if shot.asked_s >= began_s], left_out


async def _memory(gateway: psutil.Process, found: list[float]) -> None:
    while True:
        await asyncio.sleep(MEMORY_LOOK_S)
        found.append(round(gateway.memory_info().rss / 2**20, 1))


async def measure(port: int, gateway: psutil.Process, seconds: float, times: float, seed: int) -> Report:
    """All three loads, one after the other."""
    gun = Gun(port, "mock", TOKENS)
    await closed(gun, REPLICAS * STREAMS, 1.0)
    light = await closed(gun, LIGHT_STREAMS, LIGHT_S)
    full = await closed(gun, REPLICAS * STREAMS, FULL_S)
    full_per_s = ended_per_s(full, FULL_S)
    memory: list[float] = []
    looking = asyncio.create_task(_memory(gateway, memory))
    wanted_per_s = times * full_per_s
    shots, left_out = await opened(gun, wanted_per_s, seconds, random.Random(seed))
    looking.cancel()
    gun.close()
    accepted = [shot for shot in shots if shot.status == 200]
    rejected = [shot for shot in shots if shot.status not in (0, 200)]
    wrong = [shot.wrong for shot in (*light, *full, *shots) if shot.wrong]
    answers = Counter(str(shot.status or "none") for shot in shots)
    return Report(
        p99([shot.first_s for shot in light]),
        full_per_s,
        wanted_per_s,
        sent_per_s(shots, seconds),
        left_out,
        dict(answers),
        dict(Counter(shot.reason for shot in rejected)),
        p99([shot.whole_s for shot in rejected]),
        max((shot.whole_s for shot in rejected), default=0.0),
        p99([shot.first_s for shot in accepted]),
        ended_per_s(shots, seconds),
        dict(Counter(shot.priority for shot in rejected)),
        sum(shot.priority == "critical" and shot.status != 200 for shot in shots),
        wrong,
        memory,
    )


def gateway_below(root: psutil.Process) -> psutil.Process:
    """The gateway's process among a process's descendants."""
    for process in root.children(recursive=True):
        if "gateway" in process.cmdline():
            return process
    raise SystemExit("no gateway runs")


def _rows(report: Report) -> list[tuple[str, str]]:
    ratio = report.first_p99_s / report.light_first_p99_s
    part = report.accepted_per_s / report.full_per_s
    memory = f"{report.memory_mib[0]:.0f} to {max(report.memory_mib):.0f} MiB" if report.memory_mib else "-"
    return [
        ("offered", f"{report.offered_per_s:,.0f}/s, {report.offered_per_s / report.full_per_s:.1f} times the most"),
        ("left out by the bench", f"{report.left_out:,}"),
        ("answers by status", ", ".join(f"{count:,} x {status}" for status, count in sorted(report.answers.items()))),
        ("rejections by reason", ", ".join(f"{name} {count:,}" for name, count in sorted(report.rejections.items()))),
        ("rejections by priority", ", ".join(f"{name} {count:,}" for name, count in sorted(report.shed.items()))),
        ("answers that are wrong", str(len(report.wrong))),
        ("rejections, p99 and longest", f"{1e3 * report.rejected_p99_s:.1f} ms, {1e3 * report.rejected_max_s:.1f} ms"),
        ("first token, unloaded p99", f"{1e3 * report.light_first_p99_s:.0f} ms"),
        ("first token of accepted, p99", f"{1e3 * report.first_p99_s:.0f} ms, {ratio:.1f} times"),
        ("throughput", f"{report.accepted_per_s:.1f}/s of {report.full_per_s:.1f}/s, {part:.0%}"),
        ("critical requests lost", str(report.critical_lost)),
        ("memory of the gateway", memory),
    ]


def overload(
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="How long the overload lasts.")] = 30.0,
    times: Annotated[float, typer.Option(min=1, max=100, help="How many times the cluster's capacity.")] = TIMES,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs.")] = False,
) -> None:
    """Print what a load of ten times the capacity does. Exits with 1 if that is more than it may."""
    with own_cluster("mock", REPLICAS, json.dumps(ENGINE_ARGS)) as port:
        gateway = gateway_below(psutil.Process(os.getpid()))
        report = uvloop.run(interruptible(measure(port, gateway, seconds, times, seed)))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        print_table((f"{times:g} times the capacity for {seconds:g} s", ""), _rows(report), markdown)
    end_by(report.failures())
