"""Handlers and mounted applications that misbehave: a logged 500 that tells nothing, and the connection goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from microkit.contract import ANYONE
from microkit.errors import Conflict, DefinitionError
from microkit.telemetry import Telemetry
from microkit.web import Health, InlineRoute, Mount, Surface, WebApp
from tests.contract.web.serving import Handler, Serve, answering, at, raising

pytestmark = pytest.mark.anyio


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
