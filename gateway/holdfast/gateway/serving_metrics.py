"""What a gateway's serving side shows to Prometheus, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.gateway.serving import Serving


class ServingMetrics(Collector):
    """Queues, replicas, migrations, rejections and resumptions. Register it beside the HTTP side's metrics."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at every scrape."""
        yield from self._pools()
        yield self._counted(
            "holdfast_migrations", "Streams moved to another replica.", "cause", self._serving.migrations
        )
        yield self._counted("holdfast_rejections", "Requests turned away.", "reason", self._serving.rejections)
        yield self._counted(
            "holdfast_resumptions", "Streams of other gateways gone on with.", "outcome", self._serving.resumptions
        )

    def _pools(self) -> Iterator[Metric]:
        model, replica = ["model"], ["model", "replica"]
        ready = GaugeMetricFamily("holdfast_replicas_ready", "Replicas that take streams.", labels=model)
        wanted = GaugeMetricFamily("holdfast_replicas_wanted", "Replicas that there should be.", labels=model)
        queued = GaugeMetricFamily("holdfast_queue_length", "Streams that wait for a replica.", labels=model)
        in_flight = GaugeMetricFamily(
            "holdfast_replica_in_flight", "This gateway's streams on a replica.", labels=replica
        )
        kv_used = GaugeMetricFamily("holdfast_replica_kv_used_ratio", "KV cache in use, 0 to 1.", labels=replica)
        for pool in self._serving.pools():
            ready.add_metric([pool.model], pool.replicas_ready)
            wanted.add_metric([pool.model], pool.replicas_wanted)
            queued.add_metric([pool.model], pool.queued)
            for name, streams in pool.in_flight.items():
                in_flight.add_metric([pool.model, name], streams)
                kv_used.add_metric([pool.model, name], pool.kv_used[name])
        yield from (ready, wanted, queued, in_flight, kv_used)

    @staticmethod
    def _counted(name: str, text: str, label: str, counts: dict[tuple[str, str], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model", label])
        for (model, value), count in counts.items():
            family.add_metric([model, value], count)
        return family
