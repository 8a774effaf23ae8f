"""What one service tells about itself: traces, metrics and logs, shared with no other service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal

import anyio
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Tracer, TracerProvider
from opentelemetry.util.types import Attributes
from prometheus_client import CollectorRegistry

from microkit.errors import ConfigurationError, MissingExtra
from microkit.telemetry.logs import ServiceLogger
from microkit.telemetry.metrics import Metrics, process_registry
from microkit.telemetry.recorder import RecordingProvider, RecordingTracer
from microkit.telemetry.ring import TraceRing
from microkit.telemetry.span import SpanBlock

Exporter = Literal["memory", "otlp", "none"]

SCOPE: Final = "microkit"
LONGEST_CLOSE: Final = 10.0
"""Seconds."""


Begin = Callable[[str, Context | None, SpanKind, dict[str, Any]], Span]


class Telemetry:
    """The telemetry of one service. Nothing in it is global: twenty may live in one process.

    ``exporter`` says where spans go: ``memory`` into ``ring`` (one of its own where none is given; services of one
    process may share one on purpose), ``otlp`` to ``otlp_endpoint`` and also into ``ring`` where one is given, ``none``
    nowhere, while trace ids are still made and passed on. ``provider`` takes the place of all that: any OpenTelemetry
    tracer provider, which its owner ends.
    ``sampling`` is the share of new traces that is recorded; a trace that came in is recorded as its sender decided.

    Raises:
        ConfigurationError: ``otlp`` without an endpoint, or a share outside 0 to 1.
        MissingExtra: ``otlp`` without the extra.
    """

    def __init__(
        self,
        service: str,
        *,
        version: str = "",
        sampling: float = 1.0,
        exporter: Exporter = "memory",
        otlp_endpoint: str | None = None,
        ring: TraceRing | None = None,
        log_level: str = "INFO",
        provider: TracerProvider | None = None,
    ) -> None:
        if not 0 <= sampling <= 1:
            raise ConfigurationError(f"trace_sampling is a share from 0 to 1, not {sampling}; an example: 0.1")
        self.service = service
        self.ring = ring
        self.provider: TracerProvider
        self._shut_down: Callable[[], None] | None = None
        if provider is not None:
            self.provider = provider
        elif exporter == "otlp":
            if not otlp_endpoint:
                raise ConfigurationError("trace_exporter=otlp needs otlp_endpoint; an example: http://collector:4318")
            self.provider, self._shut_down = _sending(service, version, sampling, otlp_endpoint, ring)
        else:
            if exporter == "none":
                self.ring = None
            elif ring is None:
                self.ring = TraceRing()
            self.provider = RecordingProvider(
                RecordingTracer(service, self.ring.add if self.ring is not None else None, sampling)
            )
        self.tracer: Tracer = self.provider.get_tracer(SCOPE, version or None)
        self.begin: Begin = self.tracer.begin if isinstance(self.tracer, RecordingTracer) else self.tracer.start_span
        """Starts a span for each request: its attributes are few, short, and given away."""
        self.metrics = Metrics(process_registry())
        self.logger = ServiceLogger(service, log_level)

    @property
    def registry(self) -> CollectorRegistry:
        """The service's own Prometheus registry. ``metrics`` makes families in it that may be asked for twice."""
        return self.metrics.registry

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        parent: Context | None = None,
        links: Sequence[Link] = (),
    ) -> AbstractContextManager[Span]:
        """A span that is current inside the block, under ``parent`` or else the current one.

        An exception is recorded, and the status is an error; a :class:`~microkit.errors.Problem` below 500 and a
        cancellation are no errors.
        """
        return SpanBlock(self.tracer, name, kind, attributes, parent, links)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, whose media type is ``metrics.CONTENT_TYPE``."""
        return self.metrics.exposition()

    async def close(self) -> None:
        """Sends the spans that wait. A collector that does not answer delays it by some seconds, ten at most."""
        shut_down, self._shut_down = self._shut_down, None
        if shut_down is not None:
            with anyio.move_on_after(LONGEST_CLOSE, shield=True):
                await anyio.to_thread.run_sync(shut_down, abandon_on_cancel=True)


def _sending(
    service: str, version: str, sampling: float, endpoint: str, ring: TraceRing | None
) -> tuple[TracerProvider, Callable[[], None]]:
    try:
        from microkit.telemetry.otlp import SendingProvider, otlp_exporter  # noqa: PLC0415  needs an extra
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise MissingExtra("Sending traces over OTLP", "otlp") from None
        raise
    provider = SendingProvider(service, version, sampling, otlp_exporter(endpoint), ring)
    return provider, provider.shut_down
