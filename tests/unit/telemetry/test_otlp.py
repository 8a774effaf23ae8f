"""Spans sent to a real HTTP receiver, in OTLP's own encoding."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest
from opentelemetry import trace as global_trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind

from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry, TraceRing, otlp
from microkit.telemetry.propagation import extract

pytestmark = pytest.mark.anyio


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[tuple[str, str]]:
        return [
            (attribute.value.string_value, span.name)
            for _, request in self.requests
            for resource in request.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, request))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_closing_sends_the_spans_that_wait_each_in_its_services_name(collector: Collector) -> None:
    ring = TraceRing()
    billing = Telemetry("billing", version="1.2", exporter="otlp", otlp_endpoint=collector.url, ring=ring)
    payment = Telemetry("payment", exporter="otlp", otlp_endpoint=collector.url + "/")
    with payment.span("pay"), billing.span("read"):
        pass
    await billing.close()
    await payment.close()
    assert sorted(collector.spans()) == [("billing", "read"), ("payment", "pay")]
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    assert global_trace._TRACER_PROVIDER is None
    assert [(span.service, span.name) for span in ring.recent()] == [("billing", "read")]


async def test_a_collector_reads_all_of_a_span(collector: Collector) -> None:
    telemetry = Telemetry("billing", version="1.2", exporter="otlp", otlp_endpoint=collector.url)
    parent = extract("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1")
    amount = cast("float", Decimal("12.50"))  # what callers hand in although the types forbid it
    with (
        pytest.raises(ValueError, match="broken"),
        telemetry.span("pay", kind=SpanKind.SERVER, parent=parent, attributes={"tries": 2, "amount": amount}),
    ):
        raise ValueError("broken")
    with telemetry.provider.get_tracer("some.library", "2.0").start_as_current_span("query"):
        pass
    await telemetry.close()
    ((_, request),) = collector.requests
    (resource,) = request.resource_spans
    about = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (about["service.name"], about["service.version"]) == ("billing", "1.2")
    scopes = {scope.scope.name: scope for scope in resource.scope_spans}
    assert (scopes["some.library"].scope.version, scopes["some.library"].spans[0].name) == ("2.0", "query")
    (span,) = scopes["microkit"].spans
    assert span.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert span.trace_state == "vendor=1"
    assert span.flags == 0x300  # it is known whether the parent is remote, and it is
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    values = {one.key: one.value for one in span.attributes}
    assert (values["tries"].int_value, values["amount"].string_value) == (2, "12.50")
    assert (span.status.code, span.status.message) == (2, "ValueError: broken")
    (event,) = span.events
    assert event.name == "exception"
    assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano
    assert {one.key for one in event.attributes} == {"exception.type", "exception.message", "exception.stacktrace"}


async def test_an_endpoint_with_a_path_is_used_as_it_is(collector: Collector) -> None:
    telemetry = Telemetry("billing", exporter="otlp", otlp_endpoint=f"{collector.url}/custom/traces")
    with telemetry.span("x"):
        pass
    await telemetry.close()
    assert [path for path, _ in collector.requests] == ["/custom/traces"]


async def test_what_is_not_sampled_is_not_sent(collector: Collector) -> None:
    ring = TraceRing()
    telemetry = Telemetry("billing", exporter="otlp", otlp_endpoint=collector.url, sampling=0.0, ring=ring)
    with telemetry.span("x"):
        pass
    await telemetry.close()
    assert collector.requests == []
    assert ring.recent() == []


@pytest.mark.parametrize("listening", [False, True])
async def test_a_collector_that_does_not_answer_does_not_keep_a_service_from_ending(
    listening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "SEND_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen(1)
        telemetry = Telemetry("billing", exporter="otlp", otlp_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with telemetry.span("x"):
            pass
        await telemetry.close()


@pytest.mark.parametrize("endpoint", [None, "", "collector:4318", "ftp://collector"])
def test_an_endpoint_that_cannot_work_is_refused(endpoint: str | None) -> None:
    with pytest.raises(ConfigurationError, match="otlp_endpoint"):
        Telemetry("billing", exporter="otlp", otlp_endpoint=endpoint)


def in_a_process_without(package: str, error: str) -> str:
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({package!r}):
            raise ModuleNotFoundError("No module named " + repr(name), name={error!r} or name)
sys.meta_path.insert(0, Missing())
from microkit.telemetry import Telemetry
with Telemetry("billing").span("works without it"):
    pass
try:
    Telemetry("billing", exporter="otlp", otlp_endpoint="http://127.0.0.1:9")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("package", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_packages_the_extra_is_named(package: str) -> None:
    assert in_a_process_without(package, "").startswith("MissingExtra")
    assert "microkit[otlp]" in in_a_process_without(package, "")


def test_another_import_that_fails_is_told_as_it_is() -> None:
    assert in_a_process_without("requests", "").startswith("ModuleNotFoundError No module named 'requests'")
