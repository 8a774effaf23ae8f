"""Headers of traces, and spans as tests look at them."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from microkit.telemetry import RecordedSpan, Telemetry

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def spans_of(telemetry: Telemetry) -> list[RecordedSpan]:
    assert telemetry.ring is not None
    return telemetry.ring.recent()[::-1]


def sdk_telemetry(sampling: float = 1.0) -> tuple[Telemetry, InMemorySpanExporter]:
    provider = SdkTracerProvider(
        sampler=ParentBasedTraceIdRatio(sampling), resource=Resource.get_empty(), shutdown_on_exit=False
    )
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Telemetry("billing", provider=provider), exporter
