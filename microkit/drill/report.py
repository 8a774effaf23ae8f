"""What came of a drill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from microkit.drill.load import Verdict


@dataclass(slots=True)
class Report:
    """``latencies`` are of answers with success, in seconds; ``successes`` their moments, by ``time.monotonic()``.
    ``not_2xx`` counts the other answers by status and problem ("503 unavailable"), ``first_of_each`` tells its text.
    ``by_process`` counts, of the requests that did not succeed, those that ended while this process was restarted.
    """

    kill: bool
    restarts: int = 0
    requests: int = 0
    not_2xx: Counter[str] = field(default_factory=Counter)
    first_of_each: dict[str, str] = field(default_factory=dict)
    by_process: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    successes: list[float] = field(default_factory=list)
    began: float = 0.0
    stopped: float = 0.0
    """The moments of the first request and of the last."""
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def ok(self) -> bool:
        """Whether the promise held: nothing lost or doubled, and in a rolling restart every answer a success. A process
        that is killed breaks off what it was answering, so there only the effects count."""
        verdict = self.verdict
        kept = not (verdict.lost or verdict.duplicated or verdict.events_lost)
        return kept and bool(self.successes) and (self.kill or not self.not_2xx)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        # What began without success, or ended so, is a gap as any other.
        moments = sorted([self.began, *self.successes, self.stopped])
        gaps = [after - before for before, after in pairwise(moments)]
        return {
            "ok": self.ok,
            "kind": "hard kills" if self.kill else "rolling restarts",
            "restarts": self.restarts,
            "requests": self.requests,
            "rate": round(self.requests / self.seconds, 1) if self.seconds else 0.0,
            "not_2xx": sum(self.not_2xx.values()),
            "reasons": dict(self.not_2xx),
            "first_of_each": self.first_of_each,
            "not_2xx_while_restarting": dict(self.by_process),
            "lost": len(self.verdict.lost),
            "duplicated": len(self.verdict.duplicated),
            "events_lost": len(self.verdict.events_lost),
            "examples": [*self.verdict.lost, *self.verdict.duplicated, *self.verdict.events_lost][:5],
            "p50_ms": _milliseconds(self.latencies, 0.50),
            "p99_ms": _milliseconds(self.latencies, 0.99),
            "longest_gap_ms": round(max(gaps, default=0.0) * 1000, 1),
            "seconds": round(self.seconds, 1),
        }


def _milliseconds(values: list[float], share: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 1)
