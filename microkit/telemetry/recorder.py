"""A small tracer behind OpenTelemetry's API, for when no exporter is there to feed.

What has ended is handed on: to a :class:`~microkit.telemetry.ring.TraceRing`, to a collector
(:mod:`microkit.telemetry.otlp`), or both. Against the SDK it leaves out limits that nobody sets, locks, and copies of
what nobody changes; what it records is the same tree of spans, which a test compares.
Sampling is that of the SDK's ``ParentBased(TraceIdRatioBased(ratio))``: the parent decides, else the trace id.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    TraceState,
    set_span_in_context,
    use_span,
)
from opentelemetry.util._decorator import _agnosticcontextmanager
from opentelemetry.util.types import Attributes, AttributeValue

from microkit.redaction import redact_text, said
from microkit.telemetry.ring import RecordedSpan, SpanEvent, SpanKindName, SpanLink, StatusName

MOST_ATTRIBUTES: Final = 128
MOST_EVENTS: Final = 128
MOST_CHARACTERS: Final = 4_096

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_DROPPED: Final = TraceFlags(TraceFlags.DEFAULT)
_NO_STATE: Final = TraceState()
_LOW_64_BITS: Final = (1 << 64) - 1
KIND_NAMES: Final = {kind: cast("SpanKindName", kind.name.lower()) for kind in SpanKind}
STATUS_NAMES: Final[dict[StatusCode, StatusName]] = {
    StatusCode.UNSET: "unset",
    StatusCode.OK: "ok",
    StatusCode.ERROR: "error",
}
# The key under which the API keeps the span.
(SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
# Not the module's generator: processes that all call random.seed(1) would number their traces alike.
_random = random.Random()  # noqa: S311  an id is no secret
_bits = _random.getrandbits
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


class RecordingSpan(Span):
    """A span and what is to be told of it. Its context is made only when somebody asks for it.

    ``trace`` and ``span`` are its ids, ``parent`` the id of the span above or 0, which is ``remote`` where it came in
    from another process.
    """

    # What most spans never have: no write for each, and no list for each of ten thousand that are kept.
    events: Sequence[SpanEvent] = ()
    links: Sequence[Link] = ()
    status = StatusCode.UNSET
    description: str | None = None
    end_ns = 0
    _context: SpanContext | None = None

    def __init__(
        self,
        tracer: RecordingTracer,
        name: str,
        kind: SpanKind,
        identity: tuple[int, int, TraceState, bool],
        attributes: dict[str, Any],
        start_time: int | None,
    ) -> None:
        self._tracer = tracer
        self.name = name
        self.kind = kind
        self.trace, self.parent, self.state, self.remote = identity
        self.span = _bits(64) or 1
        self.attributes = attributes
        self.start_ns = start_time or time.time_ns()

    def get_span_context(self) -> SpanContext:
        context = self._context
        if context is None:
            context = self._context = SpanContext(self.trace, self.span, False, _SAMPLED, self.state)
        return context

    def is_recording(self) -> bool:
        return not self.end_ns

    def end(self, end_time: int | None = None) -> None:
        if not self.end_ns:
            self.end_ns = end_time or time.time_ns()
            self._tracer.keep(self)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        if not self.end_ns and (len(self.attributes) < MOST_ATTRIBUTES or key in self.attributes):
            self.attributes[key] = value[:MOST_CHARACTERS] if isinstance(value, str) else value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def note(self, attributes: Mapping[str, Any]) -> None:
        """As :meth:`set_attributes`, where it is known that they are few and short: what each request notes."""
        if not self.end_ns:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if not self.end_ns and len(self.events) < MOST_EVENTS:
            self.events = [*self.events, SpanEvent(name, timestamp or time.time_ns(), dict(attributes or {}))]

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if not self.end_ns and len(self.links) < MOST_EVENTS:
            self.links = [*self.links, Link(context, attributes)]

    def update_name(self, name: str) -> None:
        if not self.end_ns:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if isinstance(status, StatusCode):
            code, text = status, description
        else:
            code, text = status.status_code, status.description
        # OK is the last word, and nothing takes a status back (OpenTelemetry's specification, "Set Status").
        if not self.end_ns and self.status is not StatusCode.OK and code is not StatusCode.UNSET:
            self.status = code
            self.description = text if code is StatusCode.ERROR else None

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self.add_event("exception", {**exception_attributes(exception), **(attributes or {})}, timestamp)

    def __exit__(self, exc_type: object, exc_val: BaseException | None, exc_tb: object) -> None:
        if isinstance(exc_val, Exception):
            self.record_exception(exc_val)
            self.set_status(StatusCode.ERROR, f"{type(exc_val).__name__}: {said(exc_val)}"[:MOST_CHARACTERS])
        self.end()

    def recorded(self) -> RecordedSpan:
        """What is to be seen of it."""
        return RecordedSpan(
            service=self._tracer.service,
            name=self.name,
            kind=KIND_NAMES[self.kind],
            trace_id=f"{self.trace:032x}",
            span_id=f"{self.span:016x}",
            parent_id=f"{self.parent:016x}" if self.parent else None,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            status=STATUS_NAMES[self.status],
            status_description=self.description,
            attributes=dict(self.attributes),
            events=tuple(self.events),
            links=tuple(
                SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in self.links
            ),
        )


Keep = Callable[[RecordingSpan], object]
"""Takes a span that has ended."""


def _forget(_: RecordingSpan) -> None: ...


def exception_attributes(exception: BaseException) -> dict[str, str]:
    """An exception under OpenTelemetry's names, without the credentials that its message may hold."""
    kind = type(exception)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return {
        "exception.type": f"{module}{kind.__qualname__}",
        "exception.message": said(exception)[:MOST_CHARACTERS],
        "exception.stacktrace": stack_of(exception),
    }


def stack_of(exception: BaseException) -> str:
    """The last part of an exception's stack trace, without credentials."""
    frames = "".join(traceback.format_exception(exception))[-4 * MOST_CHARACTERS :]
    return redact_text(frames.encode("utf-8", "backslashreplace").decode())


class RecordingTracer(Tracer):
    """Starts spans, and hands those that have ended to ``keep``.

    Without it nothing is recorded, but every trace still has an id to log and to pass on.
    """

    def __init__(self, service: str, keep: Keep | None, sampling: float) -> None:
        self.service = service
        self._records = keep is not None
        self.keep: Keep = keep or _forget
        self._bound = round(sampling * (_LOW_64_BITS + 1))

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        bounded = {}
        for key, value in (attributes or {}).items():
            bounded[key] = value[:MOST_CHARACTERS] if isinstance(value, str) else value
        span = self.begin(name, context, kind, bounded, start_time)
        if links and type(span) is RecordingSpan:
            span.links = links
        return span

    def begin(
        self,
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        start_time: int | None = None,
    ) -> Span:
        """As :meth:`start_span`; the attributes are known to be few and short, and the span's own from now on."""
        # As get_current_span() does, which looks again at what only set_span_in_context() can have written.
        parent = (get_current() if context is None else context).get(SPAN_KEY, INVALID_SPAN)
        if type(parent) is RecordingSpan and self._records:
            identity = (parent.trace, parent.span, parent.state, False)
        elif parent is INVALID_SPAN or not (above := cast("Span", parent).get_span_context()).is_valid:
            trace = _bits(128) or 1
            if not self._records or trace & _LOW_64_BITS >= self._bound:
                return NonRecordingSpan(SpanContext(trace, _bits(64) or 1, False, _DROPPED, _NO_STATE))
            identity = (trace, 0, _NO_STATE, False)
        elif not self._records or not above.trace_flags & TraceFlags.SAMPLED:
            # Nobody will see this span: its children are shown under the one above, whose id travels on.
            return NonRecordingSpan(above)
        else:
            identity = (above.trace_id, above.span_id, above.trace_state, above.is_remote)
        return RecordingSpan(self, name, kind, identity, attributes, start_time)

    @_agnosticcontextmanager  # the API's own: it can also decorate a coroutine function
    def start_as_current_span(  # noqa: PLR0913, PLR0917  the API's signature
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with use_span(span, end_on_exit, record_exception, set_status_on_exception) as current:
            yield current


class RecordingProvider(TracerProvider):
    """A tracer provider for one service, for instrumentation libraries that want one. Never set globally."""

    def __init__(self, tracer: RecordingTracer) -> None:
        self._tracer = tracer

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        return self._tracer
