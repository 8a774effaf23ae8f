"""Pool metrics under OpenTelemetry's names for database clients, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from microkit.db.pool import Pool


class PoolMetrics(Collector):
    """Reads the pools when it is asked, and counts only the waits as they happen."""

    def __init__(self, registry: CollectorRegistry, pools: Iterable[Pool]) -> None:
        self._registry = registry
        self._pools = list(pools)
        self._waits = Histogram(
            "db_client_connection_wait_time_seconds",
            "Time to obtain a connection from the pool",
            ["db_client_connection_pool_name"],
            registry=registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
        )
        for pool in self._pools:
            pool.waited = self._waits.labels(pool.name).observe
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        name = "db_client_connection_pool_name"
        count = GaugeMetricFamily(
            "db_client_connection_count", "Connections by state", labels=[name, "db_client_connection_state"]
        )
        most = GaugeMetricFamily("db_client_connection_max", "Connections allowed", labels=[name])
        pending = GaugeMetricFamily("db_client_connection_pending_requests", "Takers that wait", labels=[name])
        timeouts = CounterMetricFamily("db_client_connection_timeouts", "Takers that waited in vain", labels=[name])
        for pool in self._pools:
            count.add_metric([pool.name, "used"], pool.used)
            count.add_metric([pool.name, "idle"], pool.idle)
            most.add_metric([pool.name], pool.size)
            pending.add_metric([pool.name], pool.pending)
            timeouts.add_metric([pool.name], pool.timeouts)
        return iter((count, most, pending, timeouts))

    def close(self) -> None:
        self._registry.unregister(self)
        self._registry.unregister(self._waits)
