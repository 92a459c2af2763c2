"""Both clients on real sockets, against gateways that break on purpose. Pauses are virtual."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from holdfast.gateway.client import (
    Answer,
    AsyncHoldfast,
    CannotResume,
    ClientError,
    ConnectionFailed,
    DeadlinePassed,
    Event,
    Holdfast,
    Options,
    Refused,
    RetryPolicy,
    Unavailable,
)
from tests.unit.client.fleet import answer, datas
from tests.unit.client.server import Act, Servers, serving

MESSAGES = [{"role": "user", "content": "hold fast"}]
WHOLE = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"content": "aaa" * 50}, "finish_reason": "stop"}]}
KEY = "sk-very-secret"


@pytest.fixture
def servers() -> Iterator[Servers]:
    with serving(Servers(answer(), WHOLE)) as running:
        yield running


DEADLINE_S = 60.0
LEFT_S = 0.2


@dataclass
class Virtual:
    """Time that passes in pauses only.

    If that is asked for, all but `LEFT_S` of `DEADLINE_S` are over after so many events, and real time counts from
    then on: none is lost while a busy machine brings the events.
    """

    skew_s: float = 0.0
    pauses: list[float] = field(default_factory=list)
    late_after: int | None = None
    late_since_s: float | None = None

    def clock(self) -> float:
        return self.skew_s + (0.0 if self.late_since_s is None else time.monotonic() - self.late_since_s)

    def got(self, events: int) -> None:
        """The caller has so many events."""
        if events == self.late_after:
            self.skew_s += DEADLINE_S - LEFT_S
            self.late_since_s = time.monotonic()

    def sleep(self, seconds: float) -> None:
        self.skew_s += seconds
        self.pauses.append(seconds)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@dataclass
class Result:
    """What one call gave."""

    events: list[Event]
    error: ClientError | None
    pauses: list[float]
    took_s: float


Stream = Callable[..., Result]


def blocking(
    servers: Servers,
    policy: RetryPolicy | None = None,
    options: Options | None = None,
    late_after: int | None = None,
) -> Result:
    """A streamed chat with the blocking client."""
    virtual, events = Virtual(late_after=late_after), []
    settings: dict[str, Any] = {"clock": virtual.clock, "sleep": virtual.sleep, "rand": lambda: 0.0}
    with Holdfast(servers.urls, api_key=KEY, policy=policy, **settings) as client:
        try:
            with client.chat_stream(model="m", messages=MESSAGES, options=options or Options()) as stream:
                for event in stream:
                    events.append(event)
                    virtual.got(len(events))
        except ClientError as error:
            return Result(events, error, virtual.pauses, virtual.clock())
        return Result(events, None, virtual.pauses, virtual.clock())


def asynchronous(
    servers: Servers,
    policy: RetryPolicy | None = None,
    options: Options | None = None,
    late_after: int | None = None,
) -> Result:
    """The same with the other client."""

    async def run() -> Result:
        virtual, events = Virtual(late_after=late_after), []
        settings: dict[str, Any] = {"clock": virtual.clock, "sleep": virtual.asleep, "rand": lambda: 0.0}
        async with AsyncHoldfast(servers.urls, api_key=KEY, policy=policy, **settings) as client:
            try:
                async with client.chat_stream(model="m", messages=MESSAGES, options=options or Options()) as stream:
                    async for event in stream:
                        events.append(event)
                        virtual.got(len(events))
            except ClientError as error:
                return Result(events, error, virtual.pauses, virtual.clock())
            return Result(events, None, virtual.pauses, virtual.clock())

    return asyncio.run(run())


@pytest.fixture(params=[blocking, asynchronous], ids=["blocking", "asyncio"])
def stream(request: pytest.FixtureRequest) -> Stream:
    found: Stream = request.param
    return found


def complete(servers: Servers, result: Result) -> bool:
    return result.error is None and [event.data for event in result.events] == datas(servers.sent)


@pytest.mark.parametrize("kind", ["reset", "polite_end"])
@pytest.mark.parametrize("after", range(8))
def test_a_stream_cut_anywhere_goes_on_at_the_other_gateway(
    servers: Servers, stream: Stream, kind: Any, after: int
) -> None:
    servers.plan = [Act(kind, after)]
    result = stream(servers)
    assert complete(servers, result)
    assert result.pauses == [0.1]
    first, second = servers.requests
    assert (first.gateway, second.gateway) == (0, 1)
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert first.body == second.body == {"model": "m", "messages": MESSAGES, "stream": True}
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert "last-event-id" not in first.headers
    assert second.headers.get("last-event-id") == (servers.sent[after - 1].id if after else None)


def test_several_breaks_in_one_stream_leave_it_whole(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("drop"), Act("reset", 2), Act("status", status=503), Act("reset", 1), Act("polite_end", 1)]
    result = stream(servers)
    assert complete(servers, result)
    assert result.pauses == pytest.approx([0.1, 0.1, 0.4, 0.1, 0.1])


def test_a_gateway_that_is_not_there_is_passed_over_and_then_tried_last(servers: Servers) -> None:
    servers.urls.insert(0, "http://127.0.0.1:1")
    virtual = Virtual()
    with Holdfast(servers.urls, clock=virtual.clock, sleep=virtual.sleep, rand=lambda: 0.0) as client:
        assert client.chat_stream(model="m", messages=MESSAGES).text() == "aa\u2028éaa"
        assert client.chat(model="m", messages=MESSAGES).tries == 1
    assert virtual.pauses == [0.1]


def test_where_no_gateway_is_there_the_error_says_so(stream: Stream) -> None:
    result = stream(Servers([], urls=["http://127.0.0.1:1"]))
    assert isinstance(result.error, ConnectionFailed)
    assert "http://127.0.0.1:1 could not be reached" in str(result.error)
    assert isinstance(result.error.__cause__, httpx.ConnectError)
    assert result.pauses == pytest.approx([0.1, 0.4, 1.6, 6.4, 25.6])


def test_a_rejection_is_waited_for_as_long_as_it_says(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("status", status=429, headers="retry-after: 7\r\n")]
    result = stream(servers)
    assert complete(servers, result)
    assert result.pauses == [7.0]


def test_a_gateway_that_stops_is_not_waited_for(servers: Servers, stream: Stream) -> None:
    error = {"message": "stopping", "code": "gateway_stopping"}
    servers.plan = [Act("status", status=503, headers="retry-after: 7\r\n", error=error)]
    result = stream(servers)
    assert complete(servers, result)
    assert result.pauses == [0.0]


def test_a_refusal_is_not_repeated(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("status", status=404, error={"message": "no such model", "code": "model_not_found"})]
    result = stream(servers)
    assert isinstance(result.error, Refused)
    assert (result.error.status, result.error.code, len(servers.requests)) == (404, "model_not_found", 1)


def test_a_resume_that_is_refused_ends_the_stream(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("reset", 3), Act("status", status=400, error={"message": "gone", "code": "cannot_resume"})]
    result = stream(servers)
    assert isinstance(result.error, CannotResume)
    assert "gone" in str(result.error)
    assert len(result.events) == 3


def test_a_stream_that_falls_silent_goes_on_elsewhere(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("stall", 3)]
    result = stream(servers, RetryPolicy(try_timeout_s=2.0))
    assert complete(servers, result)
    assert len(servers.requests) == 2


def test_a_silent_gateway_does_not_hold_a_call_beyond_its_deadline(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("stall", 3)]
    result = stream(servers, options=Options(deadline_s=DEADLINE_S), late_after=3)
    assert isinstance(result.error, DeadlinePassed)
    assert len(result.events) == 3
    assert len(servers.requests) == 1
    assert result.took_s >= DEADLINE_S


def test_a_broken_stream_is_taken_up_by_another_call(servers: Servers, stream: Stream) -> None:
    servers.plan = [Act("reset", 4)]
    first = stream(servers, RetryPolicy(retries_max=0))
    assert first.error is not None
    second = stream(servers, options=Options(last_event_id=first.error.last_event_id))
    assert second.error is None
    assert [event.data for event in first.events + second.events] == datas(servers.sent)


def leave_after_one(servers: Servers, kind: str) -> tuple[Event, str]:
    """The first of events that come together, and where the stream could be resumed by whoever left then."""
    if kind == "blocking":
        with Holdfast(servers.urls) as client, client.chat_stream(model="m", messages=MESSAGES) as stream:
            return next(stream), stream.last_event_id

    async def run() -> tuple[Event, str]:
        async with AsyncHoldfast(servers.urls) as client:
            stream = client.chat_stream(model="m", messages=MESSAGES)
            first = await anext(stream)
            await stream.aclose()
            return first, stream.last_event_id

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_who_left_early_resumes_behind_what_it_took_not_behind_what_came(servers: Servers, kind: str) -> None:
    servers.plan = [Act("together")]
    first, last_event_id = leave_after_one(servers, kind)
    assert last_event_id == first.id
    rest = blocking(servers, options=Options(last_event_id=last_event_id))
    assert [event.data for event in [first, *rest.events]] == datas(servers.sent)


def ask(servers: Servers, kind: str) -> Answer:
    """A whole answer, with one client or the other."""
    virtual = Virtual()
    if kind == "blocking":
        with Holdfast(servers.urls, clock=virtual.clock, sleep=virtual.sleep) as client:
            return client.completions(model="m", prompt="p")

    async def run() -> Answer:
        async with AsyncHoldfast(servers.urls, clock=virtual.clock, sleep=virtual.asleep) as client:
            return await client.completions(model="m", prompt="p")

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_whole_answer_is_asked_for_until_it_is_whole(servers: Servers, kind: str) -> None:
    servers.plan = [Act("drop"), Act("reset"), Act("status", status=502)]
    got = ask(servers, kind)
    assert (got.data, got.text, got.tries) == (WHOLE, "aaa" * 50, 4)
    assert [request.path for request in servers.requests] == ["/v1/completions"] * 4
    servers.plan = [Act("status", status=503)] * 9
    with pytest.raises(Unavailable, match="told to"):
        ask(servers, kind)


def test_connections_are_used_again(servers: Servers, stream: Stream) -> None:
    virtual = Virtual()
    with Holdfast(servers.urls[0], clock=virtual.clock, sleep=virtual.sleep) as client:
        for _ in range(3):
            client.chat_stream(model="m", messages=MESSAGES).text()
    assert len({request.port for request in servers.requests}) == 1

    async def run() -> None:
        async with AsyncHoldfast(servers.urls[1]) as client:
            for _ in range(3):
                await client.chat_stream(model="m", messages=MESSAGES).text()

    asyncio.run(run())
    assert len({request.port for request in servers.requests}) == 2


def test_leaving_early_closes_the_connection(servers: Servers) -> None:
    servers.plan = [Act("stall", 2), Act("stall", 2)]
    with Holdfast(servers.urls[0]) as client:
        with client.chat_stream(model="m", messages=MESSAGES) as stream:
            next(stream)
        assert servers.closed.acquire(timeout=60)
        assert list(stream) == []

    async def run() -> None:
        async with AsyncHoldfast(servers.urls[1]) as client:
            async with client.chat_stream(model="m", messages=MESSAGES) as stream:
                await anext(stream)
            assert await asyncio.to_thread(servers.closed.acquire, timeout=60)
            assert [event async for event in stream] == []

    asyncio.run(run())


@pytest.mark.parametrize("events", [0, 2])
def test_a_cancelled_task_closes_its_connection(servers: Servers, events: int) -> None:
    servers.plan = [Act("stall", events)]

    async def run() -> None:
        async with AsyncHoldfast(servers.urls) as client:
            task = asyncio.ensure_future(client.chat_stream(model="m", messages=MESSAGES).text())
            assert await asyncio.to_thread(servers.stalled.acquire, timeout=60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(servers.closed.acquire, timeout=60)

    asyncio.run(run())


def test_threads_share_a_client(servers: Servers) -> None:
    servers.plan = [Act("reset", n % 6) for n in range(16)]
    policy = replace(RetryPolicy(), retries_max=20)

    async def run(client: Holdfast) -> list[str]:
        texts = [client.chat_stream(model="m", messages=MESSAGES).text for _ in range(8)]
        return await asyncio.gather(*(asyncio.to_thread(text) for text in texts))

    virtual = Virtual()
    with Holdfast(servers.urls, policy=policy, clock=virtual.clock, sleep=virtual.sleep) as client:
        assert asyncio.run(run(client)) == ["aa\u2028éaa"] * 8


def test_a_try_tells_what_is_left_of_the_calls_time_and_what_its_caller_sends_along(
    servers: Servers, stream: Stream
) -> None:
    servers.plan = [Act("reset", 2)]
    stream(servers, options=Options(deadline_s=20, headers={"X-Holdfast-Parent": "p"}))
    first, second = (float(one.headers["x-request-timeout-seconds"]) for one in servers.requests[:2])
    assert 20 < second < first <= 21
    assert [one.headers["x-holdfast-parent"] for one in servers.requests[:2]] == ["p", "p"]


def test_what_is_logged_names_the_request_and_no_secret(
    servers: Servers, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    servers.plan = [Act("reset", 2)]
    stream(servers, options=Options(request_id="req-7"))
    assert "request req-7: trying again in 0.100 s: http://127.0.0.1" in caplog.text
    assert KEY not in caplog.text
