"""The streams of `bench faults`, in a process of its own: `python -m examples.bench.load`, started by the bench.

What starts and kills processes, asks how they are and forwards bytes shares no interpreter with what takes the time
between tokens. The order comes as a line of JSON on standard input, then "over" once the worst is over. Out go "begun"
when half of the first streams' tokens are there, and at the end the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec
import uvloop

from holdfast.actors.engines.mock import mock_text
from holdfast.core.requests import EngineRequest, Sampling
from holdfast.gateway.client import AsyncHoldfast, AsyncStream, ClientError, Options

DEADLINE_S = 240.0
LAG_LOOK_S = 0.005
"""How often the loop's lateness is looked at (seconds)."""

LAG_MIN_S = 0.002
LAGS_MAX = 100_000
"""Lateness below the first is none, and of what is above so many are kept."""

LINE_BYTES_MAX = 16 * 1024 * 1024


class Order(msgspec.Struct, frozen=True):
    """What to send: so many streams at once of so many tokens each, one after the other until it is over.

    The first ones begin spread over `spread_s`, so that some request is sent at any time: if that is as long as a
    stream takes, requests never come in waves that miss what a fault does to new ones. `fields` go into every request.
    A stream that had to be sent again counts as broken: another client than ours would have seen it break. With
    `resumes` it does not, and with `retries` it does not if it had no token yet, since any client can do that. The
    mock's texts are known; what another engine says is learnt from streams that run before, undisturbed.
    """

    urls: list[str]
    model: str
    streams: int
    tokens: int
    spread_s: float
    fields: dict[str, Any] = {}
    resumes: bool = False
    retries: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """One stream: why it broke if it did, whether a token was wrong, and how often it was sent. Times in seconds.

    `first_s` is the wait for the first token; `pause_s` the longest time between two tokens, or from the last one to
    the stream's end, which ended at `pause_end_s`. A stream that got no token has waited all its life for it.
    """

    error: str | None
    wrong: bool
    tries: int
    first_s: float
    pause_s: float
    pause_end_s: float


class Report(msgspec.Struct, frozen=True):
    """All streams; for how long this process itself was late within the longest pause; and the longest pause of any
    stream without what this process was late within it (seconds).
    """

    outcomes: list[Outcome]
    lag_s: float
    own_pause_s: float


class Streams:
    """So many streams at a time, one after the other."""

    def __init__(self, order: Order, client: AsyncHoldfast, begun: Callable[[], None]) -> None:
        self._order = order
        self._client = client
        self._begun = begun
        self._received = 0
        self._known: dict[int, str] = {}

    async def learn(self) -> None:
        """Learn from undisturbed streams what they say, unless that is known. Raises `ClientError`."""
        if self._order.model != "mock":
            numbers = range(self._order.streams)
            self._known = dict(zip(numbers, await asyncio.gather(*map(self._learn, numbers)), strict=True))

    async def run(self, over: asyncio.Event) -> list[Outcome]:
        """One stream after the other until it is over, each to its end, in as many places as ordered."""
        outcomes: list[Outcome] = []

        async def place(number: int) -> None:
            await asyncio.sleep(number * self._order.spread_s / self._order.streams)
            while number < self._order.streams or not over.is_set():
                outcomes.append(await self._stream(number))
                number += self._order.streams

        await asyncio.gather(*map(place, range(self._order.streams)))
        return outcomes

    async def _learn(self, number: int) -> str:
        async with self._open(number) as events:
            return await events.text()

    async def _stream(self, number: int) -> Outcome:
        pieces: list[str] = []
        times = _Times()
        error: str | None = None
        free_tries = 1
        events = self._open(number)
        try:
            async with events:
                async for event in events:
                    times.tick()
                    if self._order.retries and not pieces:
                        free_tries = events.tries
                    pieces.append(event.text)
                    self._count()
        except ClientError as broken:
            error = str(broken) or type(broken).__name__
        times.tick()
        if error is None and events.tries > free_tries and not self._order.resumes:
            error = f"the client had to send it {events.tries} times"
        counted = (events.last_event_id or "").rpartition(":")[2] == str(self._order.tokens)
        wrong = error is None and not (counted and "".join(pieces) == self._expected(number))
        return Outcome(error, wrong, events.tries, times.first_s, times.pause_s, times.pause_end_s)

    def _open(self, number: int) -> AsyncStream:
        """Every stream says something else, unless what they say had to be learnt."""
        number = number % len(self._known) if self._known else number
        order, options = self._order, Options(deadline_s=DEADLINE_S)
        return self._client.completions_stream(
            model=order.model,
            prompt=f"stream {number}",
            seed=number,
            max_tokens=order.tokens,
            options=options,
            **order.fields,
        )

    def _expected(self, number: int) -> str:
        if self._known:
            return self._known[number % len(self._known)]
        request = EngineRequest(prompt=f"stream {number}", sampling=Sampling(seed=number))
        return mock_text(request, self._order.tokens)

    def _count(self) -> None:
        self._received += 1
        if self._received == self._order.streams * self._order.tokens // 2:
            self._begun()


class _Times:
    """When a stream's events come."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.pause_s = 0.0
        self.pause_end_s = 0.0
        self._last_s = time.perf_counter()
        self._begun = False

    def tick(self) -> None:
        """The next event, or the end."""
        now_s = time.perf_counter()
        waited_s, self._last_s = now_s - self._last_s, now_s
        if not self._begun:
            self.first_s, self._begun = waited_s, True
        elif waited_s > self.pause_s:
            self.pause_s, self.pause_end_s = waited_s, now_s


class Lag:
    """How late this process's loop was, and when: what it measures is wrong by as much."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=LAGS_MAX)

    async def watch(self) -> None:
        """Look until cancelled."""
        now = time.perf_counter
        while True:
            asked_s = now()
            await asyncio.sleep(LAG_LOOK_S)
            late_s = now() - asked_s - LAG_LOOK_S
            if late_s >= LAG_MIN_S:
                self._seen.append((now(), late_s))

    def within(self, outcome: Outcome) -> float:
        """How long this process was late within a stream's longest pause."""
        begin_s, end_s = outcome.pause_end_s - outcome.pause_s, outcome.pause_end_s
        return sum(max(0.0, min(end_s, at_s) - max(begin_s, at_s - late_s)) for at_s, late_s in self._seen)

    def longest_without(self, outcomes: Iterable[Outcome]) -> float:
        """The longest of the streams' longest pauses, each without what this process was late within it (seconds)."""
        longest_s = 0.0
        for outcome in sorted(outcomes, key=lambda one: one.pause_s, reverse=True):
            if outcome.pause_s <= longest_s:
                break
            longest_s = max(longest_s, outcome.pause_s - self.within(outcome))
        return longest_s


async def _run() -> None:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = msgspec.json.decode(await reader.readline(), type=Order)
    over, lag = asyncio.Event(), Lag()

    async def listen() -> None:
        await reader.readline()  # "over", or the end of the bench itself
        over.set()

    async with AsyncHoldfast(order.urls) as client, asyncio.TaskGroup() as group:
        group.create_task(listen())
        streams = Streams(order, client, lambda: print("begun", flush=True))
        await streams.learn()
        watching = group.create_task(lag.watch())
        outcomes = await streams.run(over)
        watching.cancel()
        longest = max(outcomes, key=lambda outcome: outcome.pause_s)
        report = Report(outcomes, lag.within(longest), lag.longest_without(outcomes))
        print(msgspec.json.encode(report).decode(), flush=True)


class Load:
    """The process that sends the streams, as the bench sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def begun(self) -> None:
        """Wait until half of the first streams' tokens are there."""
        await self._line()

    async def report(self) -> Report:
        """Say that it is over, and wait for what came of the streams."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"over\n")
        return msgspec.json.decode(await self._line(), type=Report)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that sends the streams ended with {await self._process.wait()}")
        return line


@contextlib.asynccontextmanager
async def sending(order: Order) -> AsyncIterator[Load]:
    """A process that sends streams."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        yield Load(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(_run())
