"""Clients that read slowly beside others: `python -m examples.bench slow-readers`.

Hundreds of clients take one token a second of streams that come far faster, until what is due to each is more than
all buffers take: then the gateway holds its streams back, which its metrics say. What it keeps for each is bounded,
and the others' answers come as they come beside as many clients that read as fast as they can.

That is a setting. By default a slow reader's stream runs to its end, and the gateway keeps the rest of its answer: a
second cluster shows what that costs, with answers short enough to have come whole before the gateway cuts anybody.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import urllib.request
from typing import Annotated, Final

import msgspec
import psutil
import typer
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from examples.bench.cluster import own_cluster
from examples.bench.overload import closed, gateway_below, p99
from examples.bench.report import end_by, interruptible, print_table
from examples.bench.shots import Gun, Shot

ENGINE_ARGS: Final = {"ttft_ms": 50, "itl_ms": 20, "kv_blocks": 1_048_576, "streams_max": 1_024}
HOLDING: Final = {"HOLDFAST_SERVING__UNSENT_TOKENS_MAX": "1024"}
"""Streams are held back only where that is set."""

REPLICAS: Final = 3
"""A gateway has 256 streams at most on each: so all find a place."""

TOKENS: Final = 8
LONG_TOKENS: Final = 20_000
NORMAL_STREAMS: Final = 16
EVENT_BYTES: Final = 256
"""About what a token takes on the wire: a slow client reads so much a second."""

RECEIVE_BYTES: Final = 4_096
FAST_BYTES: Final = 65_536
READERS_AT_ONCE: Final = 50
HELD_TIMEOUT_S: Final = 180.0
LOOK_S: Final = 0.5
"""How long it may take until all slow readers are held back, or all their tokens are there, and how often that is
looked at (seconds)."""

WHOLE_TOKENS: Final = 2_000
"""Of slow readers' answers by default: 40 s of them. Who takes nothing for 60 s, since its buffers are full, is cut."""

HELD_BACK: Final = "holdfast_held_back_streams"
IN_FLIGHT: Final = "holdfast_replica_inflight_requests"
SLOWER_MAX: Final = 1.5
THROUGHPUT_MIN: Final = 0.9
PER_READER_MAX_KIB: Final = 1_024.0
"""What is asked for, against fast readers: the others' first tokens take no more than so many times as long, this part
of their answers per second; and this memory of the gateway per slow reader, over that without readers."""


class Part(msgspec.Struct, frozen=True):
    """What the others saw beside some readers: p99 to a first token (seconds) and answers per second; and the gateway's
    memory at its end (MiB).
    """

    first_p99_s: float
    per_s: float
    memory_mib: float


class Slow(msgspec.Struct, frozen=True):
    """Beside slow readers: the gateway's memory before them (MiB), the others while buffers fill and at the end, and
    how many of the slow ones were `held` back then, and `there`, as they had not been cut; `running` streams were still
    at replicas. Each slow reader may cost `allowed_kib`.
    """

    before_mib: float
    filling: Part
    full: Part
    held: int
    there: int
    running: int
    allowed_kib: float
    wrong: list[str]

    def per_reader_kib(self, readers: int) -> float:
        """The gateway's memory for each slow reader."""
        return 1024 * (max(self.filling.memory_mib, self.full.memory_mib) - self.before_mib) / readers

    def failures(self, readers: int, fast: Part) -> list[str]:
        """What is not as it must be, against what the others saw beside fast readers."""
        found = [f"{len(self.wrong)} answers are wrong, as {self.wrong[0]}"] if self.wrong else []
        if self.there < readers:
            found.append(f"{readers - self.there} slow readers were cut")
        for name, part in (("while buffers fill", self.filling), ("at the end", self.full)):
            if part.first_p99_s > SLOWER_MAX * fast.first_p99_s:
                times = part.first_p99_s / fast.first_p99_s
                found.append(f"others' first tokens took {times:.1f} times as long as beside fast readers, {name}")
            if part.per_s < THROUGHPUT_MIN * fast.per_s:
                found.append(f"others' answers were {part.per_s / fast.per_s:.0%} of those beside fast readers, {name}")
        if self.per_reader_kib(readers) > self.allowed_kib:
            found.append(f"each slow reader costs the gateway {self.per_reader_kib(readers):.0f} KiB")
        return found


class Report(msgspec.Struct, frozen=True):
    """The others alone, beside fast readers, beside slow ones that are held back, and beside slow ones by default."""

    readers: int
    alone: Part
    fast: Part
    holding: Slow
    default: Slow

    def failures(self) -> list[str]:
        """What is not as it must be."""
        found = [f"held back: {one}" for one in self.holding.failures(self.readers, self.fast)]
        if self.holding.held < self.readers:
            found.append(f"only {self.holding.held} of {self.readers} slow readers were held back")
        found += [f"by default: {one}" for one in self.default.failures(self.readers, self.fast)]
        if self.default.held:
            found.append(f"{self.default.held} slow readers were held back, which is off")
        if self.default.running:
            found.append(f"by default: {self.default.running} streams still ran when memory was measured")
        return found


async def read_slowly(port: int, over: asyncio.Event, begun: asyncio.Semaphore, tokens: int = LONG_TOKENS) -> bool:
    """Take a token a second until it is over; whether the gateway bore with it."""
    return await _read(port, over, begun, tokens, EVENT_BYTES, 1.0)


async def _read(
    port: int, over: asyncio.Event, begun: asyncio.Semaphore, tokens: int, at_once: int, pause_s: float
) -> bool:
    """Take so many bytes at once, with a pause after each, until it is over; whether all came for as long."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    if pause_s:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    connection.setblocking(False)
    body = json.dumps({"model": "mock", "prompt": "slowly", "max_tokens": tokens, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    try:
        async with begun:
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, head % len(body) + body)
            first = await loop.sock_recv(connection, EVENT_BYTES)
        if not first.startswith(b"HTTP/1.1 200"):
            return False
        while not over.is_set():
            if not await loop.sock_recv(connection, at_once):
                return False
            if pause_s:
                await asyncio.wait([waiting := asyncio.ensure_future(over.wait())], timeout=pause_s)
                waiting.cancel()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def held_back(port: int) -> int:
    """How many streams the gateway holds back, by its metrics."""
    return _sum_of(port, HELD_BACK)


def _sum_of(port: int, name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return int(sum(sample.value for family in families for sample in family.samples if sample.name == name))


async def all_held_back(port: int, readers: int, timeout_s: float) -> int:
    """Wait until so many streams are held back, or time is over; how many are."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while (held := await asyncio.to_thread(held_back, port)) < readers and loop.time() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    return held


class _Bench:
    """One gateway, and what the others saw of it."""

    def __init__(self, port: int, readers: int, seconds: float) -> None:
        self._port = port
        self._gateway = gateway_below(psutil.Process(os.getpid()))
        self._readers = readers
        self._seconds = seconds
        self._gun = Gun(port, "mock", TOKENS)
        self._shots: list[Shot] = []

    async def undisturbed(self) -> tuple[Part, Part]:
        """The others alone, and beside fast readers."""
        await closed(self._gun, NORMAL_STREAMS, 1.0)
        alone = await self._part()
        over, fast = self._readers_of(FAST_BYTES, 0.0, LONG_TOKENS)
        beside_fast = await self._part()
        over.set()
        await asyncio.gather(*fast)
        return alone, beside_fast

    async def held_back(self, before: Part) -> Slow:
        """The others beside slow readers that are held back, until all of them are."""
        over, slow = self._readers_of(EVENT_BYTES, 1.0, LONG_TOKENS)
        filling = await self._part()
        await all_held_back(self._port, self._readers, HELD_TIMEOUT_S)
        return await self._until_over(before.memory_mib, filling, over, slow, PER_READER_MAX_KIB)

    async def by_default(self) -> Slow:
        """The others beside slow readers that are not, until their answers have come whole."""
        await closed(self._gun, NORMAL_STREAMS, 1.0)
        before_mib = self._memory_mib()
        over, slow = self._readers_of(EVENT_BYTES, 1.0, WHOLE_TOKENS)
        filling = await self._part()
        await self._nothing_in_flight()
        allowed_kib = PER_READER_MAX_KIB + WHOLE_TOKENS * EVENT_BYTES / 1024
        return await self._until_over(before_mib, filling, over, slow, allowed_kib)

    async def _until_over(
        self, before_mib: float, filling: Part, over: asyncio.Event, slow: list[asyncio.Task[bool]], allowed_kib: float
    ) -> Slow:
        full = await self._part()
        held = await asyncio.to_thread(held_back, self._port)
        running = await asyncio.to_thread(_sum_of, self._port, IN_FLIGHT)
        over.set()
        there = sum(await asyncio.gather(*slow))
        self._gun.close()
        wrong = [shot.wrong for shot in self._shots if shot.wrong]
        return Slow(before_mib, filling, full, held, there, running, allowed_kib, wrong)

    async def _nothing_in_flight(self) -> None:
        """Wait until the replicas have nothing more to do, or time is over."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + HELD_TIMEOUT_S
        while await asyncio.to_thread(_sum_of, self._port, IN_FLIGHT) and loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    def _readers_of(self, at_once: int, pause_s: float, tokens: int) -> tuple[asyncio.Event, list[asyncio.Task[bool]]]:
        over, begun = asyncio.Event(), asyncio.Semaphore(READERS_AT_ONCE)
        reads = (_read(self._port, over, begun, tokens, at_once, pause_s) for _ in range(self._readers))
        return over, [asyncio.create_task(one) for one in reads]

    async def _part(self) -> Part:
        shots = await closed(self._gun, NORMAL_STREAMS, self._seconds)
        self._shots += shots
        return Part(p99([shot.first_s for shot in shots]), len(shots) / self._seconds, self._memory_mib())

    def _memory_mib(self) -> float:
        return round(self._gateway.memory_info().rss / 2**20, 1)


async def _holding(port: int, readers: int, seconds: float) -> tuple[Part, Part, Slow]:
    bench = _Bench(port, readers, seconds)
    alone, fast = await bench.undisturbed()
    return alone, fast, await bench.held_back(alone)


def _rows(report: Report) -> list[tuple[str, ...]]:
    slow = (report.holding, report.default)
    parts = [report.alone, report.fast]
    parts += [part for one in slow for part in (one.filling, one.full)]

    def at_ends(values: list[str]) -> list[str]:
        return ["-", "-", *(cell for value in values for cell in ("-", value))]

    readers = report.readers
    return [
        ("first token, p99", *(f"{1e3 * part.first_p99_s:.0f} ms" for part in parts)),
        ("answers", *(f"{part.per_s:.1f}/s" for part in parts)),
        ("memory of the gateway", *(f"{part.memory_mib:.0f} MiB" for part in parts)),
        ("tokens of slow readers' answers", *at_ends([f"{LONG_TOKENS:,} asked for", f"{WHOLE_TOKENS:,}, all drawn"])),
        ("slow readers held back", *at_ends([f"{one.held} of {readers}" for one in slow])),
        ("slow readers not cut", *at_ends([f"{one.there} of {readers}" for one in slow])),
        ("memory per slow reader", *at_ends([f"{one.per_reader_kib(readers):.0f} KiB" for one in slow])),
    ]


def slow_readers(
    readers: Annotated[int, typer.Option(min=1, max=700, help="How many read slowly.")] = 500,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of each part in seconds.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs.")] = False,
) -> None:
    """Print what clients that read slowly cost the others: held back, by a setting, and by default.

    Exits with 1 if that is more than it may.
    """
    arguments = json.dumps(ENGINE_ARGS)
    with own_cluster("mock", REPLICAS, arguments, HOLDING) as port:
        alone, fast, holding = uvloop.run(interruptible(_holding(port, readers, seconds)))
    with own_cluster("mock", REPLICAS, arguments) as port:
        default = uvloop.run(interruptible(_Bench(port, readers, seconds).by_default()))
    report = Report(readers, alone, fast, holding, default)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        beside = [f"beside {readers} that read fast", f"beside {readers} slow ones, filling", "and held back"]
        beside += [f"beside {readers} slow ones by default, filling", "and their answers all there"]
        print_table(("of the others", "alone", *beside), _rows(report), markdown)
    end_by(report.failures())
