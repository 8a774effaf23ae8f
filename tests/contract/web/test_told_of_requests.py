"""What spans, metrics and lines tell of requests, and what they keep to themselves."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import orjson
import pytest
from starlette.responses import PlainTextResponse, Response

from microkit.telemetry import Telemetry
from microkit.telemetry.logs import configure
from tests.contract.web.serving import Serve, at

pytestmark = pytest.mark.anyio


async def test_span_metrics_and_access_line_tell_of_one_request(serve: Serve) -> None:
    async def handler(number: int) -> int:
        return number

    running = await serve(at(handler, path="/numbers/{number}"))
    stream = io.StringIO()
    undo = configure(stream, level="INFO")
    try:
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "User-Agent": "tests"}
        status, body, _ = await running.ask("GET", "/numbers/7?", headers=headers)
        assert (status, body) == (200, 7)
    finally:
        undo()
    (span,) = running.app.telemetry.ring.trace(trace)  # type: ignore[union-attr]
    assert (span.name, span.kind, span.parent_id) == ("GET /numbers/{number}", "server", "b7ad6b7169203331")
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.route"] == "/numbers/{number}"
    assert span.attributes["url.path"] == "/numbers/7"
    line = next(one for one in map(orjson.loads, stream.getvalue().splitlines()) if one["logger"] == "access")
    assert line["trace_id"] == trace
    assert line["span_id"] == span.span_id
    assert (line["method"], line["path"], line["route"], line["status"]) == (
        "GET",
        "/numbers/7",
        "/numbers/{number}",
        200,
    )
    assert line["service"] == "tried"
    counted = running.app.telemetry.exposition().decode()
    labels = 'http_request_method="GET",http_response_status_code="200",http_route="/numbers/{number}"'
    assert f"http_server_request_duration_seconds_count{{{labels}}} 1.0" in counted
    assert "http_server_active_requests 0.0" in counted


async def test_paths_that_do_not_exist_make_no_labels(serve: Serve) -> None:
    running = await serve()
    for number in range(20):
        await running.ask("GET", f"/nothing/{number}")
    counted = running.app.telemetry.exposition().decode()
    assert "/nothing" not in counted
    labels = 'http_request_method="GET",http_response_status_code="404",http_route=""'
    assert f"http_server_request_duration_seconds_count{{{labels}}} 20.0" in counted


async def test_two_services_in_one_process_share_nothing(serve: Serve) -> None:
    async def handler() -> str:
        return "x"

    first = await serve(at(handler), telemetry=Telemetry("first"))
    second = await serve(at(handler), telemetry=Telemetry("second"))
    await first.ask("GET", "/")
    assert "http_server_request_duration_seconds_count" in first.app.telemetry.exposition().decode()
    assert "http_server_request_duration_seconds_count" not in second.app.telemetry.exposition().decode()
    assert len(second.app.telemetry.ring) == 0  # type: ignore[arg-type]


async def test_probes_leave_no_spans_and_no_lines(serve: Serve) -> None:
    running = await serve()
    stream = io.StringIO()
    undo = configure(stream, level="INFO")
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics"):
        await running.ask("GET", path)
    undo()
    assert stream.getvalue() == ""
    assert len(running.app.telemetry.ring) == 0  # type: ignore[arg-type]


async def test_a_client_that_leaves_is_logged_and_breaks_nothing(serve: Serve) -> None:
    entered = asyncio.Event()

    async def handler() -> Response:
        entered.set()
        await asyncio.sleep(0.05)
        return PlainTextResponse("too late")

    running = await serve(at(handler))
    _, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await entered.wait()
    writer.close()
    await asyncio.sleep(0.1)
    assert (await running.ask("GET", "/"))[0] == 200


async def test_what_is_refused_while_it_is_read_is_counted_and_not_logged(serve: Serve, http: Any) -> None:
    running = await serve()
    stream = io.StringIO()
    undo = configure(stream, level="INFO")
    wire = http.wire_to(running.server)
    assert (await wire(b"nonsense\r\n\r\n")).status == 400
    assert (await wire(b"GET /" + b"a" * 9000)).status == 414
    undo()
    assert stream.getvalue() == ""
    counted = running.app.telemetry.exposition().decode()
    for status in (400, 414):
        labels = f'http_request_method="_OTHER",http_response_status_code="{status}",http_route=""'
        assert f"http_server_request_duration_seconds_count{{{labels}}} 1.0" in counted
