"""Metrics of one service, in a registry of its own, under OpenTelemetry's names in Prometheus' form.

https://opentelemetry.io/docs/specs/semconv/http/http-metrics/ and
https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from threading import Lock
from typing import Final, Generic, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from microkit.errors import DefinitionError

M = TypeVar("M", bound=Counter | Gauge | Histogram)
Label = str | int

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The buckets that OpenTelemetry advises for durations."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

MOST_CHILDREN: Final = 2_000
"""Label sets a metric may have, as in OpenTelemetry's SDK; those that come later share one, labelled ``_OTHER``."""

OTHER: Final = "_OTHER"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})


class Registry(CollectorRegistry):
    """Prometheus' registry without the ``_created`` series, which double the page and which nobody asks for.

    The library can leave them out for the whole process only.
    """

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            if metric.type in {"counter", "histogram", "summary"}:
                created = f"{metric.name}_created"
                metric.samples = [sample for sample in metric.samples if sample.name != created]
            yield metric


class Distribution(Histogram):
    """Prometheus' histogram, to be seen as it is, with one list of numbers under one lock instead of an object and a
    lock for each bucket: a third of the time for each of the two observations of a request that is passed on, and a
    tenth of the memory, which a thousand routes feel. Exemplars, of which the text format knows nothing, are not kept.
    """

    def _metric_init(self) -> None:
        self._guard = Lock()
        self._counts = [0] * len(self._upper_bounds)
        self._total = 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        place = bisect_left(self._upper_bounds, amount)
        with self._guard:
            self._counts[place] += 1
            self._total += amount

    def _child_samples(self) -> Iterable[Sample]:
        with self._guard:
            counts, total = tuple(self._counts), self._total
        sums = list(accumulate(counts))
        for bound, count in zip(self._upper_bounds, sums, strict=True):
            le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]  # it has no types
            yield Sample("_bucket", {"le": le}, float(count), None, None)
        yield Sample("_count", {}, float(sums[-1]), None, None)
        if self._upper_bounds[0] >= 0:
            yield Sample("_sum", {}, total, None, None)


class Family(Generic[M]):
    """A metric; calling it with its label values, in order, gives the child to count with.

    Children are kept: after the first call one costs a dictionary look-up (Prometheus' own ``labels()`` takes a lock
    and builds strings each time).
    """

    __slots__ = ("_children", "_metric", "labels")

    def __init__(self, metric: M, labels: tuple[str, ...]) -> None:
        self._metric = metric
        self._children: dict[tuple[Label, ...], M] = {}
        self.labels = labels

    def __call__(self, *values: Label) -> M:
        child = self._children.get(values)
        return child if child is not None else self._new(values)

    def _new(self, values: tuple[Label, ...]) -> M:
        if len(values) != len(self.labels):
            raise DefinitionError(f"{self._metric} takes the labels {self.labels}, not {values}")
        if len(self._children) >= MOST_CHILDREN:
            return cast("M", self._metric.labels(*(OTHER for _ in values)))
        child = cast("M", self._metric.labels(*values)) if values else self._metric
        self._children[values] = child
        return child


class Metrics:
    """The metrics of one service. ``histogram``, ``counter`` and ``gauge`` give the same family for the same name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._families: dict[str, tuple[type, Family[Counter] | Family[Gauge] | Family[Histogram]]] = {}
        self.server = self.histogram(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests.",
            ("http_request_method", "http_route", "http_response_status_code"),
        )
        self.active = self.gauge("http_server_active_requests", "HTTP server requests under way.")()
        self.http_client = self.histogram(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests.",
            ("server_address", "http_request_method", "url_template", "http_response_status_code", "error_type"),
        )

    def http_server(self, method: str, route: str, status: int) -> Histogram:
        """The histogram of one route's answers: ``metrics.http_server("GET", "/bills/{bill_id}", 200).observe(0.004)``.

        ``route`` is the template, never the path, and ``""`` where none matched.
        """
        return self.server(method if method in METHODS else OTHER, route, status)

    def histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS
    ) -> Family[Histogram]:
        """A histogram; ``buckets`` are upper bounds in the unit that the name ends in."""
        return cast(
            "Family[Histogram]",
            self._family(
                Histogram,
                name,
                labels,
                lambda: Distribution(name, documentation, labels, registry=self.registry, buckets=buckets),
            ),
        )

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Family[Counter]:
        """A counter; ``name`` ends in ``_total``."""
        return cast(
            "Family[Counter]",
            self._family(Counter, name, labels, lambda: Counter(name, documentation, labels, registry=self.registry)),
        )

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        """A gauge. ``family().set_function(f)`` asks ``f`` when it is read."""
        return cast(
            "Family[Gauge]",
            self._family(Gauge, name, labels, lambda: Gauge(name, documentation, labels, registry=self.registry)),
        )

    def _family(
        self, kind: type, name: str, labels: Sequence[str], make: Callable[[], Counter | Gauge | Histogram]
    ) -> Family[Counter] | Family[Gauge] | Family[Histogram]:
        known = self._families.get(name)
        if known is None:
            family = cast("Family[Counter] | Family[Gauge] | Family[Histogram]", Family(make(), tuple(labels)))
            self._families[name] = (kind, family)
            return family
        if known[0] is not kind or known[1].labels != tuple(labels):
            raise DefinitionError(
                f"metric {name} is there already, as a {known[0].__name__.lower()} with the labels {known[1].labels}"
            )
        return known[1]

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


def process_registry() -> Registry:
    """A registry that also tells about the process: CPU, memory, open files, Python's version."""
    registry = Registry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
