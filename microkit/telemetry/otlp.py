"""Traces to a collector over OTLP: the SDK's provider, one an instance, never the global one.

Imported only when asked for: it needs the extra ``otlp``.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from microkit.errors import ConfigurationError
from microkit.telemetry.recorder import KIND_NAMES, STATUS_NAMES
from microkit.telemetry.ring import RecordedSpan, SpanEvent, SpanLink, TraceRing

SEND_SECONDS: Final = 5.0
"""The longest that a batch may take, with its retries; so also the longest that closing takes."""


def otlp_provider(service: str, version: str, sampling: float, endpoint: str, ring: TraceRing | None) -> TracerProvider:
    """A provider that sends its spans to ``endpoint`` in batches.

    ``endpoint`` is the collector's base URL (``http://collector:4318``) or the whole one with its path. What is
    sent is also added to ``ring``, where one is given.

    Raises:
        ConfigurationError: the endpoint is no http URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError("otlp_endpoint is no http URL; an example: http://collector:4318")
    url = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    no_metrics = NoOpMeterProvider()  # else the exporter reports on itself through the process's global provider
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sampling),
        resource=Resource.create(
            {
                "service.name": service,
                "service.instance.id": str(uuid4()),
                **({"service.version": version} if version else {}),
            }
        ),
        shutdown_on_exit=False,
        meter_provider=no_metrics,
    )
    exporter = OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS, meter_provider=no_metrics)
    provider.add_span_processor(BatchSpanProcessor(exporter, meter_provider=no_metrics))
    if ring is not None:
        provider.add_span_processor(RingProcessor(service, ring))
    return provider


class RingProcessor(SpanProcessor):
    """Shows the SDK's spans in a ring as well."""

    def __init__(self, service: str, ring: TraceRing) -> None:
        self._service = service
        self._ring = ring

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled:
            self._ring.add(_Ended(self._service, span))


class _Ended:
    """An SDK span, described only when somebody looks."""

    __slots__ = ("_service", "_span", "trace")

    def __init__(self, service: str, span: ReadableSpan) -> None:
        self._service = service
        self._span = span
        self.trace = span.context.trace_id

    def recorded(self) -> RecordedSpan:
        span = self._span
        return RecordedSpan(
            service=self._service,
            name=span.name,
            kind=KIND_NAMES[span.kind],
            trace_id=f"{span.context.trace_id:032x}",
            span_id=f"{span.context.span_id:016x}",
            parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else None,
            start_ns=span.start_time or 0,
            end_ns=span.end_time or 0,
            status=STATUS_NAMES[span.status.status_code],
            status_description=span.status.description,
            attributes=dict(span.attributes or {}),
            events=tuple(SpanEvent(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events),
            links=tuple(
                SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links
            ),
        )


def shut_down(provider: TracerProvider) -> None:
    """Sends what waits and ends the provider. Blocks for at most two batches' time: call it in a thread."""
    provider.force_flush(int(SEND_SECONDS * 1000))
    provider.shutdown()
