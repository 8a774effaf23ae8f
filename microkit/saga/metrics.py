"""What the saga engine counts."""

from __future__ import annotations

from collections.abc import Iterable

from microkit.saga.progress import Outcome
from microkit.saga.tables import Status
from microkit.saga.work import Work
from microkit.telemetry import Telemetry

_STEP = ("saga", "saga_step", "saga_direction", "outcome")
_ENDS = (Status.COMPLETED, Status.COMPENSATED)
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class SagaMetrics:
    """In the service's registry. Gauges of what is open are refreshed by the engine, from the database."""

    def __init__(self, telemetry: Telemetry) -> None:
        metrics = telemetry.metrics
        self._steps = metrics.histogram(
            "microkit_saga_step_duration_seconds", "Duration of attempts of saga steps.", _STEP, buckets=_SECONDS
        )
        self._ended = metrics.counter(
            "microkit_saga_ended_total", "Sagas that ended or were parked.", ("saga", "status")
        )
        self._compensations = metrics.counter(
            "microkit_saga_compensations_total", "Sagas that turned back, by the step for which.", ("saga", "saga_step")
        )
        self._open = metrics.gauge("microkit_saga_open", "Sagas that have not ended.", ("saga", "status"))
        self._oldest = metrics.gauge("microkit_saga_oldest_seconds", "Age of the oldest such saga.", ("saga", "status"))
        self.in_flight = metrics.gauge("microkit_saga_in_flight", "Sagas that this instance is carrying on.")()
        self._seen: set[tuple[str, str]] = set()

    def attempted(self, work: Work, outcome: Outcome, seconds: float) -> None:
        self._steps(work.saga.name, work.attempt.step.name, work.held.direction, outcome.ended).observe(seconds)

    def ended(self, saga: str, status: Status) -> None:
        self._ended(saga, status).inc()

    def turned_back(self, saga: str, step: str) -> None:
        self._compensations(saga, step).inc()

    def known(self, saga: str) -> None:
        """Shows a definition with zeros, so that the first one that is stuck is a rise from 0 and not a new series."""
        for status in Status:
            if status in _ENDS:
                self._ended(saga, status).inc(0)
            else:
                self._open(saga, status).set(0)
                self._oldest(saga, status).set(0)
        self._ended(saga, Status.STUCK).inc(0)

    def open(self, rows: Iterable[tuple[str, str, int, float]]) -> None:
        """Sagas that have not ended: name, status, how many, and the age of the oldest in seconds."""
        now: set[tuple[str, str]] = set()
        for name, status, count, age in rows:
            now.add((name, status))
            self._open(name, status).set(count)
            self._oldest(name, status).set(age)
        for gone in self._seen - now:
            self._open(*gone).set(0)
            self._oldest(*gone).set(0)
        self._seen = now
