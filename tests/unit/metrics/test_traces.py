"""What is traced of requests: a span of each, one below it for each attempt, and one below that in the replica."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from holdfast.actors.engines.mock import MockEngine, parse_settings
from holdfast.actors.metric_families import REQUESTS
from holdfast.actors.replica_traces import ReplicaTraces
from holdfast.actors.spans import Reporting, Tracing
from holdfast.actors.wire import Connection
from holdfast.core.errors import RequestRefused
from holdfast.core.frames import PROTOCOL_VERSION, Fence, Hello, Start, Stop
from holdfast.core.requests import EngineRequest
from holdfast.gateway.app import App, create_app
from holdfast.gateway.recording import RecordingTracer
from holdfast.gateway.serving import Serving
from holdfast.gateway.tracing import bounded_state
from tests.unit.gateway.client import CHAT, COMPLETIONS, ask, chat, completion, converse
from tests.unit.support.history import application
from tests.unit.support.replicas import CLUSTER, LocalReplica, Site, eventually
from tests.unit.support.replicas import ask as engine_request

pytestmark = pytest.mark.memory_network

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}


class Traced:
    """A gateway and its replicas, all of which put their spans into one exporter."""

    def __init__(self, site: Site, *, gateway_traces: bool = True) -> None:
        self.site = site
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)
        self.tracer = RecordingTracer(self.tracing, "g") if gateway_traces else None
        self.serving: Serving | None = None
        self.app: App | None = None

    async def replica(self, engine: MockEngine | None = None, **arguments: Any) -> LocalReplica:
        replica = await self.site.replica(engine=engine, **arguments)
        replica.replica._traces = ReplicaTraces(self.tracing, replica.name, "tiny")
        return replica

    async def open(self) -> App:
        self.serving = await self.site.gateway()
        self.app = create_app(self.serving, tracer=self.tracer)
        return self.app

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those that ended, in the order in which they began."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy(application(replicas=2))
    return site


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    context = parent.get_span_context()
    assert context is not None
    return span.parent is not None and span.parent.span_id == context.span_id and trace_of(span) == context.trace_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


async def test_a_request_is_part_of_its_clients_trace_and_the_replicas_span_is_below_the_attempts(site: Site) -> None:
    async with site:
        traced = Traced(site)
        replica = await traced.replica()
        app = await traced.open()
        answer = await ask(app, CHAT, chat(max_tokens=5, stream=True), TRACEPARENT)
        assert answer.status == 200
        request, attempt, engine = traced.one("chat tiny"), traced.one("attempt"), traced.one("generate tiny")
        assert trace_of(request) == int(TRACE, 16)
        assert request.parent is not None
        assert request.parent.span_id == int(CLIENT_SPAN, 16)
        assert is_below(attempt, request)
        assert is_below(engine, attempt)
        assert events(request) == ["first_token"]
        assert events(engine) == ["queued", "admitted", "first_token"]
        told = attributes(request)
        assert told["gen_ai.operation.name"] == "chat"
        assert told["gen_ai.request.model"] == "tiny"
        assert told["gen_ai.request.max_tokens"] == 5
        assert told["gen_ai.usage.output_tokens"] == attributes(engine)["gen_ai.usage.output_tokens"] == 5
        assert told["gen_ai.usage.input_tokens"] == attributes(engine)["gen_ai.usage.input_tokens"]
        assert told["gen_ai.response.id"] == answer.chunks[0]["id"]
        assert told["holdfast.outcome"] == "ok"
        assert attributes(attempt)["holdfast.replica"] == attributes(engine)["holdfast.replica"] == replica.name
        assert attributes(attempt)["holdfast.attempt.number"] == 1
        assert attributes(attempt)["gen_ai.response.finish_reasons"] == ("length",)
        assert request.status.status_code is StatusCode.UNSET


async def test_without_a_clients_trace_a_request_begins_one(site: Site) -> None:
    async with site:
        traced = Traced(site)
        await traced.replica()
        app = await traced.open()
        await ask(app, COMPLETIONS, completion(max_tokens=2))
        await ask(app, COMPLETIONS, completion(max_tokens=2), {"traceparent": "nonsense"})
        first, second = traced.spans("text_completion tiny")
        assert first.parent is None
        assert second.parent is None
        assert trace_of(first) != trace_of(second)
        assert len(traced.spans("generate tiny")) == 2


async def test_each_attempt_has_its_span_and_the_next_one_says_why_there_is_another(site: Site) -> None:
    async with site:
        traced = Traced(site)
        replicas = [await traced.replica(itl_ms=2), await traced.replica(itl_ms=2)]
        app = await traced.open()
        asking = asyncio.create_task(ask(app, CHAT, chat(max_tokens=60, stream=True)))
        await eventually(lambda: any(replica.replica._engine_watch.steps > 5 for replica in replicas))
        await next(replica for replica in replicas if not replica.free).kill()
        assert (await asking).status == 200
        request, (first, second) = traced.one("chat tiny"), traced.spans("attempt")
        assert is_below(first, request)
        assert is_below(second, request)
        assert first.status.status_code is StatusCode.ERROR
        assert attributes(first)["error.type"] == "lost"
        assert attributes(second)["holdfast.migration.cause"] == "lost"
        assert attributes(second)["holdfast.attempt.number"] == 2
        brought = [int(str(attributes(span)["gen_ai.usage.output_tokens"])) for span in (first, second)]
        assert sum(brought) == attributes(request)["gen_ai.usage.output_tokens"] == 60
        assert attributes(second)["holdfast.attempt.accepted_tokens"] == brought[0]
        assert is_below(traced.one("generate tiny"), second)


@pytest.mark.parametrize("gateway_traces", [True, False])
async def test_a_stream_that_leaves_a_replica_takes_its_trace_along(site: Site, gateway_traces: bool) -> None:
    async with site:
        traced = Traced(site, gateway_traces=gateway_traces)
        replicas = [await traced.replica(itl_ms=2), await traced.replica(itl_ms=2)]
        app = await traced.open()
        asking = asyncio.create_task(ask(app, CHAT, chat(max_tokens=200, stream=True), TRACEPARENT))
        await eventually(lambda: any(replica.replica._engine_watch.steps > 5 for replica in replicas))
        next(replica for replica in replicas if not replica.free).replica.dismiss()
        assert (await asking).status == 200
        first, second = traced.spans("generate tiny")
        assert trace_of(first) == trace_of(second) == int(TRACE, 16)
        assert attributes(first)["holdfast.replica"] != attributes(second)["holdfast.replica"]
        if gateway_traces:
            left, joined = traced.spans("attempt")
            assert (is_below(first, left), is_below(second, joined)) == (True, True)
            assert attributes(left)["error.type"] == attributes(joined)["holdfast.migration.cause"] == "drained"
            assert attributes(joined)["holdfast.replica"] == attributes(second)["holdfast.replica"]
            brought = [int(str(attributes(span)["gen_ai.usage.output_tokens"])) for span in (left, joined)]
            assert sum(brought) == 200
            assert min(brought) > 0


class Slow(MockEngine):
    """Takes nothing in until it may."""

    def __init__(self, error: RequestRefused | None = None) -> None:
        super().__init__(parse_settings({}), "tiny", random.Random(1))
        self.may, self.asked, self.error = asyncio.Event(), 0, error

    async def admit(self, key: int, request: EngineRequest) -> int:
        self.asked += 1
        await self.may.wait()
        if self.error is not None:
            raise self.error
        return await super().admit(key, request)


@pytest.mark.parametrize("why", ["refused", "the client is gone"])
async def test_a_move_that_comes_to_nothing_ends_its_span_and_the_stream_keeps_its_own(site: Site, why: str) -> None:
    async with site:
        traced = Traced(site)
        source = await traced.replica(itl_ms=2)
        slow = Slow(RequestRefused("no", code="no") if why == "refused" else None)
        app = await traced.open()
        leaves = asyncio.Event()
        body = [json.dumps(chat(max_tokens=200, stream=True)).encode()]
        asking = asyncio.create_task(converse(app, CHAT, body, TRACEPARENT, leaves=leaves))
        await eventually(lambda: source.replica._engine_watch.steps > 5)
        await traced.replica(engine=slow)
        source.replica.dismiss()
        await eventually(lambda: slow.asked > 0)
        if why != "refused":
            leaves.set()
            await eventually(lambda: bool(traced.spans("chat tiny")))
        slow.may.set()
        await asking
        await eventually(lambda: "declined" in outcomes(traced))
        assert set(outcomes(traced)) == {"declined", "finished" if why == "refused" else "ended"}
        for attempt in traced.spans("attempt"):
            assert is_below(attempt, traced.one("chat tiny"))


def outcomes(traced: Traced) -> list[object]:
    return [attributes(span)["holdfast.attempt.outcome"] for span in traced.spans("attempt")]


@pytest.mark.parametrize("why", ["stop", "fence", "lost"])
async def test_an_attempt_that_nobody_wants_while_it_waits_for_the_engine_ends_its_span(site: Site, why: str) -> None:
    async with site:
        traced, engine = Traced(site), Slow()
        replica = await traced.replica(engine=engine)
        host, port = replica.address.rsplit(":", 1)
        bodies: list[bytes] = []
        _, gateway = await asyncio.get_running_loop().create_connection(
            lambda: Connection(lambda _one, body: bodies.append(body), lambda _one: None), host, int(port)
        )
        gateway.send(Hello(PROTOCOL_VERSION, CLUSTER, "g", replica.name))
        for attempt in (1, 2, 3):
            gateway.send(Start(attempt, EngineRequest(prompt="x"), trace=TRACEPARENT["traceparent"]))
        await eventually(lambda: engine.asked == 1 and len(replica.replica._starts) == 2)
        match why:
            case "stop":
                gateway.send(Stop(2))
            case "fence":
                gateway.send(Fence([2], []))
            case _:
                gateway.abort()
        wanted = 0 if why == "lost" else 1
        await eventually(lambda: len(replica.replica._starts) == wanted)
        spans = traced.spans("generate tiny")
        assert [attributes(span)["holdfast.attempt.outcome"] for span in spans] == ["dropped"] * (2 - wanted)
        assert {events(span)[-1] for span in spans} == {"queued"}
        assert engine.asked == 1
        engine.may.set()
        gateway.abort()


STATE = "vendor=a:b,other=1"


@pytest.mark.parametrize("gateway_traces", [True, False])
async def test_what_others_noted_in_the_trace_reaches_the_engine(site: Site, gateway_traces: bool) -> None:
    async with site:
        traced = Traced(site, gateway_traces=gateway_traces)
        await traced.replica()
        app = await traced.open()
        answer = await ask(app, CHAT, chat(max_tokens=2), {**TRACEPARENT, "tracestate": STATE})
        assert answer.status == 200
        context = traced.one("generate tiny").get_span_context()
        assert context is not None
        assert context.trace_state.to_header() == STATE


def test_a_trace_state_is_bounded_by_whole_members_and_what_is_none_is_passed_over() -> None:
    members = [f"vendor{number}=" + "x" * 100 for number in range(10)]
    assert bounded_state(",".join(members)) == ",".join(members[:4])
    assert bounded_state("a=" + "x" * 510) == "a=" + "x" * 510
    assert bounded_state("a=" + "x" * 511) == ""
    assert bounded_state("a=1, b=2,") == "a=1, b=2,"
    for nothing in ("", "nonsense", "a=1,\n", "a=\x00", "a=\xff"):
        assert bounded_state(nothing) == ""


async def test_a_gateway_that_does_not_trace_passes_its_clients_place_on_and_nothing_else(site: Site) -> None:
    async with site:
        traced = Traced(site, gateway_traces=False)
        await traced.replica()
        app = await traced.open()
        await ask(app, CHAT, chat(max_tokens=2))
        await ask(app, CHAT, chat(max_tokens=2), {"traceparent": "00-" + "0" * 32 + "-" + "1" * 16 + "-01"})
        assert traced.exporter.get_finished_spans() == ()
        await ask(app, CHAT, chat(max_tokens=2), TRACEPARENT)
        (span,) = traced.exporter.get_finished_spans()
        assert span.parent is not None
        assert (trace_of(span), span.parent.span_id) == (int(TRACE, 16), int(CLIENT_SPAN, 16))


async def test_what_its_client_does_not_sample_is_not_recorded_anywhere(site: Site) -> None:
    async with site:
        traced = Traced(site)
        await traced.replica()
        app = await traced.open()
        answer = await ask(app, CHAT, chat(max_tokens=2), {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-00"})
        assert answer.status == 200
        assert traced.exporter.get_finished_spans() == ()


class Refusing(MockEngine):
    """Takes nothing in, and notes the trace in which it was asked."""

    def __init__(self) -> None:
        super().__init__(parse_settings({}), "tiny", random.Random(1))
        self.seen = 0

    async def admit(self, key: int, request: EngineRequest) -> int:
        self.seen = trace.get_current_span().get_span_context().trace_id
        raise RequestRefused("too long", code="context_length_exceeded")


async def test_the_engines_own_code_finds_the_trace_and_a_refusal_is_told_in_all_spans(site: Site) -> None:
    async with site:
        traced, engine = Traced(site), Refusing()
        await traced.replica(engine=engine)
        app = await traced.open()
        assert (await ask(app, CHAT, chat(), TRACEPARENT)).status == 400
        assert engine.seen == int(TRACE, 16)
        assert attributes(traced.one("generate tiny"))["error.type"] == "context_length_exceeded"
        assert attributes(traced.one("attempt"))["holdfast.attempt.outcome"] == "refused"
        assert attributes(traced.one("chat tiny"))["holdfast.outcome"] == "refused"
        assert traced.one("chat tiny").status.status_code is StatusCode.UNSET


class Flaky(SpanExporter):
    """An exporter whose collector comes and goes."""

    def __init__(self) -> None:
        self.result: SpanExportResult | Exception = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_an_exporters_failures_go_no_further_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky()
    exporter = Reporting(flaky, "http://collector")
    with caplog.at_level(logging.WARNING):
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert not caplog.messages
        flaky.result = RuntimeError("no route to host")
        assert exporter.export([]) is SpanExportResult.FAILURE
        flaky.result = SpanExportResult.FAILURE
        assert exporter.export([]) is SpanExportResult.FAILURE
        flaky.result = SpanExportResult.SUCCESS
        assert exporter.export([]) is SpanExportResult.SUCCESS
    first, second = caplog.messages
    assert "can't be exported" in first
    assert "again" in second


def test_who_does_not_trace_does_not_even_load_opentelemetry() -> None:
    program = (
        "import sys, holdfast.gateway.gateway_process, holdfast.actors.replica_main, holdfast.actors.engines.mock\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=240).returncode == 0


async def test_a_rejection_has_the_model_that_it_is_about_in_metrics_and_in_its_span() -> None:
    site = Site()
    site.deploy(application(replicas=1, max_ongoing_requests=1, max_queued_requests=1))
    async with site, AsyncExitStack() as stack:
        traced = Traced(site)
        replica = await traced.replica()
        replica.engine.hang()
        app = await traced.open()
        serving = traced.serving
        assert serving is not None
        for _ in range(2):
            await stack.enter_async_context(serving.open("tiny", [engine_request()], stops=[]))
        ledger = app.metrics.ledger
        # The first is understood before it is rejected; from then on that comes first.
        for rejected in (1, 2):
            assert (await ask(app, CHAT, chat(model="tiny"))).status == 503
            assert ledger.value(REQUESTS, CHAT, "tiny", "overloaded", "false") == rejected
        assert serving.crowded()
        assert (await ask(app, CHAT, chat(model="none"))).status == 404
        assert ledger.value(REQUESTS, CHAT, "", "refused", "false") == 1
        serving.standing.draining = True
        assert (await ask(app, CHAT, chat(model="tiny"))).error["code"] == "gateway_stopping"
        assert ledger.value(REQUESTS, CHAT, "tiny", "overloaded", "false") == 3
        assert [attributes(span)["gen_ai.request.model"] for span in traced.spans("chat tiny")] == ["tiny"] * 3


async def test_a_model_that_there_is_not_takes_no_more_room_in_a_span_than_a_name(site: Site) -> None:
    async with site:
        traced = Traced(site)
        await traced.replica()
        answer = await ask(await traced.open(), CHAT, {**chat(), "model": "x" * 100_000})
        assert answer.status == 404
        (span,) = traced.exporter.get_finished_spans()
        assert max(len(span.name), *(len(str(value)) for value in attributes(span).values())) < 200


@pytest.mark.parametrize(
    "given", ["", "00-", f"00-{'0' * 32}-{CLIENT_SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CLIENT_SPAN}-01"]
)
async def test_a_place_in_a_trace_that_is_none_begins_a_new_trace_and_spoils_no_request(site: Site, given: str) -> None:
    async with site:
        traced = Traced(site)
        await traced.replica()
        assert (await ask(await traced.open(), CHAT, chat(max_tokens=2), {"traceparent": given})).status == 200
        request = traced.one("chat tiny")
        assert request.parent is None
        assert trace_of(request) != int(TRACE, 16)
