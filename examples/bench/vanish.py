"""Clients that connect and vanish at random moments: `python -m examples.bench vanish`, `make bench-vanish`.

Each client gets as far as chance lets it (a connection, half a head, half a body, a request, a prompt that is being
read, a few tokens) and is gone, by closing its connection or by resetting it. Afterwards everything must be as before:
KV blocks, requests and streams at none, and the processes' tasks and open files where they were. Memory is judged by a
second load like the first: what allocators keep they have by then, and what grows on is lost with every client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Final

import msgspec
import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families

from examples.bench.cluster import own_cluster
from examples.bench.report import end_by, print_table
from holdfast.actors.system_port import METRICS_KEPT_S

AT_ONCE: Final = 200
"""So many clients at the same time."""

SETTLE_TIMEOUT_S: Final = 30.0
SETTLE_LOOK_S: Final = 0.25
"""How long what clients left may take to be gone, and how often that is looked at (seconds)."""

CONNECT_TIMEOUT_S: Final = 20.0
READ_TIMEOUT_S: Final = 20.0
DAWDLE_MAX_S: Final = 0.1
"""A client waits up to so long before it vanishes, where it waits for nothing else (seconds)."""

PROMPT_WORDS: Final = 3_000
ANSWER_TOKENS: Final = 400
ANSWER_BYTES: Final = 40_000

WARM_CLIENTS: Final = 3_000
"""Before anything is measured, so many clients warm the processes up: what these need once, they have then."""

MEMORY_BACK_MIB: Final = 4.0
"""The second load may leave so much more memory in use than the first: allocators keep some of what is free."""

ENGINE_ARGS: Final = {"itl_ms": 5, "prefill_tokens_per_s": 400_000, "kv_blocks": 16_384}
COLUMNS: Final = {
    "requests": "requests",
    "streams": "streams",
    "KV blocks": "kv_blocks",
    "tasks": "tasks",
    "open files": "files",
    "memory, MiB": "memory_mib",
}
"""The table's columns, each with what it shows of a sample: before, most, after."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Moment(StrEnum):
    """When a client vanishes."""

    CONNECTED = "connected"
    HEAD = "in the head"
    BODY = "in the body"
    ASKED = "asked"
    PROMPT = "prompt is read"
    ANSWER = "in the answer"


class Sample(msgspec.Struct, frozen=True):
    """One process at one time. `kv_blocks` and `streams` are a replica's, `requests` a gateway's."""

    files: int
    tasks: int
    memory_mib: float
    kv_blocks: int = 0
    streams: int = 0
    requests: int = 0

    def left_over(self, before: Sample) -> list[str]:
        """What is left of clients, memory apart."""
        counts = {"requests": self.requests, "streams": self.streams, "KV blocks": self.kv_blocks}
        found = [f"{count} {name}" for name, count in counts.items() if count]
        found += [f"{self.tasks - before.tasks} tasks"] if self.tasks > before.tasks else []
        return [*found, f"{self.files - before.files} open files"] if self.files > before.files else found


class Row(msgspec.Struct, frozen=True):
    """What clients that vanished did to one process: before, at most, between the two loads, and after both."""

    process: str
    before: Sample
    peak: Sample
    between: Sample
    after: Sample

    @property
    def first_mib(self) -> float:
        """How much more memory it has after the first load than before: what allocators keep is in it."""
        return self.between.memory_mib - self.before.memory_mib

    @property
    def grown_mib(self) -> float:
        """How much more memory it has after the second load than after the first."""
        return self.after.memory_mib - self.between.memory_mib

    def left_over(self) -> list[str]:
        """What is left of clients."""
        found = self.after.left_over(self.before)
        return [*found, f"{self.grown_mib:.1f} MiB of memory"] if self.grown_mib > MEMORY_BACK_MIB else found


class Report(msgspec.Struct, frozen=True):
    """How many clients vanished when in each of the two loads, in how much time for both, and what is left of it."""

    clients: int
    moments: list[dict[str, int]]
    took_s: float
    rows: list[Row]

    def failures(self) -> list[str]:
        """What is not as it must be."""
        return [f"{row.process} keeps {one}" for row in self.rows for one in row.left_over()]


class Watched:
    """A process of the cluster that shows its metrics at a port."""

    def __init__(self, name: str, process: psutil.Process, port: int) -> None:
        self.name = name
        self._process = process
        self._port = port

    def sample(self) -> Sample:
        """How it stands."""
        told: dict[str, float] = {}
        for family in text_string_to_metric_families(_get(self._port, "/metrics")):
            for one in family.samples:
                if one.labels.get("state", "used") == "used":
                    told[one.name] = told.get(one.name, 0.0) + one.value
        return Sample(
            self._process.num_fds(),
            int(told["holdfast_tasks"]),
            round(self._process.memory_info().rss / 2**20, 1),
            int(told.get("holdfast_kv_blocks", 0)),
            int(told.get("holdfast_num_requests_running", 0) + told.get("holdfast_num_requests_waiting", 0)),
            int(told.get("holdfast_inflight_requests", 0)),
        )


def watched_below(root: psutil.Process) -> list[Watched]:
    """The gateways, nodes and replicas among a process's descendants."""
    found = []
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "holdfast.actors.replica_main" in command:
                found.append(Watched(f"replica {command[-1]}", process, _metrics_port(process)))
            elif "gateway" in command:
                found.append(Watched("gateway", process, _metrics_port(process)))
            elif "node" in command:
                found.append(Watched("node", process, _metrics_port(process)))
    return sorted(found, key=lambda one: one.name)


def _metrics_port(process: psutil.Process) -> int:
    """Of the ports that it listens on, the one that answers HTTP."""
    for connection in process.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN:
            with contextlib.suppress(OSError, ValueError):
                _get(connection.laddr.port, "/live")
                return int(connection.laddr.port)
    raise SystemExit(f"process {process.pid} shows its metrics nowhere")


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


# --- clients --------------------------------------------------------------------------------------------


async def vanish_all(port: int, model: str, clients: int, seed: int, at_once: int = AT_ONCE) -> dict[str, int]:
    """Let so many clients connect and vanish; how many did at which moment."""
    rng = random.Random(seed)
    places = asyncio.Semaphore(at_once)
    moments = [rng.choice(list(Moment)) for _ in range(clients)]

    async def one(number: int) -> None:
        async with places:
            await _client(port, model, moments[number], random.Random(f"{seed}/{number}"))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(one(number))
    return {moment.value: moments.count(moment) for moment in Moment}


async def _client(port: int, model: str, moment: Moment, rng: random.Random) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        sent = _request(model, moment, rng)
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(sent)
            await writer.drain()
            if moment is Moment.ANSWER:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await _read(reader, rng.randrange(1, ANSWER_BYTES))
            else:
                await asyncio.sleep(rng.uniform(0, DAWDLE_MAX_S))
    finally:
        _leave(writer, resets=rng.random() < 0.5)


def _request(model: str, moment: Moment, rng: random.Random) -> bytes:
    """As much of a request as the client sends."""
    words = PROMPT_WORDS if moment is Moment.PROMPT else rng.randrange(1, 50)
    body = {"model": model, "prompt": "word " * words, "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
    body |= {"stream": rng.random() < 0.8, "n": rng.choice((1, 1, 1, 2))}
    data = json.dumps(body).encode()
    fields = ["POST /v1/completions HTTP/1.1", "host: bench", "content-type: application/json"]
    head = "\r\n".join([*fields, f"content-length: {len(data)}", "", ""]).encode()
    match moment:
        case Moment.CONNECTED:
            return b""
        case Moment.HEAD:
            return head[: rng.randrange(1, len(head))]
        case Moment.BODY:
            return head + data[: rng.randrange(len(data))]
        case _:
            return head + data


async def _read(reader: asyncio.StreamReader, count: int) -> None:
    while count > 0:
        data = await reader.read(min(count, 4096))
        if not data:
            return
        count -= len(data)


def _leave(writer: asyncio.StreamWriter, *, resets: bool) -> None:
    """Close the connection, or reset it, as a kernel does for a process that was killed with data unread."""
    if resets:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()
    else:
        writer.close()


# --- measuring ------------------------------------------------------------------------------------------


def measure(watched: Sequence[Watched], port: int, model: str, clients: int, seed: int) -> Report:
    """Warm up and look. Then twice: let clients vanish, wait until all is back (or the time for that is over), look."""
    asyncio.run(vanish_all(port, model, WARM_CLIENTS, seed + 1))
    _settle(watched, lambda sample, _at: not sample.left_over(sample))
    before = [one.sample() for one in watched]
    began_s = time.monotonic()
    first, peaks = asyncio.run(_vanish_and_look(watched, port, model, clients, seed))
    between = _settle(watched, lambda sample, at: not sample.left_over(before[at]))
    second, peaks_again = asyncio.run(_vanish_and_look(watched, port, model, clients, seed + 2))
    took_s = time.monotonic() - began_s
    peaks = [_most(*both) for both in zip(peaks, peaks_again, strict=True)]

    def row(sample: Sample, at: int) -> Row:
        return Row(watched[at].name, before[at], peaks[at], between[at], sample)

    after = _settle(watched, lambda sample, at: not row(sample, at).left_over())
    rows = [row(sample, at) for at, sample in enumerate(after)]
    return Report(clients, [first, second], round(took_s, 2), rows)


async def _vanish_and_look(
    watched: Sequence[Watched], port: int, model: str, clients: int, seed: int
) -> tuple[dict[str, int], list[Sample]]:
    """As `vanish_all`, with the most that was seen of each process meanwhile."""
    vanishing = asyncio.create_task(vanish_all(port, model, clients, seed))
    peaks = [one.sample() for one in watched]
    while not vanishing.done():
        samples = [await asyncio.to_thread(one.sample) for one in watched]
        peaks = [_most(peak, sample) for peak, sample in zip(peaks, samples, strict=True)]
        await asyncio.wait([vanishing], timeout=SETTLE_LOOK_S)
    return vanishing.result(), peaks


def _most(one: Sample, other: Sample) -> Sample:
    return Sample(*map(max, msgspec.structs.astuple(one), msgspec.structs.astuple(other)))


def _settle(watched: Sequence[Watched], is_back: Callable[[Sample, int], bool]) -> list[Sample]:
    """What the processes come to, once all are back or time is over."""
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    # A page from before would tell of what was free then.
    time.sleep(METRICS_KEPT_S)
    while True:
        samples = [one.sample() for one in watched]
        if all(is_back(sample, at) for at, sample in enumerate(samples)) or time.monotonic() > deadline_s:
            return samples
        time.sleep(SETTLE_LOOK_S)


def _cells(row: Row) -> list[str]:
    """Before, most seen, after."""
    cells = [row.process]
    for field in COLUMNS.values():
        cells.append(" / ".join(f"{getattr(sample, field):g}" for sample in (row.before, row.peak, row.after)))
    return cells


def vanish(
    clients: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many clients each time.")] = 10_000,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Replicas of the cluster that is started.")] = 2,
    seed: Annotated[int, typer.Option(help="What clients do follows from it.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs/faults.md.")] = False,
) -> None:
    """Let clients connect and vanish at random moments, twice, and see that nothing of them is left.

    Prints before / most / after. Exits with 1 if anything is left, or if the second time cost more than some memory.
    """
    with own_cluster("mock", replicas, json.dumps(ENGINE_ARGS)) as port:
        report = measure(watched_below(psutil.Process()), port, "mock", clients, seed)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        print_table(("process", *COLUMNS), map(_cells, report.rows), markdown)
        vanished = ", ".join(f"{sum(one[moment] for one in report.moments):,} {moment}" for moment in Moment)
        grown = ", ".join(f"{row.process} {row.first_mib:+.1f}, then {row.grown_mib:+.1f} MiB" for row in report.rows)
        print(f"\nTwice {report.clients:,} clients vanished in {report.took_s:g} s: {vanished}.")
        print(f"Memory after the first time, and what the second added: {grown}.")
    end_by(report.failures())
