"""OpenTelemetry, as far as it is used here. Imported only where somebody traces: it takes 2 MB, 8 MB with the export.

Spans go to a bounded queue, from which a thread of the SDK exports them. A collector that is slow or away costs the
spans that find no room in the queue, and a line in the log when it begins and when it is over; serving never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from holdfast.core.errors import InvalidConfig

__all__ = ["Span", "SpanKind", "Tracing", "exporting"]

QUEUE_MAX = 2048
"""Spans that may wait to be exported; the oldest are dropped for newer ones."""

BATCH_MAX = 256
DELAY_MS = 1000.0
EXPORT_TIMEOUT_S = 2.0
"""So many spans go at once, so long after the first of them ended (milliseconds), and so long may it take (seconds)."""

CLOSE_TIMEOUT_S = 2.0
"""How long a process that ends waits for its last spans to be exported (seconds)."""

PROVIDER = "holdfast"
"""`gen_ai.provider.name`."""

_PROPAGATOR = TraceContextTextMapPropagator()

logger = logging.getLogger(__name__)


class Tracing:
    """Begins spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("holdfast")

    def begin(
        self,
        name: str,
        kind: SpanKind,
        parent: Span | Mapping[str, str],
        attributes: Mapping[str, AttributeValue],
    ) -> Span:
        """A span below `parent`: one of this process, or what came with a request (`traceparent`, `tracestate`).

        Where nothing that is valid came, it begins a trace.
        """
        context = trace.set_span_in_context(parent) if isinstance(parent, Span) else _PROPAGATOR.extract(parent)
        return self._tracer.start_span(name, context, kind, attributes)

    async def close(self) -> None:
        """Export what waits, for a bounded time."""
        # A collector that does not answer must not hold up the process's end, as an executor's thread would.
        thread = threading.Thread(target=self.provider.shutdown, daemon=True)
        thread.start()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CLOSE_TIMEOUT_S
        while thread.is_alive() and loop.time() < until_s:  # noqa: ASYNC110 (a thread sets no event of a loop)
            await asyncio.sleep(0.02)


def traceparent(span: Span) -> str:
    """The span's place in its trace, as W3C Trace Context writes it."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def tracestate(span: Span) -> str:
    """What others noted of the span's trace along the way, as W3C Trace Context writes it."""
    return span.get_span_context().trace_state.to_header()


def failed(span: Span, error: str) -> None:
    """Note that what the span is about failed, by a word for why."""
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, error))


@contextlib.contextmanager
def current(span: Span) -> Iterator[None]:
    """Let code that runs meanwhile find the span as OpenTelemetry's current one."""
    with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        yield


def exporting(endpoint: str, ratio: float, service: str, instance: Mapping[str, str]) -> Tracing:
    """Spans exported by OTLP over HTTP to `endpoint`. `ratio` of the traces that begin here are recorded.

    Raises `InvalidConfig` where the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidConfig(f"traces are exported with pip install 'holdfast[otlp]' ({error})") from error
    # What it says of a collector that is away, a line for each batch and each span dropped, `_Reporting` says once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    resource = Resource.create({"service.name": service, **instance})
    sampler = ParentBased(TraceIdRatioBased(ratio))
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    exporter = Reporting(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S), endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter, QUEUE_MAX, DELAY_MS, BATCH_MAX))
    return Tracing(provider)


class Reporting(SpanExporter):
    """An exporter whose failures are told when they begin and when they are over, and go no further."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As `SpanExporter.export`, in the SDK's thread."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            logger.debug("spans are not exported: %r", error)
            result = SpanExportResult.FAILURE
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            logger.warning("spans can't be exported to %s; they are lost until they can", self._endpoint)
        elif self._failing and not failing:
            logger.warning("spans are exported to %s again", self._endpoint)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """As `SpanExporter.shutdown`."""
        self._exporter.shutdown()
