"""What the HTTP side counts, for Prometheus. Nothing here is touched per token.

One event loop owns all of it, so there are no locks; a histogram finds its bucket by bisection. That makes
observing a tenth of the cost of prometheus_client's own, whose registry and text format are used to show it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
TTFT_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BOUNDS_S: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0
)  # fmt: skip
DURATION_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


class Histogram:
    """Counts of values by bucket, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, as often as said."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound as Prometheus wants them, and the sum."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found, self._sum


class ModelMetrics:
    """What is counted for one model. There are as many as models were ever served, so clients can't add any."""

    __slots__ = ("completion_tokens", "durations", "itl", "prompt_tokens", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram(TTFT_BOUNDS_S)
        self.itl = Histogram(ITL_BOUNDS_S)
        self.durations = Histogram(DURATION_BOUNDS_S)
        self.prompt_tokens = 0
        self.completion_tokens = 0


class Metrics(Collector):
    """All of one gateway's HTTP metrics. `in_flight` counts requests for tokens that have no end yet."""

    def __init__(self, gateway_id: str) -> None:
        self.in_flight = 0
        self.registry = CollectorRegistry(auto_describe=False)
        self._gateway_id = gateway_id
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._models: dict[str, ModelMetrics] = {}
        self.registry.register(self)

    def model(self, model: str) -> ModelMetrics:
        """What is counted for `model`, which must be a deployed one."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics()
        return found

    def ended(self, route: str, model: str, outcome: str) -> None:
        """A request came to its end. `model` is empty where it was refused before its model was known."""
        self._requests[route, model, outcome] += 1

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at every scrape."""
        info = GaugeMetricFamily("holdfast_gateway_info", "This gateway; always 1.", labels=["gateway_id"])
        info.add_metric([self._gateway_id], 1)
        yield info
        yield GaugeMetricFamily("holdfast_http_in_flight", "Requests for tokens in flight.", value=self.in_flight)
        requests = CounterMetricFamily(
            "holdfast_http_requests", "Requests ended, by outcome.", labels=["route", "model", "outcome"]
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        yield from self._token_counts()
        yield from self._histograms()

    def _token_counts(self) -> Iterator[Metric]:
        prompt = CounterMetricFamily("holdfast_prompt_tokens", "Tokens of prompts taken in.", labels=["model"])
        completion = CounterMetricFamily("holdfast_completion_tokens", "Tokens generated.", labels=["model"])
        for name, model in self._models.items():
            prompt.add_metric([name], model.prompt_tokens)
            completion.add_metric([name], model.completion_tokens)
        yield prompt
        yield completion

    def _histograms(self) -> Iterator[Metric]:
        ttft = HistogramMetricFamily(
            "holdfast_time_to_first_token_seconds", "From the request to its first token.", labels=["model"]
        )
        itl = HistogramMetricFamily(
            "holdfast_inter_token_latency_seconds", "Between tokens, evened out within a chunk.", labels=["model"]
        )
        durations = HistogramMetricFamily(
            "holdfast_http_request_duration_seconds", "From the request to its end.", labels=["model"]
        )
        for name, model in self._models.items():
            for family, histogram in ((ttft, model.ttft), (itl, model.itl), (durations, model.durations)):
                buckets, total = histogram.buckets()
                family.add_metric([name], buckets, total)
        yield ttft
        yield itl
        yield durations
