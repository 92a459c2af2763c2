"""Requests and tokens per second through one gateway: `python -m examples.bench throughput`.

Starts a cluster of its own (mock engine without delay, 2 replicas, 1 gateway, everything on this machine) unless
`--url` names one, and drives it over persistent connections that send one streamed chat request after the
other. Every response is checked: status 200, as many token events as asked for, and a `[DONE]` at its end.
Rounds of the different lengths take turns, so that a drift of the machine touches all of them alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import time
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.bench.cluster import own_cluster

EVENTS_BESIDE_TOKENS = 3
"""The role, the finish reason and `[DONE]`."""

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
CHUNKED = -1

TTFT_MARK = b'"content":" '


class Response(msgspec.Struct):
    """One response: when it was asked for, when its first token came, when it ended."""

    asked_s: float
    first_token_s: float
    ended_s: float


class Round(msgspec.Struct):
    """All responses of one round, and how long the round took."""

    tokens: int
    seconds: float
    responses: list[Response]

    @property
    def requests_per_s(self) -> float:
        """Completed responses per second."""
        return len(self.responses) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens received per second."""
        return self.requests_per_s * self.tokens


class BadResponse(Exception):
    """A response was not what was asked for."""


class Client(asyncio.Protocol):
    """One connection: asks, reads to the end, asks again, until the round is over."""

    def __init__(self, body: bytes, tokens: int, until_s: float, finished: asyncio.Future[None]) -> None:
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self._tokens = tokens
        self._until_s = until_s
        self._finished = finished
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._total_bytes = 0
        self._asked_s = 0.0
        self._first_token_s = 0.0
        self.responses: list[Response] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclass
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._first_token_s and TTFT_MARK in self._received:
            self._first_token_s = time.perf_counter()
        if self._complete():
            self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished.done():
            self._finished.set_exception(exc or BadResponse("the gateway closed a connection"))

    def _ask(self) -> None:
        assert self._transport is not None
        self._received.clear()
        self._total_bytes = 0
        self._first_token_s = 0.0
        self._asked_s = time.perf_counter()
        self._transport.write(self._request)

    def _complete(self) -> bool:
        """Whether the response is all here: by its length where it has one, else by the last chunk."""
        if not self._total_bytes:
            head = self._received.find(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(self._received, 0, max(0, head))
            self._total_bytes = head + 4 + int(length[1]) if length else CHUNKED
        if self._total_bytes == CHUNKED:
            return self._received.endswith(b"\r\n0\r\n\r\n")
        return len(self._received) >= self._total_bytes

    def _ended(self) -> None:
        now_s = time.perf_counter()
        events = self._received.count(b"\ndata: ")
        good = self._received.startswith(b"HTTP/1.1 200") and events == self._tokens + EVENTS_BESIDE_TOKENS
        if not good or b"data: [DONE]\n\n" not in self._received[-40:]:
            if not self._finished.done():
                self._finished.set_exception(BadResponse(bytes(self._received[:600]).decode(errors="replace")))
            return
        self.responses.append(Response(self._asked_s, self._first_token_s, now_s))
        if now_s < self._until_s:
            self._ask()
        elif not self._finished.done():
            self._finished.set_result(None)


def _body(model: str, tokens: int, connection: int) -> bytes:
    prompt = f"Tell me about the harbour, number {connection}."
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": True,
            "seed": connection,
        }
    ).encode()


async def measure(port: int, model: str, tokens: int, connections: int, seconds: float) -> Round:
    """One round over that many connections."""
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    clients: list[Client] = []
    finished: list[asyncio.Future[None]] = []
    for connection in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        client = Client(_body(model, tokens, connection), tokens, began_s + seconds, done)
        clients.append(client)
        finished.append(done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*finished)
    took_s = time.perf_counter() - began_s
    for client in clients:
        if client._transport is not None:
            client._transport.close()
    return Round(tokens, took_s, [response for client in clients for response in client.responses])


def _percentile_ms(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summarize(rounds: list[Round]) -> dict[str, float]:
    """Medians over the rounds of one length; latencies over all of its responses."""
    waits_s = [response.first_token_s - response.asked_s for one in rounds for response in one.responses]
    return {
        "tokens": rounds[0].tokens,
        "responses": sum(len(one.responses) for one in rounds),
        "requests_per_s": statistics.median(one.requests_per_s for one in rounds),
        "tokens_per_s": statistics.median(one.tokens_per_s for one in rounds),
        "ttft_p50_ms": _percentile_ms(waits_s, 0.5),
        "ttft_p99_ms": _percentile_ms(waits_s, 0.99),
    }


def _print(results: list[dict[str, float]], connections: int) -> None:
    table = Table(title=f"{connections} connections, streamed chat completions, median of the rounds")
    for heading in ("tokens/response", "responses", "req/s", "tok/s", "TTFT p50", "TTFT p99"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            f"{result['tokens']:.0f}",
            f"{result['responses']:,.0f}",
            f"{result['requests_per_s']:,.0f}",
            f"{result['tokens_per_s']:,.0f}",
            f"{result['ttft_p50_ms']:.1f} ms",
            f"{result['ttft_p99_ms']:.1f} ms",
        )
    Console().print(table)


def throughput(
    lengths: Annotated[str, typer.Option(help="Tokens per response, separated by commas.")] = "1,64,256",
    connections: Annotated[int, typer.Option(min=1, max=1000, help="Persistent connections.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Length of one round in seconds.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of each length.")] = 5,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Replicas of the cluster that is started.")] = 2,
    port: Annotated[int, typer.Option(help="Use the gateway on this loopback port instead of an own cluster.")] = 0,
    model: Annotated[str, typer.Option(help="The model to ask for.")] = "mock",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print requests/s and tokens/s of one gateway."""
    counts = [int(length) for length in lengths.split(",")]
    done: dict[int, list[Round]] = {count: [] for count in counts}
    with (
        contextlib.nullcontext(port) if port else own_cluster("mock", replicas) as gateway_port,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("measuring", total=rounds * len(counts) + len(counts))
        for number in range(-1, rounds):
            for count in counts:
                one = uvloop.run(measure(gateway_port, model, count, connections, 1.0 if number < 0 else seconds))
                if number >= 0:  # the first is a warm-up
                    done[count].append(one)
                progress.advance(task)
    results = [summarize(one) for one in done.values()]
    if as_json:
        print(json.dumps(results))
    else:
        _print(results, connections)
