"""A collector of traces for the console: what other processes of the system send over OTLP/HTTP goes into its ring.

The protocol is OpenTelemetry's, in its binary form: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microkit.telemetry.ring import RecordedSpan, SpanEvent, SpanKindName, SpanLink, StatusName, TraceRing

PATH: Final = "/v1/traces"
_TYPE: Final = "application/x-protobuf"
_LARGEST: Final = 16 * 1024 * 1024
"""Bytes of a batch, unpacked."""

_KINDS: Final[Mapping[int, SpanKindName]] = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUSES: Final[Mapping[int, StatusName]] = {0: "unset", 1: "ok", 2: "error"}


def collector(ring: TraceRing) -> Route:
    """The endpoint that exporters send to."""

    async def receive(request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            try:
                body = gzip.GzipFile(fileobj=io.BytesIO(body)).read(_LARGEST + 1)
            except (OSError, EOFError):
                return Response("the body is no gzip", 400)
        if len(body) > _LARGEST:
            return Response("the batch is too large", 413)
        batch = ExportTraceServiceRequest()
        try:
            batch.ParseFromString(body)
        except DecodeError:
            return Response(f"the body is no {_TYPE} of OTLP", 400)
        for resource in batch.resource_spans:
            service = str(_attributes(resource.resource.attributes).get("service.name", ""))
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ring.add(_Received(service, span))
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type=_TYPE)

    return Route(PATH, receive, methods=["POST"])


class _Received:
    """A span as it came, described only when somebody looks."""

    __slots__ = ("_service", "_span", "trace")

    def __init__(self, service: str, span: Span) -> None:
        self._service = service
        self._span = span
        self.trace = int.from_bytes(span.trace_id)

    def recorded(self) -> RecordedSpan:
        span = self._span
        return RecordedSpan(
            service=self._service,
            name=span.name,
            kind=_KINDS.get(span.kind, "internal"),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex() or None,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            status=_STATUSES.get(span.status.code, "unset"),
            status_description=span.status.message or None,
            attributes=_attributes(span.attributes),
            events=[SpanEvent(each.name, each.time_unix_nano, _attributes(each.attributes)) for each in span.events],
            links=[SpanLink(each.trace_id.hex(), each.span_id.hex()) for each in span.links],
        )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return None if kind is None else getattr(value, kind)
