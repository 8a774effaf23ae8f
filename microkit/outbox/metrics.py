"""The relay's metrics."""

from __future__ import annotations

from microkit.outbox.queue import Backlog
from microkit.telemetry.metrics import Metrics


class RelayMetrics:
    """What one relay counts. The backlog is the table's, and so the same from every relay on it."""

    def __init__(self, metrics: Metrics) -> None:
        self._waiting = metrics.gauge("microkit_outbox_waiting", "Events not yet published and settled.")()
        self._oldest = metrics.gauge("microkit_outbox_oldest_age_seconds", "Age of the oldest waiting event.")()
        self._parked = metrics.gauge("microkit_outbox_parked", "Events that the bus refused too often.")()
        self._shards = metrics.gauge("microkit_outbox_shards_held", "Key shards this relay holds a lease on.")()
        self._sent = metrics.counter(
            "messaging_client_sent_messages_total", "Messages given to the bus.", ("messaging_destination_name",)
        )
        self._refused = metrics.counter(
            "microkit_outbox_refused_total", "Events refused by the bus.", ("messaging_destination_name", "outcome")
        )
        self._duration = metrics.histogram(
            "messaging_client_operation_duration_seconds",
            "Duration of publishing a batch.",
            ("messaging_operation_name",),
        )("publish")
        self.failures = metrics.counter(
            "microkit_outbox_failures_total", "Turns of the relay that failed as a whole: database or bus away."
        )

    def show(self, backlog: Backlog, shards: int) -> None:
        """The state at a heartbeat."""
        self._waiting.set(backlog.waiting)
        self._oldest.set(backlog.oldest)
        self._parked.set(backlog.parked)
        self._shards.set(shards)

    def published(self, seconds: float, topics: dict[str, int]) -> None:
        """A batch was given to the bus; how many events of each topic."""
        self._duration.observe(seconds)
        for topic, number in topics.items():
            self._sent(topic).inc(number)

    def refused(self, topic: str, *, parked: bool) -> None:
        """The bus refused an event."""
        self._refused(topic, "parked" if parked else "retried").inc()
