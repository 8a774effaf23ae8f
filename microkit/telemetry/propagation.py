"""The trace on the wire: W3C Trace Context (https://www.w3.org/TR/trace-context/), strictly.

A ``traceparent`` that breaks the rules is ignored and a new trace starts; a ``tracestate`` that breaks them is dropped
while the ``traceparent`` beside it stands. Neither is logged: a stranger must not be able to fill the log.
"""

from __future__ import annotations

import re
from typing import Final

from opentelemetry.context import Context, get_current
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)

from microkit.telemetry.recorder import SPAN_KEY, RecordingSpan

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MEMBER = re.compile(
    r"([a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_LONGEST_TRACEPARENT: Final = 256
_LONGEST_TRACESTATE: Final = 512
_MOST_MEMBERS: Final = 32
_NO_CONTEXT: Final = Context()
_FLAGS: Final = tuple(TraceFlags(bits) for bits in range(256))
_NO_STATE: Final = TraceState()


def extract(traceparent: str | None, tracestate: str | None = None) -> Context:
    """The remote parent as a context to start a span in; an empty context, so a new trace, where there is none."""
    if not traceparent or len(traceparent) > _LONGEST_TRACEPARENT:
        return _NO_CONTEXT
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return _NO_CONTEXT
    version, trace_digits, span_digits, flags, rest = match.groups()
    trace_id, span_id = int(trace_digits, 16), int(span_digits, 16)
    if not trace_id or not span_id or version == "ff" or (rest and version == "00"):
        return _NO_CONTEXT
    state = _state(tracestate) if tracestate else _NO_STATE
    remote = SpanContext(trace_id, span_id, True, _FLAGS[int(flags, 16)], state)
    return Context({SPAN_KEY: NonRecordingSpan(remote)})


def context_of(span: Span) -> Context:
    """The current context with ``span`` in it: OpenTelemetry's ``set_span_in_context``, without copies of a context
    that holds nothing else, as that of a request is."""
    current = get_current()
    if not current or (len(current) == 1 and SPAN_KEY in current):
        return Context({SPAN_KEY: span})
    return set_span_in_context(span, current)


def _state(header: str) -> TraceState:
    if len(header) > _LONGEST_TRACESTATE:
        return _NO_STATE
    members: dict[str, str] = {}
    for text in header.split(","):
        member = text.strip(" \t")
        if not member:
            continue
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] in members:
            return _NO_STATE
        members[match[1]] = match[2]
    return TraceState(list(members.items())) if len(members) <= _MOST_MEMBERS else _NO_STATE


def inject() -> dict[str, str]:
    """The headers that carry the current span to the other side; none outside any span."""
    span = get_current_span()
    if type(span) is RecordingSpan:
        headers = {"traceparent": f"00-{span.trace.to_bytes(16).hex()}-{span.span.to_bytes(8).hex()}-01"}
        state = span.state
    else:
        context = span.get_span_context()
        if not context.is_valid:
            return {}
        trace_id, span_id, flags, state = context.trace_id, context.span_id, context.trace_flags, context.trace_state
        headers = {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"}
    if state:
        headers["tracestate"] = state.to_header()
    return headers


def span_ids(span: Span) -> tuple[str, str]:
    """A span's trace id and own id in hexadecimal; two empty texts where it has none."""
    if type(span) is RecordingSpan:  # asking it for its context would make one
        return span.trace.to_bytes(16).hex(), span.span.to_bytes(8).hex()  # in half of an f-string's time
    context = span.get_span_context()
    return (context.trace_id.to_bytes(16).hex(), context.span_id.to_bytes(8).hex()) if context.is_valid else ("", "")


def trace_id_hex() -> str:
    """The current trace's id as 32 hexadecimal digits, ``""`` outside any span."""
    return span_ids(get_current_span())[0]
