"""Requests and their attempts as spans: one of each request, with a child for each attempt on a replica.

Names and attributes are those of OpenTelemetry's conventions for generative AI where there is one, vLLM's for
latencies, and Holdfast's own for the rest. Prompts and answers are not recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opentelemetry.util.types import AttributeValue

from holdfast.actors.spans import PROVIDER, Span, SpanKind, Tracing, exporting, failed, traceparent, tracestate
from holdfast.gateway.asking import Asked
from holdfast.gateway.handover import DRAINED
from holdfast.gateway.link import ReplicaLink
from holdfast.gateway.openai import Usage
from holdfast.gateway.session import StreamRun
from holdfast.gateway.tracing import (
    DECLINED,
    FINISHED,
    LOST,
    TRACEPARENT,
    TRACESTATE,
    Place,
    Prepared,
    RequestTrace,
    StreamTrace,
    Tracer,
    bounded_state,
)
from holdfast.gateway.version import VERSION

OPERATIONS: Final = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}

MODEL_CHARS_MAX: Final = 128
"""Clients may name models that there are not, as long as a body may be, and thousands of spans wait to be exported."""

_ERRORS: Final = {"overloaded", "deadline", "failed"}
"""Outcomes of requests that are the server's errors; the others are well, or the client's affair."""


def exporting_tracer(endpoint: str, ratio: float, cluster: str, gateway: str) -> RecordingTracer:
    """Spans exported by OTLP. Raises `InvalidConfig` where the exporter is not installed."""
    instance = {"service.namespace": cluster, "service.instance.id": gateway, "service.version": VERSION}
    return RecordingTracer(exporting(endpoint, ratio, "holdfast-gateway", instance), gateway)


class RecordingTracer(Tracer):
    """Makes a span of each request."""

    def __init__(self, tracing: Tracing, gateway: str) -> None:
        self._tracing = tracing
        self._gateway = gateway

    def request(self, route: str, headers: Mapping[bytes, bytes]) -> RequestTrace:
        """As `Tracer.request`."""
        names = (TRACEPARENT, TRACESTATE)
        parent = {name.decode(): headers[name].decode("latin-1") for name in names if name in headers}
        attributes = {
            "gen_ai.operation.name": OPERATIONS[route],
            "gen_ai.provider.name": PROVIDER,
            "http.request.method": "POST",
            "http.route": route,
            "holdfast.gateway": self._gateway,
        }
        span = self._tracing.begin(OPERATIONS[route], SpanKind.SERVER, parent, attributes)
        return RecordedRequest(self._tracing, span, OPERATIONS[route])

    async def close(self) -> None:
        """As `Tracer.close`."""
        await self._tracing.close()


class RecordedRequest(RequestTrace):
    """As `RequestTrace`."""

    def __init__(self, tracing: Tracing, span: Span, operation: str) -> None:
        self._tracing = tracing
        self._span = span
        self._operation = operation
        self._model = ""

    def asked(self, asked: Asked, response_id: str) -> None:
        """As `RequestTrace.asked`."""
        self.found(asked.model)
        self._span.set_attributes(
            {
                "gen_ai.request.choice.count": len(asked.choices),
                "gen_ai.request.max_tokens": asked.choices[0].max_tokens,
                "gen_ai.request.temperature": asked.choices[0].sampling.temperature,
                "gen_ai.request.stream": asked.stream,
                "gen_ai.response.id": response_id,
            }
        )

    def found(self, model: str) -> None:
        """As `RequestTrace.found`."""
        self._model = model[:MODEL_CHARS_MAX]
        self._span.update_name(f"{self._operation} {self._model}")
        self._span.set_attribute("gen_ai.request.model", self._model)

    def stream(self, choice: int) -> StreamTrace:
        """As `RequestTrace.stream`."""
        return RecordedStream(
            self._tracing, self._span, {"gen_ai.request.model": self._model, "holdfast.choice": choice}
        )

    def first_token(self, after_s: float) -> None:
        """As `RequestTrace.first_token`."""
        self._span.add_event("first_token")
        self._span.set_attribute("gen_ai.latency.time_to_first_token", after_s)

    def used(self, usage: Usage) -> None:
        """As `RequestTrace.used`."""
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)

    def ended(self, outcome: str) -> None:
        """As `RequestTrace.ended`."""
        self._span.set_attribute("holdfast.outcome", outcome)
        if outcome in _ERRORS:
            failed(self._span, outcome)
        self._span.end()


class RecordedStream(StreamTrace):
    """As `StreamTrace`."""

    def __init__(self, tracing: Tracing, request: Span, attributes: dict[str, AttributeValue]) -> None:
        self._tracing = tracing
        self._request = request
        self._attributes = attributes
        self._number = 0
        self._cause = ""
        self._attempt: tuple[Span, StreamRun, int] | None = None

    def begun(self, run: StreamRun, link: ReplicaLink) -> Place:
        """As `StreamTrace.begun`."""
        accepted = len(run.stream.accepted)
        span = self._span(link, run.ordinal, accepted, self._cause)
        self._attempt = (span, run, accepted)
        return _place(span)

    def prepared(self, run: StreamRun, link: ReplicaLink, ordinal: int, accepted: int) -> Prepared:
        """As `StreamTrace.prepared`."""
        return RecordedPreparation(self._span(link, ordinal, accepted, DRAINED), self, run)

    def adopted(self, span: Span, run: StreamRun) -> None:
        """What was prepared is the attempt under way: what the stream has by now was brought by others."""
        self._attempt = (span, run, len(run.stream.accepted))

    def _span(self, link: ReplicaLink, ordinal: int, accepted: int, cause: str) -> Span:
        self._number += 1
        host, _, port = link.address.rpartition(":")
        attributes: dict[str, AttributeValue] = {
            **self._attributes,
            "server.address": host.strip("[]"),
            "server.port": int(port),
            "holdfast.replica": link.replica,
            "holdfast.attempt.number": self._number,
            "holdfast.attempt.ordinal": ordinal,
            "holdfast.attempt.accepted_tokens": accepted,
        }
        if cause:
            attributes["holdfast.migration.cause"] = cause
        return self._tracing.begin("attempt", SpanKind.CLIENT, self._request, attributes)

    def ended(self, outcome: str, error: str = "") -> None:
        """As `StreamTrace.ended`."""
        if self._attempt is None:
            return
        (span, run, accepted), self._attempt = self._attempt, None
        self._cause = error if outcome == LOST else self._cause
        span.set_attribute("gen_ai.usage.output_tokens", len(run.stream.accepted) - accepted)
        span.set_attribute("holdfast.attempt.outcome", outcome)
        if outcome == FINISHED and run.stream.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [run.stream.finish_reason])
        if error:
            failed(span, error)
        span.end()


class RecordedPreparation(Prepared):
    """As `Prepared`."""

    def __init__(self, span: Span, trace: RecordedStream, run: StreamRun) -> None:
        super().__init__(_place(span))
        self._span = span
        self._trace = trace
        self._run = run

    def adopted(self) -> None:
        """As `Prepared.adopted`."""
        self._trace.adopted(self._span, self._run)

    def declined(self) -> None:
        """As `Prepared.declined`."""
        self._span.set_attribute("holdfast.attempt.outcome", DECLINED)
        self._span.end()


def _place(span: Span) -> Place:
    return Place(traceparent(span), bounded_state(tracestate(span)))
