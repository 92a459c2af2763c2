"""Clients that read slowly beside others: `python -m examples.bench slow-readers`.

Hundreds of clients take one token a second of streams that come far faster. The others' answers must come as before,
and what the gateway keeps for the slow ones is bounded: when a connection's buffers are full, it waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Annotated, Final

import msgspec
import psutil
import typer
import uvloop

from examples.bench.cluster import own_cluster
from examples.bench.overload import closed, gateway_below, p99
from examples.bench.report import interruptible, print_table
from examples.bench.shots import Gun

ENGINE_ARGS: Final = {"ttft_ms": 50, "itl_ms": 100, "kv_blocks": 262_144, "streams_max": 1_024}
REPLICAS: Final = 3
"""A gateway has 256 streams at most on each: so all find a place."""

TOKENS: Final = 8
SLOW_TOKENS: Final = 4_000
NORMAL_STREAMS: Final = 16
EVENT_BYTES: Final = 256
"""About what a token takes on the wire: a slow client reads so much a second."""

RECEIVE_BYTES: Final = 4_096
READERS_AT_ONCE: Final = 50
SLOWER_MAX: Final = 3.0
PER_READER_MAX_KIB: Final = 512.0
"""What is asked for: the others' first tokens take no more than so many times as long, and this memory per reader."""


class Report(msgspec.Struct, frozen=True):
    """Without and with slow readers: the others' p99 to a first token (seconds) and answers per second; the gateway's
    memory in MiB; and how many slow readers were still there at the end.
    """

    readers: int
    there: int
    first_p99_s: tuple[float, float]
    per_s: tuple[float, float]
    memory_mib: tuple[float, float]
    wrong: list[str]

    def failures(self) -> list[str]:
        """What is not as it must be."""
        found = [f"{len(self.wrong)} answers are wrong, as {self.wrong[0]}"] if self.wrong else []
        if self.there < self.readers:
            found.append(f"{self.readers - self.there} slow readers were cut")
        if self.first_p99_s[1] > SLOWER_MAX * self.first_p99_s[0]:
            found.append(f"others' first tokens took {self.first_p99_s[1] / self.first_p99_s[0]:.1f} times as long")
        kib = 1024 * (self.memory_mib[1] - self.memory_mib[0]) / self.readers
        if kib > PER_READER_MAX_KIB:
            found.append(f"each slow reader costs {kib:.0f} KiB")
        return found


async def read_slowly(port: int, over: asyncio.Event, begun: asyncio.Semaphore) -> bool:
    """Take a token a second until it is over; whether the gateway bore with it."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    connection.setblocking(False)
    body = json.dumps({"model": "mock", "prompt": "slowly", "max_tokens": SLOW_TOKENS, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    try:
        async with begun:
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, head % len(body) + body)
            first = await loop.sock_recv(connection, EVENT_BYTES)
        if not first.startswith(b"HTTP/1.1 200"):
            return False
        while not over.is_set():
            if not await loop.sock_recv(connection, EVENT_BYTES):
                return False
            await asyncio.wait([waiting := asyncio.ensure_future(over.wait())], timeout=1.0)
            waiting.cancel()
    except OSError:
        return False
    finally:
        connection.close()
    return True


async def measure(port: int, gateway: psutil.Process, readers: int, seconds: float) -> Report:
    """Normal load alone, then beside the slow readers."""
    gun = Gun(port, "mock", TOKENS)
    await closed(gun, NORMAL_STREAMS, 1.0)
    before_mib = gateway.memory_info().rss / 2**20
    alone = await closed(gun, NORMAL_STREAMS, seconds)
    over, begun = asyncio.Event(), asyncio.Semaphore(READERS_AT_ONCE)
    slow = [asyncio.create_task(read_slowly(port, over, begun)) for _ in range(readers)]
    await asyncio.sleep(seconds)
    beside = await closed(gun, NORMAL_STREAMS, seconds)
    after_mib = gateway.memory_info().rss / 2**20
    over.set()
    there = sum(await asyncio.gather(*slow))
    gun.close()
    return Report(
        readers,
        there,
        (p99([shot.first_s for shot in alone]), p99([shot.first_s for shot in beside])),
        (len(alone) / seconds, len(beside) / seconds),
        (round(before_mib, 1), round(after_mib, 1)),
        [shot.wrong for shot in (*alone, *beside) if shot.wrong],
    )


def slow_readers(
    readers: Annotated[int, typer.Option(min=1, max=1_000, help="How many read slowly.")] = 500,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of each part in seconds.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs.")] = False,
) -> None:
    """Print what clients that read slowly cost the others. Exits with 1 if that is more than it may."""
    with own_cluster("mock", REPLICAS, json.dumps(ENGINE_ARGS)) as port:
        gateway = gateway_below(psutil.Process(os.getpid()))
        report = uvloop.run(interruptible(measure(port, gateway, readers, seconds)))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        first, per_s, memory = report.first_p99_s, report.per_s, report.memory_mib
        rows = [
            ("first token, p99", f"{1e3 * first[0]:.0f} ms", f"{1e3 * first[1]:.0f} ms"),
            ("answers", f"{per_s[0]:.1f}/s", f"{per_s[1]:.1f}/s"),
            ("memory of the gateway", f"{memory[0]:.0f} MiB", f"{memory[1]:.0f} MiB"),
            ("slow readers served to the end", "-", str(report.there)),
        ]
        print_table(("of the others", "alone", f"beside {readers} slow readers"), rows, markdown)
    for failure in report.failures():
        print(f"not as it must be: {failure}")
    if report.failures():
        raise typer.Exit(1)
