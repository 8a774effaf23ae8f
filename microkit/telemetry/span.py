"""``telemetry.span(...)``: a span that is current inside the block."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Token
from types import TracebackType

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import Attributes

from microkit.errors import Problem
from microkit.redaction import said
from microkit.telemetry.recorder import MOST_CHARACTERS, exception_attributes


class SpanBlock:
    """Starts a span, makes it current, and ends it with what the block came to.

    A class, because a generator's context manager costs as much as the span. What the block raises is written into it:
    an exception as an event, with the status error; a problem below 500 as ``error.type`` only, for it is an answer; a
    cancellation as an event.
    """

    __slots__ = ("_arguments", "_span", "_token", "_tracer")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parent: Context | None,
        links: Sequence[Link],
    ) -> None:
        self._tracer = tracer
        self._arguments = (name, parent, kind, attributes, links)

    def __enter__(self) -> Span:
        self._span = span = self._tracer.start_span(*self._arguments)
        self._token: Token[Context] = attach(set_span_in_context(span))
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        detach(self._token)
        if error is not None and self._span.is_recording():
            describe_failure(self._span, error)
        self._span.end()


def describe_failure(span: Span, error: BaseException) -> None:
    """Writes into ``span`` that its work ended in ``error``."""
    if isinstance(error, asyncio.CancelledError):
        span.add_event("cancelled")
        return
    span.set_attribute("error.type", type(error).__qualname__)
    if isinstance(error, Problem) and error.status < 500:
        return
    if isinstance(error, Exception):
        span.add_event("exception", exception_attributes(error))
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {said(error)}"[:MOST_CHARACTERS])
