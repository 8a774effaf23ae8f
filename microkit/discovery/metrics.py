"""What discovery shows of itself."""

from __future__ import annotations

from collections.abc import Callable

from microkit.telemetry import Telemetry


class DiscoveryMetrics:
    """The metrics of the services that one instance looks for, and of its own registration."""

    def __init__(self, telemetry: Telemetry) -> None:
        metrics = telemetry.metrics
        self._instances = metrics.gauge(
            "microkit_discovery_instances", "Instances of a service that calls can go to.", ("service",)
        )
        self._stale = metrics.gauge(
            "microkit_discovery_stale_seconds",
            "Seconds since the registry last confirmed a service's instances; 0 while they are fresh.",
            ("service",),
        )
        self._answers = metrics.counter(
            "microkit_discovery_answers_total",
            "Answers of the registry: changed, unchanged, empty, failed.",
            ("service", "outcome"),
        )
        self._registered = metrics.gauge(
            "microkit_discovery_registered", "1 while the registry is known to have this instance, else 0.", ()
        )
        self._registrations = metrics.counter(
            "microkit_discovery_registrations_total",
            "Registrations of this instance: done, lost (the registry had forgotten it), failed.",
            ("outcome",),
        )

    def watch(self, service: str, instances: Callable[[], int], stale: Callable[[], float]) -> None:
        """Asks these whenever the metrics are read."""
        self._instances(service).set_function(instances)
        self._stale(service).set_function(stale)

    def answered(self, service: str, outcome: str) -> None:
        """The registry answered, or did not."""
        self._answers(service, outcome).inc()

    def registered(self, known: bool) -> None:
        """Whether the registry has this instance, as far as is known."""
        self._registered().set(1 if known else 0)

    def registration(self, outcome: str) -> None:
        """An attempt to register."""
        self._registrations(outcome).inc()
