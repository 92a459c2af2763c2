"""A replica's part in traces: a span for each attempt that came with a place in a trace, from its arrival to its end.

Imported only where somebody traces. What is traced costs a look-up per token, what is not costs nothing.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager

from opentelemetry.trace import Span, SpanKind, set_tracer_provider

from holdfast.actors.engines.base import StepOutput
from holdfast.actors.spans import PROVIDER, Tracing, current, exporting, failed
from holdfast.actors.specification import ReplicaSpecification
from holdfast.core.errors import InvalidConfig
from holdfast.core.frames import Start

DROPPED = "dropped"
"""How an attempt ended that nobody wanted any more."""

logger = logging.getLogger(__name__)


def exporting_traces(specification: ReplicaSpecification) -> ReplicaTraces | None:
    """Traces that are exported to where the specification says; None, with a warning, where that can't be done.

    Spans that the engine's own code begins by OpenTelemetry's global tracer go there as well.
    """
    replica, model = specification.replica, specification.model
    instance = {"service.namespace": specification.cluster, "service.instance.id": replica}
    try:
        # What is traced here is what gateways trace: nothing begins a trace of its own.
        tracing = exporting(specification.otlp_endpoint, 0.0, "holdfast-replica", instance)
    except InvalidConfig as error:
        logger.warning("nothing is traced: %s", error)
        return None
    set_tracer_provider(tracing.provider)
    return ReplicaTraces(tracing, replica, model)


class _Running:
    """A span of a stream that the engine has."""

    __slots__ = ("admitted_ns", "first_ns", "span", "tokens")

    def __init__(self, span: Span, admitted_ns: int) -> None:
        self.span = span
        self.tokens = 0
        self.admitted_ns = admitted_ns
        self.first_ns = 0


class ReplicaTraces:
    """Spans of attempts, by the engine's key once the engine has them."""

    def __init__(self, tracing: Tracing, replica: str, model: str) -> None:
        self._tracing = tracing
        self._replica = replica
        self._model = model
        self._running: dict[int, _Running] = {}

    def arrived(self, start: Start) -> Span | None:
        """An attempt came in. None where nobody traces it."""
        if not start.trace:
            return None
        attributes = {
            "gen_ai.operation.name": "chat" if start.request.messages is not None else "text_completion",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self._model,
            "gen_ai.request.max_tokens": start.request.max_tokens,
            "holdfast.replica": self._replica,
            "holdfast.attempt.ordinal": start.ordinal,
            "holdfast.attempt.accepted_tokens": len(start.request.accepted),
        }
        parent = {"traceparent": start.trace, "tracestate": start.trace_state}
        span = self._tracing.begin(f"generate {self._model}", SpanKind.SERVER, parent, attributes)
        span.add_event("queued")
        return span if span.is_recording() else None

    def during(self, span: Span) -> AbstractContextManager[None]:
        """While the engine takes the attempt in, its code finds the span as the current one."""
        return current(span)

    def refused(self, span: Span, code: str) -> None:
        """The engine did not take it."""
        failed(span, code)
        span.end()

    def withdrawn(self, span: Span) -> None:
        """Nobody wants it any more, before the engine was asked."""
        span.set_attribute("holdfast.attempt.outcome", DROPPED)
        span.end()

    def admitted(self, key: int, span: Span, prompt_tokens: int, waited_s: float) -> None:
        """The engine took it in; its prompt is read next."""
        span.add_event("admitted")
        span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        span.set_attribute("gen_ai.latency.time_in_queue", waited_s)
        self._running[key] = _Running(span, time.time_ns())

    def stepped(self, output: StepOutput) -> None:
        """The engine made a step."""
        running = self._running
        if not running:
            return
        for key in output.keys:
            one = running.get(key)
            if one is not None:
                one.tokens += 1
                if one.tokens == 1:
                    self._first(one)
        for key, reason in output.finished:
            self._end(key, reason)

    def dropped(self, key: int) -> None:
        """Nobody wants more of it."""
        self._end(key, "")

    async def close(self) -> None:
        """Export what waits, for a bounded time."""
        await self._tracing.close()

    def _first(self, one: _Running) -> None:
        """Its prompt is read: from here on it decodes."""
        one.first_ns = time.time_ns()
        one.span.add_event("first_token", timestamp=one.first_ns)
        one.span.set_attribute("gen_ai.latency.time_in_model_prefill", (one.first_ns - one.admitted_ns) / 1e9)

    def _end(self, key: int, reason: str) -> None:
        one = self._running.pop(key, None)
        if one is None:
            return
        span, now_ns = one.span, time.time_ns()
        span.set_attribute("gen_ai.usage.output_tokens", one.tokens)
        if one.first_ns:
            span.set_attribute("gen_ai.latency.time_in_model_decode", (now_ns - one.first_ns) / 1e9)
        if reason:
            span.set_attribute("gen_ai.response.finish_reasons", [reason])
        else:
            span.set_attribute("holdfast.attempt.outcome", DROPPED)
        span.end(now_ns)
