"""Traces to a collector over OTLP: our recorder before the SDK's batches and exporter, one pair an instance.

The SDK's own tracer costs four times as much a span (docs/decisions/0002). Imported only when asked for: it needs the
extra ``otlp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, Tracer, TracerProvider
from opentelemetry.util.types import Attributes

from microkit.errors import ConfigurationError
from microkit.telemetry.recorder import Keep, RecordingSpan, RecordingTracer
from microkit.telemetry.ring import TraceRing

SEND_SECONDS: Final = 5.0
"""The longest that a batch may take, with its retries; so also the longest that closing takes."""

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSET: Final = Status()
_PLAIN: Final = frozenset({str, int, float, bool, bytes, tuple, list})


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends to ``endpoint``: a collector's base URL (``http://collector:4318``) or the whole one with its path.

    Raises:
        ConfigurationError: the endpoint is no http URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError("otlp_endpoint is no http URL; an example: http://collector:4318")
    url = endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    # Without a provider of its own the exporter reports on itself through the process's global one.
    return OTLPSpanExporter(endpoint=url, timeout=SEND_SECONDS, meter_provider=NoOpMeterProvider())


class SendingProvider(TracerProvider):
    """A tracer provider for one service whose spans go to ``exporter`` in batches, and also into ``ring``, if any.

    Sampling is that of the SDK's ``ParentBasedTraceIdRatio``. The environment's ``OTEL_RESOURCE_ATTRIBUTES`` and
    ``OTEL_BSP_*`` hold as they do for the SDK.
    """

    def __init__(
        self, service: str, version: str, sampling: float, exporter: SpanExporter, ring: TraceRing | None = None
    ) -> None:
        self.resource = Resource.create(
            {
                "service.name": service,
                "service.instance.id": str(uuid4()),
                **({"service.version": version} if version else {}),
            }
        )
        self._service = service
        self._sampling = sampling
        self._ring = ring
        self._batches = BatchSpanProcessor(exporter, meter_provider=NoOpMeterProvider())

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Tracer:
        scope = InstrumentationScope(
            instrumenting_module_name, instrumenting_library_version or "", schema_url, attributes
        )
        return RecordingTracer(self._service, self._keep(scope), self._sampling)

    def _keep(self, scope: InstrumentationScope) -> Keep:
        send, resource = self._batches.on_end, self.resource
        if self._ring is None:
            return lambda span: send(readable(span, resource, scope))
        show = self._ring.add

        def keep(span: RecordingSpan) -> None:
            show(span)
            send(readable(span, resource, scope))

        return keep

    def shut_down(self) -> None:
        """Sends what waits and ends. Blocks for at most two batches' time: call it in a thread."""
        self._batches.force_flush(int(SEND_SECONDS * 1000))
        self._batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK's


def readable(span: RecordingSpan, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """A span that has ended as the SDK's exporters take it."""
    unset = span.status is StatusCode.UNSET
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=SpanContext(span.trace, span.parent, span.remote, _SAMPLED, span.state) if span.parent else None,
        resource=resource,
        attributes=_sendable(span.attributes),
        events=[Event(one.name, _sendable(one.attributes), one.time_ns) for one in span.events] if span.events else (),
        links=span.links,
        kind=span.kind,
        status=_UNSET if unset else Status(span.status, span.description),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=scope,
    )


def _sendable(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes, with what OTLP has no form for written as text, as the SDK's own spans do."""
    for value in attributes.values():
        if type(value) not in _PLAIN:
            return {key: one if type(one) in _PLAIN else str(one) for key, one in attributes.items()}
    return attributes
