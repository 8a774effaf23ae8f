"""The recent spans of a process, kept in memory for the terminal, the console and tests."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

SpanKindName = Literal["internal", "server", "client", "producer", "consumer"]
StatusName = Literal["unset", "ok", "error"]


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened within a span, at ``time_ns`` since the epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A span of another trace that this one has to do with. Ids in hexadecimal."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class RecordedSpan:
    """A span that has ended. Ids in hexadecimal, times in nanoseconds since the epoch."""

    service: str
    name: str
    kind: SpanKindName
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    status: StatusName = "unset"
    status_description: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    links: Sequence[SpanLink] = ()

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e9


class Recordable(Protocol):
    """What a ring takes: a span that has ended, described only when somebody looks."""

    @property
    def trace(self) -> int:
        """The trace id as a number."""
        ...

    def recorded(self) -> RecordedSpan: ...


DEFAULT_CAPACITY: Final = 10_000

_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{8,32}")


class TraceRing:
    """The latest ``capacity`` spans, oldest first out.

    The services of one process may share a ring on purpose, so that a trace that crosses them can be shown whole.
    Adding is safe from any thread.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._spans: deque[Recordable] = deque(maxlen=capacity)
        self.add = self._spans.append

    def __len__(self) -> int:
        return len(self._spans)

    def trace(self, trace_id: str) -> list[RecordedSpan]:
        """The spans of one trace that have ended, by their start.

        ``trace_id`` is 32 hexadecimal digits, or the first eight or more of them, as access lines on a terminal show
        them: then the latest such trace.
        """
        if not _TRACE_ID.fullmatch(trace_id):
            return []
        wanted, beyond = int(trace_id, 16), 4 * (32 - len(trace_id))
        found = [span for span in self._snapshot() if span.trace >> beyond == wanted]
        return sorted(
            (span.recorded() for span in found if span.trace == found[-1].trace), key=lambda one: one.start_ns
        )

    def recent(self, limit: int = 100) -> list[RecordedSpan]:
        """The spans that ended last, the latest first."""
        latest = self._snapshot()[: -limit - 1 : -1] if limit > 0 else []
        return [span.recorded() for span in latest]

    def clear(self) -> None:
        self._spans.clear()

    def _snapshot(self) -> list[Recordable]:
        return list(self._spans.copy())  # copy() is one step in C; list() alone may meet another thread's append


@dataclass(frozen=True, slots=True)
class TraceNode:
    """A span and the spans under it, by their start."""

    span: RecordedSpan
    children: tuple[TraceNode, ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, RecordedSpan]]:
        """Every span of the tree with its depth, parents first."""
        yield depth, self.span
        for child in self.children:
            yield from child.walk(depth + 1)


def tree(spans: Sequence[RecordedSpan]) -> tuple[TraceNode, ...]:
    """The spans of one trace as trees. A span whose parent is not among them (another process's, or fallen out of
    the ring) is a root."""
    known = {span.span_id for span in spans}
    below: dict[str | None, list[RecordedSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        parent = span.parent_id if span.parent_id in known and span.parent_id != span.span_id else None
        below.setdefault(parent, []).append(span)

    def nodes(parent: str | None) -> tuple[TraceNode, ...]:
        return tuple(TraceNode(span, nodes(span.span_id)) for span in below.get(parent, ()))

    return nodes(None)
