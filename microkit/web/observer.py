"""Span, duration and access line of each request."""

from __future__ import annotations

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, get_current_span

from microkit.errors import Problem
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import access_line
from microkit.telemetry.propagation import extract
from microkit.telemetry.recorder import MOST_CHARACTERS, RecordingSpan
from microkit.telemetry.span import describe_failure
from microkit.web.call import Call
from microkit.web.endpoint import Served
from microkit.web.sent import Sent


class Observer:
    """Tells one service's telemetry about its requests."""

    def __init__(self, telemetry: Telemetry, *, access_log: bool) -> None:
        self._service = telemetry.service
        self._begin = telemetry.begin
        self._duration = telemetry.metrics.http_server
        self._logger = telemetry.logger
        self._access_log = access_log

    def begin(self, call: Call, served: Served) -> Span:
        """Starts the span, under the caller's.

        What is only to be read later is added at the end, where it costs nothing for a request that is not sampled.
        """
        if served.quiet:
            return INVALID_SPAN
        scope, headers = call.scope, call.headers
        method, route = scope["method"], served.template
        traceparent = headers.get(b"traceparent")
        if traceparent is None:
            parent = extract(None)
        else:
            parent = extract(traceparent.decode("latin-1"), headers.get(b"tracestate", b"").decode("latin-1"))
        seen = {"http.request.method": method, "url.path": scope["path"][:MOST_CHARACTERS], "http.route": route}
        return self._begin(f"{method} {route}" if route else method, parent, SpanKind.SERVER, seen)

    def failed(self, error: BaseException, call: Call) -> None:
        """Tells the log and the trace, which may know what the caller may not."""
        span = get_current_span()
        if span.is_recording():
            describe_failure(span, error)
        where = f"{call.scope['method']} {call.scope['path']}"
        if isinstance(error, Problem):
            self._logger.warning("%s: %s", where, error, extra={"problem": error.type})
        else:
            self._logger.error("%s failed", where, exc_info=error)

    def end(self, call: Call, served: Served, span: Span, sent: Sent, seconds: float) -> None:
        """Writes down what became of the request."""
        scope, status = call.scope, sent.status
        method, client = scope["method"], scope.get("client")
        address = client[0] if client else ""
        route = call.route or served.template
        self._duration(method, route, status).observe(seconds)
        if served.quiet:
            return
        if span.is_recording():
            seen = {
                "http.response.status_code": status,
                "url.scheme": scope.get("scheme", "http"),
                "client.address": address,
                "user_agent.original": call.headers.get(b"user-agent", b"")[:MOST_CHARACTERS].decode("latin-1"),
            }
            if call.route:
                span.update_name(f"{method} {route}")
                seen["http.route"] = route
            if type(span) is RecordingSpan:
                span.note(seen)
            else:
                span.set_attributes(seen)
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()
        if self._access_log:
            fields = {
                "request_id": sent.request_id,
                "client": address,
                "user": call.principal.subject,
                "bytes": sent.size,
            }
            access_line(self._service, method, scope["path"], route, status, seconds, span, fields)
