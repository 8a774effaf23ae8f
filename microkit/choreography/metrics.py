"""What is counted of processes."""

from __future__ import annotations

from collections.abc import Iterable

from microkit.telemetry import Telemetry

_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0)


class ProcessMetrics:
    """In the service's registry. Gauges are refreshed by the :class:`ProcessKeeper`, from the database."""

    def __init__(self, telemetry: Telemetry) -> None:
        metrics = telemetry.metrics
        self._open = metrics.gauge("microkit_process_open", "Processes that have not ended.", ("process",))
        self._stuck = metrics.gauge(
            "microkit_process_stuck", "Those of them that have had no event for longer than they may.", ("process",)
        )
        self._oldest = metrics.gauge("microkit_process_oldest_seconds", "Age of the oldest of them.", ("process",))
        self._forgotten = metrics.counter(
            "microkit_process_forgotten_total", "Those that were deleted though nobody had ended them.", ("process",)
        )
        self._duration = metrics.histogram(
            "microkit_process_duration_seconds",
            "From the first event of a process to the first that ended it.",
            ("process", "event"),
            buckets=_SECONDS,
        )

    def ended(self, process: str, event: str, seconds: float) -> None:
        self._duration(process, event).observe(seconds)

    def forgotten(self, process: str, count: int) -> None:
        self._forgotten(process).inc(count)

    def open(self, names: Iterable[str], found: Iterable[tuple[str, int, int, float]]) -> None:
        """Of each name: how many have not ended, how many of them are stuck, and the age of the oldest in seconds."""
        rows = {name: (count, stuck, age) for name, count, stuck, age in found}
        for name in names:
            count, stuck, age = rows.get(name, (0, 0, 0.0))
            self._open(name).set(count)
            self._stuck(name).set(stuck)
            self._oldest(name).set(age)
