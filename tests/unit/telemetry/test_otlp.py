"""Spans sent to a real HTTP receiver, in OTLP's own encoding."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import trace as global_trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry, TraceRing, otlp

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
