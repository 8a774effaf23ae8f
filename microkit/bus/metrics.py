"""What a group counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import Counter, Histogram

from microkit.telemetry import Telemetry

_WHERE: Final = ("messaging_destination_name", "messaging_consumer_group_name")


class ConsumerMetrics:
    """The metrics of one group. The names of the first two, and of labels, are OpenTelemetry's."""

    def __init__(self, telemetry: Telemetry, group: str) -> None:
        metrics = telemetry.metrics
        self._group = group
        self._consumed = metrics.counter(
            "messaging_client_consumed_messages_total", "Messages delivered to handlers.", (*_WHERE, "error_type")
        )
        self._duration = metrics.histogram(
            "messaging_process_duration_seconds", "Duration of processing messages.", (*_WHERE, "error_type")
        )
        self._retries = metrics.counter(
            "microkit_consumer_retries_total", "Failed attempts that are made again.", (*_WHERE, "error_type")
        )
        self._dead = metrics.counter(
            "microkit_dead_letters_total", "Messages given up and kept as dead letters.", (*_WHERE, "reason")
        )
        self._lag = metrics.gauge(
            "microkit_consumer_lag", "Messages of a topic that the group has not acknowledged.", _WHERE
        )
        self._in_flight = metrics.gauge(
            "microkit_consumer_in_flight", "Messages fetched and not done.", ("messaging_consumer_group_name",)
        )
        self._retrying = metrics.gauge(
            "microkit_consumer_retrying_keys",
            "Keys that wait for the next attempt at a message.",
            ("messaging_consumer_group_name",),
        )
        self._batches = metrics.counter(
            "microkit_consumer_batches_total",
            "Batches handled in one call, and those that failed and were handled one by one.",
            ("messaging_consumer_group_name", "outcome"),
        )
        self._lost = metrics.counter(
            "microkit_consumer_lost_messages_total",
            "Messages that the broker no longer had when the group came to them.",
            ("messaging_consumer_group_name",),
        )
        self._crashes = metrics.counter(
            "microkit_consumer_crashes_total",
            "Loops of a group that ended by an error and were begun anew.",
            ("messaging_consumer_group_name",),
        )
        self._good: dict[str, tuple[Counter, Histogram]] = {}

    def watch(self, in_flight: Callable[[], int], retrying: Callable[[], int]) -> None:
        """Asks these whenever the metrics are read."""
        self._in_flight(self._group).set_function(in_flight)
        self._retrying(self._group).set_function(retrying)

    def handled(self, topic: str, seconds: float, number: int = 1) -> None:
        """So many messages were handled in one call."""
        good = self._good.get(topic)
        if good is None:
            labels = (topic, self._group, "")
            good = self._good[topic] = (self._consumed(*labels), self._duration(*labels))
        good[0].inc(number)
        good[1].observe(seconds)

    def failed(self, topic: str, reason: str, seconds: float) -> None:
        """An attempt failed."""
        self._consumed(topic, self._group, reason).inc()
        self._duration(topic, self._group, reason).observe(seconds)

    def retried(self, topic: str, reason: str) -> None:
        self._retries(topic, self._group, reason).inc()

    def buried(self, topic: str, reason: str) -> None:
        self._dead(topic, self._group, reason).inc()

    def batch(self, outcome: str) -> None:
        """``done`` or ``split``."""
        self._batches(self._group, outcome).inc()

    def lost(self, number: int) -> None:
        self._lost(self._group).inc(number)

    def crashed(self) -> None:
        self._crashes(self._group).inc()

    def lag(self, topic: str, waiting: int) -> None:
        self._lag(topic, self._group).set(waiting)
