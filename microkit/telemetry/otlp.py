"""Traces to a collector over OTLP: the SDK's provider, one an instance, never the global one.

Imported only when asked for: it needs the extra ``otlp``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from microkit.errors import ConfigurationError


def otlp_provider(service: str, version: str, sampling: float, endpoint: str) -> TracerProvider:
    """A provider that sends its spans to ``endpoint`` in batches.

    ``endpoint`` is the collector's base URL (``http://collector:4318``) or the whole one with its path.

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
        resource=Resource.create({"service.name": service, "service.version": version}),
        shutdown_on_exit=False,
        meter_provider=no_metrics,
    )
    exporter = OTLPSpanExporter(endpoint=url, timeout=5, meter_provider=no_metrics)
    provider.add_span_processor(BatchSpanProcessor(exporter, meter_provider=no_metrics))
    return provider


def shut_down(provider: TracerProvider, seconds: float) -> None:
    """Sends what waits, for at most ``seconds``, and ends the provider. Blocks: call it in a thread."""
    provider.force_flush(int(seconds * 1000))
    provider.shutdown()
