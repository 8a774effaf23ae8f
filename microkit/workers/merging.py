"""The metrics of several processes as those of one.

Counters, histograms and summaries are added up, those of processes that have ended too, so that they never go back. A
gauge is of the process that shows it, and goes with it: it gets the label ``worker``, because a sum would be wrong for
some (the events that wait in the one outbox are seen by every worker) and a maximum for others (connections in use).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

_SUMMED: Final = frozenset({"counter", "histogram", "summary"})
_OF_THE_INSTANCE: Final = frozenset({"microkit_discovery_registered"})
"""What no worker does for itself."""

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Family:
    """A metric and its samples, by name and labels."""

    documentation: str
    kind: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)


class Whole(CollectorRegistry):
    """The newest metrics of each process, by a name that no later one has, and the sums of those that have ended."""

    def __init__(self) -> None:
        super().__init__(auto_describe=False)
        self._past: dict[str, Family] = {}
        self._latest: dict[str, dict[str, Family]] = {}
        self._silent: set[str] = set()

    def told(self, process: str, text: str, *, worker: int | None, last: bool = False) -> None:
        """Takes what a process says of itself; ``worker`` is its number, ``None`` for the one that supervises. After
        its ``last`` words nothing older that comes late is taken."""
        if process in self._silent:
            return
        if last:
            self._silent.add(process)
        self._latest[process] = _families(text, str(worker) if worker is not None else "supervisor")

    def gone(self, process: str) -> None:
        """Keeps the sums of a process that has ended; its gauges go."""
        self._silent.discard(process)
        for name, family in self._latest.pop(process, {}).items():
            if family.kind in _SUMMED:
                _add(self._past, name, family)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Family] = {}
        for families in (self._past, *self._latest.values()):
            for name, family in families.items():
                _add(found, name, family)
        for name, family in found.items():
            metric = Metric(name, family.documentation, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _families(text: str, worker: str) -> dict[str, Family]:
    found: dict[str, Family] = {}
    for metric in text_string_to_metric_families(text):
        if worker != "supervisor" and metric.name in _OF_THE_INSTANCE:
            continue
        family = Family(metric.documentation, metric.type)
        of = () if metric.type in _SUMMED else (("worker", worker),)
        for sample in metric.samples:
            family.samples[sample.name, (*sample.labels.items(), *of)] = sample.value
        found[metric.name] = family
    return found


def _add(into: dict[str, Family], name: str, family: Family) -> None:
    there = into.get(name)
    if there is None:
        into[name] = Family(family.documentation, family.kind, dict(family.samples))
        return
    summed = family.kind in _SUMMED
    for key, value in family.samples.items():
        # Two processes have one number while one takes the other's place: the later one is meant.
        there.samples[key] = there.samples.get(key, 0.0) + value if summed else value
