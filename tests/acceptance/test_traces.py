"""Traces of real processes, as a collector gets them: by OTLP over HTTP, in protobuf."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.acceptance.conftest import HTTP_TIMEOUT_S, PATIENCE, Start, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
COLLECTED_S = 90.0
TOKENS = 200


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it is sent, each with its service."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def of_trace(self, name: str) -> list[Any]:
        """Our trace's spans of this name, the earliest first."""
        found = [span for _service, span in self.spans if span.name == name and span.trace_id.hex() == TRACE]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            told = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(told["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_what: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


def attribute(span: Any, key: str) -> Any:
    """The span's attribute, as what it is."""
    (value,) = (one.value for one in span.attributes if one.key == key)
    return getattr(value, value.WhichOneof("value"))


def test_a_collector_gets_a_request_with_all_its_attempts_and_what_the_replicas_did(
    start_cluster: Start, collector: Collector
) -> None:
    cluster = start_cluster(
        engine_args={"itl_ms": 10, "faults": True},
        environment={"HOLDFAST_TRACING__OTLP_ENDPOINT": collector.url, **PATIENCE},
    )
    prompt = f"hello[[fault:kill {TOKENS // 10}]]"
    body = {"model": "mock", "prompt": prompt, "max_tokens": TOKENS, "seed": 1, "stream": True}
    headers = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
    url = f"{cluster.url}/v1/completions"
    response = httpx.post(url, json=body, headers=headers, timeout=HTTP_TIMEOUT_S, trust_env=False)
    assert response.status_code == 200
    until(
        lambda: bool(collector.of_trace("text_completion mock") and collector.of_trace("generate mock")),
        COLLECTED_S,
        lambda: [span.name for _service, span in collector.spans],
    )
    (request,), (first, second) = collector.of_trace("text_completion mock"), collector.of_trace("attempt")
    assert request.parent_span_id.hex() == CLIENT_SPAN
    assert {first.parent_span_id, second.parent_span_id} == {request.span_id}
    assert attribute(request, "gen_ai.usage.output_tokens") == TOKENS
    assert attribute(second, "holdfast.migration.cause") == "lost"
    # The killed replica's span went with it.
    (engine,) = collector.of_trace("generate mock")
    assert engine.parent_span_id == second.span_id
    assert attribute(engine, "holdfast.replica") == attribute(second, "holdfast.replica")
    assert {service for service, _span in collector.spans} == {"holdfast-gateway", "holdfast-replica"}


def test_without_a_collector_everything_is_served_and_one_line_tells_of_it(start_cluster: Start) -> None:
    cluster = start_cluster(environment={"HOLDFAST_TRACING__OTLP_ENDPOINT": "http://127.0.0.1:9/v1/traces"})
    for _ in range(5):
        body = {"model": "mock", "prompt": "hello", "max_tokens": 5, "seed": 1}
        answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=HTTP_TIMEOUT_S, trust_env=False)
        assert answer.status_code == 200
    log = cluster.data_dir / "logs" / "gateway-1.log"
    until(lambda: "can't be exported" in log.read_text(), COLLECTED_S, log.read_text)
    assert log.read_text().count("can't be exported") == 1
    assert "Traceback" not in log.read_text()
