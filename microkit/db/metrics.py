"""Pool metrics under OpenTelemetry's names for database clients, in Prometheus' form.

https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microkit.telemetry.metrics import Metrics

_POOL: Final = ("db_client_connection_pool_name",)
_STATE: Final = (*_POOL, "db_client_connection_state")
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PoolMetrics:
    """What one pool tells: ``waited`` and ``used`` take seconds, ``timed_out`` counts, the rest is asked for."""

    def __init__(self, metrics: Metrics, pool: str) -> None:
        self._metrics = metrics
        self.pool = pool
        self.waited: Callable[[float], None] = metrics.histogram(
            "db_client_connection_wait_time_seconds", "Time to obtain a connection.", _POOL, buckets=_SECONDS
        )(pool).observe
        self.used: Callable[[float], None] = metrics.histogram(
            "db_client_connection_use_time_seconds", "Time between borrowing and return.", _POOL, buckets=_SECONDS
        )(pool).observe
        self.created: Callable[[float], None] = metrics.histogram(
            "db_client_connection_create_time_seconds", "Time to open a new connection.", _POOL, buckets=_SECONDS
        )(pool).observe
        self.timed_out: Callable[[], None] = metrics.counter(
            "db_client_connection_timeouts_total", "Takers that waited in vain.", _POOL
        )(pool).inc

    def watch(self, *, used: Callable[[], int], idle: Callable[[], int], pending: Callable[[], int]) -> None:
        """Names what is to be read whenever somebody asks."""
        state = self._metrics.gauge("db_client_connection_count", "Connections by state.", _STATE)
        state(self.pool, "used").set_function(used)
        state(self.pool, "idle").set_function(idle)
        waiting = self._metrics.gauge("db_client_connection_pending_requests", "Takers that wait.", _POOL)
        waiting(self.pool).set_function(pending)

    def limited(self, *, most: int, idle: int) -> None:
        """Says how many connections there may be, and how many of them stay open when nobody uses them."""
        for name, said, value in (
            ("max", "Connections allowed.", most),
            ("idle_max", "Connections that may be idle.", idle),
            ("idle_min", "Connections that have to be idle.", 0),
        ):
            self._metrics.gauge(f"db_client_connection_{name}", said, _POOL)(self.pool).set(value)
