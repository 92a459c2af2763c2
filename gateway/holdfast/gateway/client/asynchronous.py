"""The client for asyncio: `CallMachine`'s steps, done with httpx.

Every wait is within `asyncio.timeout`, whatever httpx is at: name lookup, TLS, or a body that trickles.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from holdfast.gateway.client.events import Answer, Event
from holdfast.gateway.client.machine import CallMachine
from holdfast.gateway.client.policy import RetryPolicy
from holdfast.gateway.client.setup import CHAT, COMPLETIONS, LIMITS, LOGGER_NAME, NO_OPTIONS, Options, Setup, failed
from holdfast.gateway.client.steps import (
    Answered,
    Begin,
    Deliver,
    Delivered,
    Ended,
    Fail,
    Failed,
    Finish,
    Happening,
    Open,
    Pause,
    Read,
    Received,
    Step,
    Woke,
)

log = logging.getLogger(LOGGER_NAME)


class AsyncStream:
    """The events of one call, in order, each once. Nothing is sent before the first is asked for.

    Iterate within `async with`, so that leaving early closes the connection, which ends the request at the gateway.
    """

    def __init__(self, client: AsyncHoldfast, machine: CallMachine) -> None:
        self._client = client
        self._machine = machine
        self._happened: Happening = Begin()
        self._ready: deque[Event] = deque()
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._end: Exception | None = None

    @property
    def request_id(self) -> str:
        """The `x-request-id` of all tries."""
        return self._machine.call.request_id

    @property
    def tries(self) -> int:
        """How often the request was sent so far."""
        return self._machine.tries

    @property
    def last_event_id(self) -> str:
        """Where another call could resume this stream: behind the last event taken from it; "" before the first."""
        return self._machine.last_event_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._end is not None:
                raise self._end
            await self._advance()
        event = self._ready.popleft()
        self._machine.take(event)
        return event

    async def texts(self) -> AsyncIterator[str]:
        """The first choice's text, piece by piece."""
        async for event in self:
            if event.text:
                yield event.text

    async def text(self) -> str:
        """The first choice's text, once the stream is complete."""
        return "".join([event.text async for event in self])

    async def aclose(self) -> None:
        """Close the connection; nothing more comes."""
        self._ready.clear()
        self._end = self._end or StopAsyncIteration()
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _advance(self) -> None:
        """One step on. However it ends, no connection is left open by a call that is over."""
        step = self._machine.on(self._happened, self._client._clock())
        try:
            self._happened = await self._do(step)
        except BaseException:
            await self.aclose()
            raise

    async def _do(self, step: Step) -> Happening:
        match step:
            case Open():
                return await self._open(step)
            case Read(timeout_s):
                return await self._read(timeout_s)
            case Pause(seconds, why):
                await self._close()
                log.info("request %s: trying again in %.3f s: %s", self.request_id, seconds, why)
                await self._client._sleep(seconds)
                return Woke()
            case Deliver(events):
                self._ready.extend(events)
                return Delivered()
            case Finish():
                self._end = StopAsyncIteration()
            case Fail(error):
                self._end = error
        await self._close()
        return self._happened

    async def _open(self, step: Open) -> Answered | Failed:
        await self._close()
        client = self._client
        headers = client._setup.with_secret(step.headers)
        timeout = httpx.Timeout(None, connect=step.connect_timeout_s)
        request = client._http.build_request("POST", step.url, content=step.body, headers=headers, timeout=timeout)
        try:
            async with asyncio.timeout(step.timeout_s):
                self._response = await client._http.send(request, stream=True, follow_redirects=False)
        except (httpx.RequestError, TimeoutError) as error:
            return failed(error)
        self._chunks = self._response.aiter_bytes()
        return Answered(self._response.status_code, self._response.headers)

    async def _read(self, timeout_s: float) -> Received | Ended | Failed:
        assert self._chunks is not None
        try:
            async with asyncio.timeout(timeout_s):
                return Received(await anext(self._chunks))
        except StopAsyncIteration:
            return Ended()
        except (httpx.RequestError, TimeoutError) as error:
            return failed(error)

    async def _close(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()


class AsyncHoldfast:
    """Talks to one or several gateways; retries, and resumes streams.

    base_urls: `http://HOST:PORT`, one or several, with or without `/v1`. A call begins at a random one; with
    `sticky`, at the one that worked last. policy: the limits. http: a client of yours, for proxies, certificates and
    the like; it is not closed, and its own retries should be off. clock, sleep and rand: for tests.
    Raises `InvalidConfig`.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        policy: RetryPolicy | None = None,
        sticky: bool = False,
        http: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._setup = Setup(base_urls, api_key, policy, sticky, clock, rand)
        self._http = http or httpx.AsyncClient(limits=LIMITS)
        self._own_http = http is None
        self._clock = clock
        self._sleep = sleep

    async def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], options: Options = NO_OPTIONS, **fields: Any
    ) -> Answer:
        """A conversation's next message, whole. `fields` are the request's others, as in docs/http-api.md."""
        return await self.post(CHAT, {"model": model, "messages": messages, **fields}, options)

    def chat_stream(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], options: Options = NO_OPTIONS, **fields: Any
    ) -> AsyncStream:
        """A conversation's next message, as events."""
        return self.stream(CHAT, {"model": model, "messages": messages, **fields}, options)

    async def completions(
        self, *, model: str, prompt: str | Sequence[Any], options: Options = NO_OPTIONS, **fields: Any
    ) -> Answer:
        """A prompt's continuation, whole."""
        return await self.post(COMPLETIONS, {"model": model, "prompt": prompt, **fields}, options)

    def completions_stream(
        self, *, model: str, prompt: str | Sequence[Any], options: Options = NO_OPTIONS, **fields: Any
    ) -> AsyncStream:
        """A prompt's continuation, as events."""
        return self.stream(COMPLETIONS, {"model": model, "prompt": prompt, **fields}, options)

    async def post(self, path: str, body: Mapping[str, Any], options: Options = NO_OPTIONS) -> Answer:
        """Any request that is answered as a whole. Raises `ClientError`, or `Misuse` before anything is sent."""
        async with AsyncStream(self, self._setup.call(path, body, options, streamed=False)) as stream:
            found = [event async for event in stream]
            return Answer(found[0].data, stream.request_id, stream.tries)

    def stream(self, path: str, body: Mapping[str, Any], options: Options = NO_OPTIONS) -> AsyncStream:
        """Any request that is answered as events. `Misuse` is raised here, `ClientError` while iterating."""
        return AsyncStream(self, self._setup.call(path, body, options, streamed=True))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._own_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncHoldfast({self._setup!r})"
