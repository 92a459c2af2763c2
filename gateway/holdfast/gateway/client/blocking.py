"""The blocking client: the same machine and the same methods, without `await`. May be shared by threads."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from holdfast.gateway.client.watchdog import Guard, Watchdog

log = logging.getLogger(LOGGER_NAME)


class Stream:
    """As `AsyncStream`: the events of one call, in order, each once. Iterate within `with`."""

    def __init__(self, client: Holdfast, machine: CallMachine) -> None:
        self._client = client
        self._machine = machine
        self._happened: Happening = Begin()
        self._ready: deque[Event] = deque()
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] | None = None
        self._end: Exception | None = None
        self._guard = Guard(client._watchdog)

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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while not self._ready:
            if self._end is not None:
                raise self._end
            self._advance()
        event = self._ready.popleft()
        self._machine.take(event)
        return event

    def texts(self) -> Iterator[str]:
        """The first choice's text, piece by piece."""
        return (event.text for event in self if event.text)

    def text(self) -> str:
        """The first choice's text, once the stream is complete."""
        return "".join(self.texts())

    def close(self) -> None:
        """Close the connection; nothing more comes."""
        self._ready.clear()
        self._end = self._end or StopIteration()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self) -> None:
        """One step on. However it ends, no connection is left open by a call that is over."""
        with self._client._lock:
            step = self._machine.on(self._happened, self._client._clock())
        try:
            self._happened = self._do(step)
        except BaseException:
            self.close()
            raise

    def _do(self, step: Step) -> Happening:
        match step:
            case Open():
                return self._open(step)
            case Read(timeout_s):
                return self._read(timeout_s)
            case Pause(seconds, why):
                self._close()
                log.info("request %s: trying again in %.3f s: %s", self.request_id, seconds, why)
                self._client._sleep(seconds)
                return Woke()
            case Deliver(events):
                self._ready.extend(events)
                return Delivered()
            case Finish():
                self._end = StopIteration()
            case Fail(error):
                self._end = error
        self._close()
        return self._happened

    def _open(self, step: Open) -> Answered | Failed:
        self._close()
        client = self._client
        headers = client._setup.with_secret(step.headers)
        timeout = httpx.Timeout(step.timeout_s, connect=step.connect_timeout_s)
        request = client._http.build_request(
            "POST",
            step.url,
            content=step.body,
            headers=headers,
            timeout=timeout,
            extensions={"trace": self._guard.trace},
        )
        self._guard.begin(step.timeout_s)
        try:
            self._response = client._http.send(request, stream=True, follow_redirects=False)
        except httpx.RequestError as error:
            return Failed("timeout", error) if self._guard.expired else failed(error)
        finally:
            self._guard.end()
        self._guard.hold(self._response.extensions.get("network_stream"))
        self._chunks = self._response.iter_bytes()
        return Answered(self._response.status_code, self._response.headers)

    def _read(self, timeout_s: float) -> Received | Ended | Failed:
        assert self._chunks is not None
        self._guard.begin(timeout_s)
        try:
            return Received(next(self._chunks))
        except StopIteration:
            return Failed("timeout") if self._guard.expired else Ended()
        except httpx.RequestError as error:
            return Failed("timeout", error) if self._guard.expired else failed(error)
        finally:
            self._guard.end()

    def _close(self) -> None:
        response, self._response, self._chunks = self._response, None, None
        self._guard.release()
        if response is not None:
            response.close()


class Holdfast:
    """As `AsyncHoldfast`, with the same settings, errors and guarantees."""

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        policy: RetryPolicy | None = None,
        sticky: bool = False,
        http: httpx.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._setup = Setup(base_urls, api_key, policy, sticky, clock, rand)
        self._http = http or httpx.Client(limits=LIMITS)
        self._own_http = http is None
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._watchdog = Watchdog()

    def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], options: Options = NO_OPTIONS, **fields: Any
    ) -> Answer:
        """A conversation's next message, whole. `fields` are the request's others, as in docs/http-api.md."""
        return self.post(CHAT, {"model": model, "messages": messages, **fields}, options)

    def chat_stream(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], options: Options = NO_OPTIONS, **fields: Any
    ) -> Stream:
        """A conversation's next message, as events."""
        return self.stream(CHAT, {"model": model, "messages": messages, **fields}, options)

    def completions(
        self, *, model: str, prompt: str | Sequence[Any], options: Options = NO_OPTIONS, **fields: Any
    ) -> Answer:
        """A prompt's continuation, whole."""
        return self.post(COMPLETIONS, {"model": model, "prompt": prompt, **fields}, options)

    def completions_stream(
        self, *, model: str, prompt: str | Sequence[Any], options: Options = NO_OPTIONS, **fields: Any
    ) -> Stream:
        """A prompt's continuation, as events."""
        return self.stream(COMPLETIONS, {"model": model, "prompt": prompt, **fields}, options)

    def post(self, path: str, body: Mapping[str, Any], options: Options = NO_OPTIONS) -> Answer:
        """Any request that is answered as a whole. Raises `ClientError`, or `Misuse` before anything is sent."""
        with Stream(self, self._setup.call(path, body, options, streamed=False)) as stream:
            found = list(stream)
            return Answer(found[0].data, stream.request_id, stream.tries)

    def stream(self, path: str, body: Mapping[str, Any], options: Options = NO_OPTIONS) -> Stream:
        """Any request that is answered as events. `Misuse` is raised here, `ClientError` while iterating."""
        return Stream(self, self._setup.call(path, body, options, streamed=True))

    def close(self) -> None:
        """Close all connections."""
        if self._own_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Holdfast({self._setup!r})"
