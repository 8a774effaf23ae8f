"""What a handler is given of a request, and what is made of its answer. On a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.errors import Unavailable
from microkit.telemetry import Telemetry
from microkit.web import Limits, Mount, Server, Surface, WebApp
from tests.contract.web.serving import Serve, at

pytestmark = pytest.mark.anyio


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
