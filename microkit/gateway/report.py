"""What happened on each route, for people and for programs that read JSON. Prometheus has the same as histograms."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

from microkit.telemetry.metrics import SECONDS

_QUANTILES: Final = (0.5, 0.95, 0.99)


class RouteReport:
    """Counts of one route since the gateway started; they outlive a reload of the routes."""

    __slots__ = ("_buckets", "_classes", "_seconds", "_titles", "under_way")

    def __init__(self) -> None:
        self._classes = [0] * 6
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0
        self.under_way = 0

    def ended(self, status: int, seconds: float) -> None:
        """A request was answered with ``status``, 0 where the client hung up first."""
        self._classes[status // 100 if status < 600 else 5] += 1
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._seconds += seconds

    def as_json(self) -> dict[str, Any]:
        """Requests, by the class of their status; durations in milliseconds, each quantile as the bound of the bucket
        that holds it, ``null`` above ten seconds."""
        requests = sum(self._classes)
        by_class = {f"{place}xx" if place else "gone": count for place, count in enumerate(self._classes) if count}
        found: dict[str, Any] = {"requests": requests, "under_way": self.under_way, "statuses": by_class}
        if requests:
            found["mean_ms"] = round(self._seconds / requests * 1000, 3)
            found |= {f"p{int(share * 100)}_ms": self._quantile(share * requests) for share in _QUANTILES}
        return found

    def _quantile(self, wanted: float) -> float | None:
        seen = 0
        for bound, count in zip((*SECONDS, None), self._buckets, strict=True):
            seen += count
            if seen >= wanted:
                return None if bound is None else bound * 1000
        return None
