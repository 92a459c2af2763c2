"""What a process counts: families declared once, kept in its ledger, shown to Prometheus when it asks.

A family is declared in `metric_families`, from which `docs/metrics.md` is written. A ledger shows all families of its
section, empty ones too, and takes no others. One event loop owns it, so there are no locks; a histogram finds its
bucket by bisection. That makes observing a tenth of the cost of prometheus_client's own, whose registry and text format
are used to show it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SERIES_MAX = 2000
"""So many sets of labels are counted in one family; whatever comes beyond that is counted as `OTHER`, together."""

OTHER = "other"

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values by labels, in the family's order."""


class Kind(StrEnum):
    """As Prometheus calls them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric. `name` is without the `_total` that counters get; `alert` is an example in PromQL, if any."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...]
    unit: str
    bounds: tuple[float, ...]
    alert: str

    @property
    def shown(self) -> str:
        """The name by which Prometheus knows it."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


@dataclass(slots=True)
class Section:
    """The families of one kind of process. They are declared when their module is loaded, and only then."""

    title: str
    families: list[Family] = field(default_factory=list)

    def counter(self, name: str, text: str, *labels: str, unit: str = "", alert: str = "") -> Family:
        """Declare something that only grows."""
        return self._declare(Family(name, Kind.COUNTER, text, labels, unit, (), alert))

    def gauge(self, name: str, text: str, *labels: str, unit: str = "", alert: str = "") -> Family:
        """Declare something that is read when Prometheus asks."""
        return self._declare(Family(name, Kind.GAUGE, text, labels, unit, (), alert))

    def histogram(
        self, name: str, text: str, *labels: str, unit: str = "seconds", bounds: Sequence[float], alert: str = ""
    ) -> Family:
        """Declare something that is measured again and again; `bounds` are the buckets' upper ends."""
        return self._declare(Family(name, Kind.HISTOGRAM, text, labels, unit, tuple(bounds), alert))

    def _declare(self, family: Family) -> Family:
        assert all(family.name != other.name for other in self.families), f"{family.name} is declared twice"
        self.families.append(family)
        return family


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

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound as Prometheus wants them, and the sum."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found, self._sum


class Ledger(Collector):
    """The values of a section's families in one process."""

    def __init__(self, section: Section) -> None:
        self._counts: dict[Family, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Family, dict[tuple[str, ...], Histogram]] = {}
        self._readers: dict[Family, Callable[[], Samples]] = {}
        self._families = tuple(section.families)
        for family in self._families:
            if family.kind is Kind.HISTOGRAM:
                self._histograms[family] = {}
            else:
                self._counts[family] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def add(self, family: Family, *labels: str, by: float = 1) -> None:
        """Count one more, or `by` more, under these labels."""
        series = self._counts[family]
        labels = _bounded(family, labels, series)
        series[labels] = series.get(labels, 0) + by

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Count a value in a histogram."""
        self.histogram(family, *labels).observe(value)

    def histogram(self, family: Family, *labels: str) -> Histogram:
        """The histogram of these labels, for who observes often."""
        series = self._histograms[family]
        labels = _bounded(family, labels, series)
        found = series.get(labels)
        if found is None:
            found = series[labels] = Histogram(family.bounds)
        return found

    def read(self, family: Family, reader: Callable[[], Samples]) -> None:
        """Ask `reader` for a gauge's or counter's values whenever Prometheus asks. It must be quick, and not raise."""
        assert family in self._counts, f"{family.name} is none of this process's gauges and counters"
        assert family not in self._readers, f"{family.name} is read already"
        self._readers[family] = reader

    def value(self, family: Family, *labels: str) -> float:
        """What has been added under these labels."""
        return self._counts[family].get(labels, 0)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at every scrape."""
        for family in self._families:
            if family.kind is Kind.HISTOGRAM:
                yield self._shown_histogram(family)
            else:
                yield self._shown_values(family)

    def _shown_histogram(self, family: Family) -> Metric:
        shown = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, histogram in self._histograms[family].items():
            shown.add_metric(labels, *histogram.buckets())
        return shown

    def _shown_values(self, family: Family) -> Metric:
        make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
        shown = make(family.name, family.text, labels=family.labels)
        reader = self._readers.get(family)
        for labels, value in self._counts[family].items() if reader is None else reader():
            shown.add_metric(labels, value)
        return shown


def _bounded(family: Family, labels: tuple[str, ...], series: Mapping[tuple[str, ...], object]) -> tuple[str, ...]:
    """The labels to count under: there must be no way for anybody to make ever more series."""
    if labels in series:
        return labels
    assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
    return labels if len(series) < SERIES_MAX else (OTHER,) * len(labels)
