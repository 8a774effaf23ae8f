"""What surrounds every handler: deadline, identity, telemetry, problem documents, drain. On a real server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from microkit import context
from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.errors import ConfigurationError, Conflict, DefinitionError, RemoteProblem, Unavailable
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import configure
from microkit.web import Health, InlineRoute, Limits, Mount, Server, State, Surface, WebApp

pytestmark = pytest.mark.anyio

Handler = Callable[..., Awaitable[Any]]


class Running:
    """A server, a client of it, and the service's telemetry."""

    def __init__(self, app: WebApp, server: Server, client: aiohttp.ClientSession) -> None:
        self.app = app
        self.server = server
        self.client = client

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        async with self.client.request(method, path, **options) as answer:
            body = await answer.read()
            found = orjson.loads(body) if "json" in answer.headers.get("content-type", "") else body
            return answer.status, found, answer.headers


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(anyio_backend: str) -> AsyncIterator[Serve]:
    running: list[Running] = []

    async def serve(*routes: InlineRoute, mounts: tuple[Mount, ...] = (), **options: Any) -> Running:
        telemetry = options.pop("telemetry", None) or Telemetry("tried")
        app = WebApp(Surface("tried", routes=routes, mounts=mounts), telemetry=telemetry, **options)
        server = Server(app)
        await server.start()
        running.append(Running(app, server, aiohttp.ClientSession(server.url)))
        return running[-1]

    yield serve
    for one in running:
        await one.client.close()
        await one.server.stop(5)


def at(handler: Handler, method: str = "GET", path: str = "/", **options: Any) -> InlineRoute:
    return InlineRoute(method, path, handler, ANYONE, **options)


async def test_a_fault_of_the_service_is_a_500_that_tells_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler() -> None:
        raise RuntimeError("the secret of the house")

    running = await serve(at(handler))
    status, problem, _ = await running.ask("GET", "/")
    assert status == 500
    assert problem["type"] == "urn:problem:internal-error"
    assert "secret" not in str(problem)
    assert "Traceback" not in str(problem)
    span = running.app.telemetry.ring.recent()[0]  # type: ignore[union-attr]
    assert span.trace_id == problem["trace_id"]
    assert span.status == "error"
    assert "the secret of the house" in str(span.events[0].attributes)


class Unwritable:
    pass


class Final(BaseException):
    pass


async def cancelled_from_within() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


def raising(error: BaseException) -> Handler:
    async def handler() -> None:
        raise error

    return handler


def answering(response: Response) -> Handler:
    async def handler() -> Response:
        return response

    return handler


async def no_bytes() -> AsyncIterator[bytes]:
    yield b"never read"


LOOP: list[Any] = []
LOOP.append(LOOP)

MISBEHAVING: dict[str, Handler] = {
    "a line end in a header": answering(Response("x", headers={"X-Note": "a\r\nSet-Cookie: b=c"})),
    "U+0000 in a header": answering(Response("x", headers={"X-Note": "a\0b"})),
    "white space in a header's name": answering(Response("x", headers={"X Note": "a"})),
    "a line end in a stream's header": answering(StreamingResponse(no_bytes(), headers={"X-Note": "a\nb"})),
    "a status that is none": answering(Response("x", status_code=1000)),
    "a status that goes on": answering(Response("x", status_code=101)),
    "a stream's status that is none": answering(StreamingResponse(no_bytes(), status_code=1000)),
    "a problem's detail with a lone surrogate": raising(Conflict("\ud800")),
    "a problem's detail that is no text": raising(Conflict(Unwritable())),  # type: ignore[arg-type]
    "a problem with NaN": raising(Conflict(extensions={"rate": float("nan")})),
    "a problem with Infinity, deep down": raising(Conflict(extensions={"a": [{"b": float("-inf")}]})),
    "a problem with an object": raising(Conflict(extensions={"thing": Unwritable()})),
    "a problem with a member that holds itself": raising(Conflict(extensions={"loop": LOOP})),
    "a problem's header with a line end": raising(Conflict(headers={"X-Note": "a\r\nb: c"})),
    "a problem's header beyond latin-1": raising(Conflict(headers={"X-Note": "\u0142"})),
    "a problem's header that is no text": raising(Conflict(headers={"Retry-After": 3})),  # type: ignore[dict-item]
    "an HTTPException with a status that is none": raising(HTTPException(1000, "x")),
    "a group": raising(ExceptionGroup("several", [ValueError("a")])),
    "a group of what is no Exception": raising(BaseExceptionGroup("several", [Final()])),
    "what is no Exception": raising(Final()),
    "the end of the program": raising(SystemExit(3)),
    "a cancellation that nobody meant": cancelled_from_within,
}


@pytest.mark.parametrize("case", MISBEHAVING)
async def test_a_handler_that_misbehaves_is_a_logged_500_and_the_connection_goes_on(
    case: str, serve: Serve, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fine() -> str:
        return "fine"

    running = await serve(at(MISBEHAVING[case], path="/bad"), at(fine))
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    writer.write(http.request("GET", "/bad"))
    answer = await http.read_answer(reader)
    assert answer.status == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == "urn:problem:internal-error"
    assert len(answer.json["trace_id"]) == 32
    assert answer.headers["x-request-id"]
    assert "x-note" not in answer.headers
    assert [record for record in caplog.records if record.exc_info and "GET /bad failed" in record.getMessage()]
    assert running.app.telemetry.ring.recent()[0].status == "error"  # type: ignore[union-attr]
    writer.write(http.request("GET", "/"))
    assert (await http.read_answer(reader)).json == "fine"
    writer.close()


async def test_a_mounted_application_that_misbehaves_is_a_logged_500(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None: ...

    async def body_first(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"x"})

    async def bad_header(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-note", b"a\r\nb: c")]})

    async def text_header(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [("x-note", "a")]})

    apps = {"/silent": silent, "/body": body_first, "/header": bad_header, "/text": text_header}
    running = await serve(mounts=tuple(Mount(path, app, ANYONE) for path, app in apps.items()))
    for path in apps:
        caplog.clear()
        for method, sent in (("GET", None), ("POST", b"unread")):
            status, problem, headers = await running.ask(method, path, data=sent)
            assert (status, headers["content-type"]) == (500, "application/problem+json")
            assert len(problem["trace_id"]) == 32
        assert "failed" in caplog.text


async def test_what_a_problem_may_hold_beside_plain_json_is_written_as_pydantic_writes_it(serve: Serve) -> None:
    error = Conflict(extensions={"due": Decimal("1.50"), "at": datetime(2026, 1, 31, tzinfo=UTC), "ids": {7}})
    status, problem, _ = await (await serve(at(raising(error)))).ask("GET", "/")
    assert (status, problem["due"], problem["ids"]) == (409, "1.50", [7])
    assert problem["at"].startswith("2026-01-31T00:00:00")


async def test_headers_about_the_body_are_the_servers_and_an_empty_answer_has_none(serve: Serve, http: Any) -> None:
    lies = {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    running = await serve(
        at(raising(Conflict("Too late", headers=lies)), path="/problem"),
        at(answering(Response("whole", headers=lies)), path="/response"),
        at(answering(Response("not to be sent", status_code=204)), path="/empty"),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    for path, status in (("/problem", 409), ("/response", 200), ("/empty", 204), ("/problem", 409)):
        writer.write(http.request("GET", path))
        answer = await http.read_answer(reader)
        assert answer.status == status
        assert "transfer-encoding" not in answer.headers
        assert ("content-length" in answer.headers) is (status != 204)
    writer.close()


async def test_a_problem_keeps_its_headers_and_members(serve: Serve) -> None:
    async def handler() -> None:
        raise Conflict("Too late", extensions={"since": "noon", "status": 200}, headers={"Retry-After": "3"})

    status, problem, headers = await (await serve(at(handler, path="/a b"))).ask("GET", "/a%20b")
    assert status == 409
    assert problem == {
        "type": "urn:problem:conflict",
        "title": "Conflict",
        "status": 409,
        "detail": "Too late",
        "since": "noon",
        "instance": "/a%20b",
        "trace_id": problem["trace_id"],
    }
    assert headers["retry-after"] == "3"
    assert headers["cache-control"] == "no-store"


async def test_a_neighbours_problem_that_nobody_handled_is_a_502(serve: Serve) -> None:
    async def handler() -> None:
        raise RemoteProblem("ledger", "Ledger.read", 404, {"detail": "internal matter"})

    status, problem, _ = await (await serve(at(handler))).ask("GET", "/")
    assert status == 502
    assert problem["service"] == "ledger"
    assert "internal matter" not in str(problem)


async def test_a_request_ends_with_its_timeout(serve: Serve) -> None:
    cancelled = asyncio.Event()

    async def handler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    running = await serve(at(handler, timeout=0.05))
    status, problem, _ = await running.ask("GET", "/")
    assert status == 504
    assert problem["type"] == "urn:problem:deadline-exceeded"
    assert cancelled.is_set()


async def test_a_caller_that_waits_less_long_makes_the_deadline_shorter(serve: Serve) -> None:
    async def handler() -> float:
        return context.remaining() or 0.0

    running = await serve(at(handler, timeout=5.0))
    for given, bound in ((None, 5.0), ("900000", 5.0), ("2000", 2.0), ("nonsense", 5.0), ("-1", 5.0)):
        headers = {} if given is None else {"Request-Timeout-Ms": given}
        status, left, _ = await running.ask("GET", "/", headers=headers)
        assert status == 200
        assert bound - 2 < left <= bound
    status, _, _ = await running.ask("GET", "/", headers={"Request-Timeout-Ms": "0"})
    assert status == 504


async def test_a_handler_that_was_cancelled_from_within_is_no_timeout(serve: Serve) -> None:
    async def handler() -> str:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "went on"

    status, body, _ = await (await serve(at(handler))).ask("GET", "/")
    assert (status, body) == (200, "went on")


@pytest.mark.parametrize("sent", [b"", b'{"na'])
@pytest.mark.parametrize("path", ["/json", "/request", "/unread"])
async def test_a_body_that_stops_coming_is_the_clients_408_and_not_a_504(
    sent: bytes, path: str, serve: Serve, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def json(body: dict[str, int]) -> None: ...

    async def request(request: Request) -> int:
        return len(await request.body())

    async def unread() -> None: ...

    routes = (at(json, "POST", "/json"), at(request, "POST", "/request"), at(unread, "POST", "/unread"))
    running = await serve(*routes, limits=Limits(timeout=0.05))
    head = http.request("POST", path, "Content-Type: application/json", "Content-Length: 10")
    answer = await http.wire_to(running.server)(head, sent)
    assert answer.status == 408
    assert answer.closed
    assert answer.json["type"] == "urn:problem:request-timeout"
    assert len(answer.json["trace_id"]) == 32
    assert "WARNING" not in caplog.text
    assert "ERROR" not in caplog.text


async def test_a_handler_that_is_slow_after_its_body_came_is_a_504(serve: Serve) -> None:
    async def handler(request: Request) -> None:
        await request.body()
        await request.receive()  # only that the client left can still come

    async def reads_first(body: bytes) -> None:
        await asyncio.sleep(60)

    running = await serve(at(handler, "POST"), at(reads_first, "POST", "/first"), limits=Limits(timeout=0.05))
    for path in ("/", "/first"):
        status, problem, headers = await running.ask("POST", path, data=b"whole")
        assert (status, problem["type"]) == (504, "urn:problem:deadline-exceeded")
        assert "connection" not in headers


async def test_options_and_unknown_methods_name_what_is_allowed(serve: Serve) -> None:
    async def handler() -> str:
        return "x"

    running = await serve(at(handler), at(handler, "PUT"))
    status, _, headers = await running.ask("OPTIONS", "/")
    assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS, PUT")
    status, problem, headers = await running.ask("PATCH", "/")
    assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS, PUT")
    assert problem["type"] == "urn:problem:method-not-allowed"


async def test_head_answers_as_get_without_a_body(serve: Serve) -> None:
    async def handler() -> str:
        return "twelve bytes"

    running = await serve(at(handler))
    async with running.client.head("/") as answer:
        assert answer.status == 200
        assert answer.headers["content-length"] == "14"
        assert await answer.read() == b""
    status, body, _ = await running.ask("GET", "/")
    assert (status, body) == (200, "twelve bytes")


async def test_a_request_id_is_kept_where_it_is_harmless(serve: Serve) -> None:
    async def handler() -> None: ...

    running = await serve(at(handler))
    _, _, headers = await running.ask("GET", "/", headers={"X-Request-ID": "abc-123_4.5"})
    assert headers["x-request-id"] == "abc-123_4.5"
    for bad in ("a b", "x" * 200, '"><script>', "{}"):
        _, _, headers = await running.ask("GET", "/", headers={"X-Request-ID": bad})
        assert headers["x-request-id"] != bad
        assert len(headers["x-request-id"]) == 24


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


async def test_an_answer_in_pieces_is_streamed(serve: Serve) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    async def handler() -> Response:
        return StreamingResponse(pieces(), media_type="text/plain")

    running = await serve(at(handler))
    status, body, headers = await running.ask("GET", "/")
    assert (status, body) == (200, b"012")
    assert headers["x-request-id"]


async def test_half_an_answer_ends_the_connection_and_not_the_body(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("broken in the middle")

    async def handler() -> Response:
        return StreamingResponse(pieces())

    running = await serve(at(handler))
    with pytest.raises(aiohttp.ClientPayloadError):
        await running.ask("GET", "/")
    assert running.app.telemetry.ring.recent()[0].status == "error"  # type: ignore[union-attr]


async def test_a_handler_may_take_the_request_itself_and_its_body_is_bounded(serve: Serve) -> None:
    async def handler(request: Request) -> int:
        return len(await request.body())

    running = await serve(at(handler, "POST"), limits=Limits(body=1000))
    status, size, _ = await running.ask("POST", "/", data=b"x" * 1000)
    assert (status, size) == (200, 1000)
    status, _, _ = await running.ask("POST", "/", data=b"x" * 1001)
    assert status == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    status, _, _ = await running.ask("POST", "/", data=endless())
    assert status == 413


async def test_a_raw_body_is_taken_whatever_its_media_type(serve: Serve) -> None:
    async def handler(body: bytes) -> int:
        return len(body)

    running = await serve(at(handler, "POST"))
    status, size, _ = await running.ask("POST", "/", data=b"\0\xff" * 10, headers={"Content-Type": "image/png"})
    assert (status, size) == (200, 20)


async def test_a_handler_that_returns_what_it_did_not_declare_is_a_fault(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def number() -> int:
        return "seven"  # type: ignore[return-value]

    async def nothing() -> None:
        return 7  # type: ignore[return-value]

    running = await serve(at(number), at(nothing, path="/nothing"))
    assert (await running.ask("GET", "/"))[0] == 500
    assert (await running.ask("GET", "/nothing"))[0] == 500


async def test_a_mounted_application_gets_root_path_principal_and_telemetry(serve: Serve) -> None:
    async def show(request: Request) -> Response:
        principal = request.state.principal
        return JSONResponse({"root": request.scope["root_path"], "path": request.url.path, "who": principal.subject})

    inner = Starlette(routes=[StarletteRoute("/show", show)])

    async def verify(token: str) -> Principal:
        return Principal(token, frozenset({"member"}))

    running = await serve(mounts=(Mount("/inner", inner, "member"),), verify=verify)
    assert (await running.ask("GET", "/inner/show"))[0] == 401
    mine = {"Authorization": "Bearer ada"}
    status, shown, headers = await running.ask("GET", "/inner/show", headers=mine)
    assert status == 200
    assert shown == {"root": "/inner", "path": "/inner/show", "who": "ada"}
    assert headers["x-request-id"]
    assert (await running.ask("GET", "/innermost", headers=mine))[0] == 404
    counted = running.app.telemetry.exposition().decode()
    assert 'http_route="/inner/*"' in counted


async def test_a_problem_that_a_mounted_application_raises_is_rendered(serve: Serve) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise Unavailable("The upstream is away", headers={"Retry-After": "5"})

    running = await serve(mounts=(Mount("/", app, ANYONE),))
    status, problem, headers = await running.ask("GET", "/anything/at/all")
    assert (status, problem["detail"], headers["retry-after"]) == (503, "The upstream is away", "5")
    assert (await running.ask("GET", "/health/live"))[0] == 200


async def test_a_service_may_write_its_own_openapi_document_and_the_page_shows_it(serve: Serve) -> None:
    async def own() -> dict[str, Any]:
        return {"openapi": "3.1.0", "info": {"title": "Of all", "version": "9"}, "paths": {}}

    running = await serve(at(own, path="/openapi.json"))
    _, document, _ = await running.ask("GET", "/openapi.json")
    assert document["info"]["title"] == "Of all"
    _, page, _ = await running.ask("GET", "/docs")
    assert b"<h1>Of all</h1>" in page


async def test_readiness_follows_state_and_critical_parts(serve: Serve) -> None:
    health = Health()
    running = await serve(health=health)
    assert (await running.ask("GET", "/health/startup"))[0] == 503
    assert (await running.ask("GET", "/health/ready"))[0] == 503
    assert (await running.ask("GET", "/health/live"))[0] == 200
    health.state = State.READY
    assert (await running.ask("GET", "/health/startup"))[0] == 200
    assert (await running.ask("GET", "/health/ready"))[0] == 200

    async def away() -> None:
        raise ConnectionError("no route to host")

    health.part("cache", away, critical=False)
    assert (await running.ask("GET", "/health/ready"))[0] == 200
    health.part("database", away)
    assert (await running.ask("GET", "/health/ready"))[0] == 503
    status, report, _ = await running.ask("GET", "/health")
    assert (status, report["status"], report["state"]) == (503, "down", "ready")
    assert report["parts"]["database"]["status"] == "down"
    assert report["parts"]["database"]["error"] == "ConnectionError: no route to host"
    health.state = State.DRAINING
    assert (await running.ask("GET", "/health/live"))[0] == 200
    status, body, _ = await running.ask("GET", "/health/ready")
    assert (status, body["state"]) == (503, "draining")


async def test_stopping_lets_requests_end_and_takes_no_more(serve: Serve) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def handler() -> str:
        entered.set()
        await leave.wait()
        return "whole"

    running = await serve(at(handler))
    asked = asyncio.create_task(running.ask("GET", "/"))
    await entered.wait()
    stopped = asyncio.create_task(running.server.stop(10))
    await asyncio.sleep(0.05)
    assert not stopped.done()
    async with aiohttp.ClientSession() as other:
        with pytest.raises(aiohttp.ClientConnectionError):
            await other.get(f"{running.client._base_url}")
    leave.set()
    status, body, headers = await asked
    assert (status, body, headers["connection"]) == (200, "whole", "close")
    await stopped


async def test_stopping_cancels_what_does_not_end_in_time(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler() -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = await serve(at(handler, timeout=60))
    asked = asyncio.create_task(running.ask("GET", "/"))
    await entered.wait()
    await running.server.stop(0.05)
    assert cancelled.is_set()
    with pytest.raises(aiohttp.ClientError):
        status, _, _ = await asked
        raise aiohttp.ClientError(str(status))


async def test_a_draining_server_asks_its_clients_to_leave(serve: Serve) -> None:
    async def handler() -> str:
        return "x"

    running = await serve(at(handler))
    _, _, headers = await running.ask("GET", "/")
    assert "connection" not in headers
    running.server.drain()
    _, _, headers = await running.ask("GET", "/")
    assert headers["connection"] == "close"


async def test_a_taken_port_is_one_clear_sentence(serve: Serve) -> None:
    running = await serve()
    second = Server(running.app, port=running.server.port)
    with pytest.raises(ConfigurationError, match=f"port {running.server.port} of 127.0.0.1 is taken"):
        await second.start()
    await second.stop(1)


async def test_a_host_that_is_not_of_this_machine_is_one_clear_sentence(serve: Serve) -> None:
    running = await serve()
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        Server(running.app, "192.0.2.1", 0).bind()
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        Server(running.app, "no.such.host.invalid", 0).bind()


async def test_a_port_is_known_and_taken_before_the_server_starts(serve: Serve) -> None:
    running = await serve()
    early = Server(running.app)
    early.bind()
    with pytest.raises(ConfigurationError, match="taken"):
        Server(running.app, port=early.port).bind()
    await early.stop(1)


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


async def test_what_cannot_work_is_refused_when_the_application_is_made() -> None:
    async def handler(missing: Health) -> None: ...

    async def fine() -> None: ...

    def make(*routes: InlineRoute, mounts: tuple[Mount, ...] = ()) -> WebApp:
        return WebApp(Surface("x", routes=routes, mounts=mounts), telemetry=Telemetry("x"))

    with pytest.raises(DefinitionError, match="does not say who may call it"):
        make(InlineRoute("GET", "/", fine, ()))
    with pytest.raises(DefinitionError, match="does not say who may call it"):
        make(mounts=(Mount("/x", Starlette(), ()),))
    with pytest.raises(DefinitionError, match="there twice"):
        make(at(fine), at(fine))
    with pytest.raises(DefinitionError, match="no parameter for"):
        make(at(fine, path="/{number}"))
    with pytest.raises(DefinitionError, match="two mounts"):
        make(mounts=(Mount("/x", Starlette(), ANYONE), Mount("/x/", Starlette(), ANYONE)))


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


async def test_a_service_that_is_away_says_when_to_come_back(serve: Serve) -> None:
    async def away() -> None:
        raise Unavailable

    _, _, headers = await (await serve(at(away))).ask("GET", "/")
    assert headers["retry-after"] == "1"


async def test_a_mounted_application_may_speak_websocket() -> None:
    from starlette.routing import WebSocketRoute  # noqa: PLC0415
    from starlette.websockets import WebSocket  # noqa: PLC0415

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(f"{socket.state.principal.subject}: {await socket.receive_text()}")
        await socket.close()

    async def verify(token: str) -> Principal:
        return Principal(token, frozenset({"member"}))

    mount = Mount("/live", Starlette(routes=[WebSocketRoute("/echo", echo)]), "member")
    app = WebApp(Surface("tried", mounts=[mount]), telemetry=Telemetry("tried"), verify=verify)
    server = Server(app, websockets=True)
    await server.start()
    async with aiohttp.ClientSession(server.url) as client:
        async with client.ws_connect("/live/echo", headers={"Authorization": "Bearer ada"}) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "ada: hello"
        for path in ("/live/echo", "/elsewhere"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect(path)
            assert refused.value.status == 403
    await server.stop(5)
