"""What comes through a gateway, and as what."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route as Path
from yarl import URL

from microkit.contract import SIGNED_IN
from microkit.gateway import Route

pytestmark = pytest.mark.anyio

BILLS = Route("/api/bills", service="billing", strip_prefix="/api", timeout=5)


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode()] for name, value in request.scope["headers"]],
            "length": len(body),
            "body": body[:100].decode("latin-1"),
        },
        status_code=201 if request.method == "POST" else 200,
    )


def billing(*extra: Path) -> Starlette:
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(routes=[*extra, Path("/{path:path}", echo, methods=methods)])


def headers_of(answer: dict[str, Any]) -> dict[str, str]:
    names = [name for name, _ in answer["headers"]]
    assert len(names) == len(set(names)), "a header arrived twice"
    return dict(answer["headers"])


async def test_method_path_query_body_and_status_pass(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()})
    url = f"{gateway.url}/api/bills/a%20b/%C3%BC?x=1&y=%2F%26&x=2"
    async with gateway.client.post(URL(url, encoded=True), data=b'{"a": 1}') as response:
        assert response.status == 201
        answer = await response.json()
    assert answer["method"] == "POST"
    assert answer["path"] == "/bills/a%20b/%C3%BC"
    assert answer["query"] == "x=1&y=%2F%26&x=2"
    assert answer["body"] == '{"a": 1}'


async def test_a_client_cannot_pose_as_a_proxy_or_as_somebody_else(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()})
    posed = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/x",
        "X-User-Id": "root",
        "X_User_Id": "root",
        "X-Internal-Admin": "1",
        "Forwarded": "for=6.6.6.6",
        "X-Hop": "1",
        "Connection": "X-Hop",
        "User-Agent": "tests/1",
    }
    async with gateway.client.get(f"{gateway.url}/api/bills", headers=posed) as response:
        headers = headers_of(await response.json())
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == f"127.0.0.1:{gateway.port}"
    assert headers["user-agent"] == "tests/1"
    assert {"x-user-id", "x_user_id", "x-internal-admin", "forwarded", "x-hop", "x-forwarded-prefix"}.isdisjoint(
        headers
    )


async def test_a_trusted_proxys_word_about_the_client_is_passed_on(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()}, trusted_proxies=["127.0.0.0/8"])
    told = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4", "X-Forwarded-Proto": "https"}
    async with gateway.client.get(f"{gateway.url}/api/bills", headers=told) as response:
        headers = headers_of(await response.json())
    assert headers["x-forwarded-for"] == "1.2.3.4"
    assert headers["x-forwarded-proto"] == "https"


async def test_a_verified_token_passes_with_the_users_id(start: Any) -> None:
    guarded = Route("/api/bills", service="billing", strip_prefix="/api", allow=SIGNED_IN)
    gateway = await start([guarded], {"billing": billing()})
    async with gateway.client.get(f"{gateway.url}/api/bills", headers={"Authorization": "Bearer alice"}) as response:
        headers = headers_of(await response.json())
    assert headers["x-user-id"] == "user-alice"
    assert headers["authorization"] == "Bearer alice"


@pytest.mark.parametrize(
    ("allow", "token", "status"),
    [
        (SIGNED_IN, None, 401),
        (SIGNED_IN, "Bearer forged", 401),
        (SIGNED_IN, "Basic alice", 401),
        (SIGNED_IN, "Bearer", 401),
        ("admin", "Bearer alice", 403),
        ("admin", "bearer root", 200),
        (("admin", "member"), "Bearer alice", 200),
    ],
)
async def test_a_guarded_route_asks_who_is_calling(start: Any, allow: Any, token: str | None, status: int) -> None:
    gateway = await start([Route("/bills", service="billing", allow=allow)], {"billing": billing()})
    headers = {"Authorization": token} if token else {}
    async with gateway.client.get(f"{gateway.url}/bills", headers=headers) as response:
        assert response.status == status
        if status == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_an_open_route_passes_a_bad_token_without_a_user_id_and_leaves_it_to_the_service(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()})
    async with gateway.client.get(f"{gateway.url}/api/bills", headers={"Authorization": "Bearer old"}) as response:
        headers = headers_of(await response.json())
    assert headers["authorization"] == "Bearer old"
    assert "x-user-id" not in headers


@pytest.mark.parametrize(
    ("method", "path", "status", "type"),
    [
        ("GET", "/elsewhere", 404, "urn:problem:not-found"),
        ("GET", "/api/billsx", 404, "urn:problem:not-found"),
        ("GET", "//admin", 400, "urn:problem:unreadable-target"),
        ("GET", "/api/bills/%2e%2e/users", 400, "urn:problem:unreadable-target"),
        ("GET", "/%2fapi/bills", 400, "urn:problem:unreadable-target"),
        ("DELETE", "/read-only", 405, "urn:problem:method-not-allowed"),
    ],
)
async def test_what_no_route_takes_is_a_problem(start: Any, method: str, path: str, status: int, type: str) -> None:
    routes = [BILLS, Route("/read-only", service="billing", methods=("GET", "HEAD"))]
    gateway = await start(routes, {"billing": billing()})
    url = URL(gateway.url + path, encoded=True)
    async with gateway.client.request(method, url) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/problem+json"
        assert orjson.loads(await response.read())["type"] == type
        if status == 405:
            assert response.headers["Allow"] == "GET, HEAD"


async def test_a_compressed_answer_passes_as_it_is(start: Any) -> None:
    packed = gzip.compress(b"x" * 1000)

    async def compressed(_: Request) -> Response:
        return Response(packed, headers={"Content-Encoding": "gzip"})

    gateway = await start([BILLS], {"billing": billing(Path("/bills/gzip", compressed))})
    async with gateway.client.get(f"{gateway.url}/api/bills/gzip") as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert await response.read() == packed


async def test_redirects_and_locations_lead_through_the_gateway(start: Any) -> None:
    async def moved(_: Request) -> Response:
        return RedirectResponse("/bills/7")

    async def elsewhere(_: Request) -> Response:
        return RedirectResponse("https://other.example/bills/7")

    async def absolute(request: Request) -> Response:
        return RedirectResponse(f"{request.url.scheme}://{request.headers['host']}/bills/8?x=1")

    gateway = await start(
        [BILLS],
        {
            "billing": billing(
                Path("/bills/moved", moved), Path("/bills/elsewhere", elsewhere), Path("/bills/absolute", absolute)
            )
        },
    )
    found = {}
    for name in ("moved", "elsewhere", "absolute"):
        async with gateway.client.get(f"{gateway.url}/api/bills/{name}", allow_redirects=False) as response:
            assert response.status == 307
            found[name] = response.headers["Location"]
    assert found == {
        "moved": "/api/bills/7",
        "elsewhere": "https://other.example/bills/7",
        "absolute": "/api/bills/8?x=1",
    }


async def test_cookies_of_one_client_are_not_sent_for_another(start: Any) -> None:
    async def cookie(request: Request) -> Response:
        response = JSONResponse({"cookie": request.headers.get("cookie")})
        response.set_cookie("session", "of-the-first")
        response.set_cookie("theme", "dark")
        return response

    gateway = await start([BILLS], {"billing": billing(Path("/bills/cookie", cookie))})
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
        async with client.get(f"{gateway.url}/api/bills/cookie") as response:
            assert len(response.headers.getall("Set-Cookie")) == 2
        async with client.get(f"{gateway.url}/api/bills/cookie") as response:
            assert (await response.json())["cookie"] is None


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_any_size_pass_whole_in_both_directions(start: Any, size: int, chunked: bool) -> None:
    async def mirror(request: Request) -> Response:
        body = await request.body()
        return StreamingResponse(iter([body[:10], body[10:]])) if chunked else Response(body)

    gateway = await start([BILLS], {"billing": billing(Path("/bills/mirror", mirror, methods=["PUT"]))})
    sent = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    sent = sent[:size]

    async def pieces() -> Any:
        for at in range(0, size, 50_000):
            yield sent[at : at + 50_000]

    data = pieces() if chunked else sent
    async with gateway.client.put(f"{gateway.url}/api/bills/mirror", data=data) as response:
        assert response.status == 200
        assert await response.read() == sent


async def test_head_and_empty_answers_pass(start: Any) -> None:
    async def nothing(_: Request) -> Response:
        return Response(status_code=204)

    async def some(_: Request) -> Response:
        return Response(b"12345")

    routes = [Path("/bills/nothing", nothing, methods=["DELETE"]), Path("/bills/some", some, methods=["GET"])]
    gateway = await start([BILLS], {"billing": billing(*routes)})
    async with gateway.client.delete(f"{gateway.url}/api/bills/nothing") as response:
        assert (response.status, await response.read()) == (204, b"")
    async with gateway.client.head(f"{gateway.url}/api/bills/some") as response:
        assert (response.status, response.headers["Content-Length"]) == (200, "5")


async def test_an_endless_answer_arrives_piece_by_piece(start: Any) -> None:
    go_on = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def pieces() -> Any:
            yield b"data: 1\n\n"
            await go_on.wait()
            yield b"data: 2\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    gateway = await start([BILLS], {"billing": billing(Path("/bills/events", endless))})
    async with gateway.client.get(f"{gateway.url}/api/bills/events") as response:
        assert await asyncio.wait_for(response.content.readany(), 5) == b"data: 1\n\n"
        go_on.set()
        assert await asyncio.wait_for(response.content.readany(), 5) == b"data: 2\n\n"


async def test_an_upload_arrives_piece_by_piece(start: Any) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def upload(request: Request) -> Response:
        async for piece in request.stream():
            arrived.put_nowait(piece)
        return Response(b"done")

    gateway = await start([BILLS], {"billing": billing(Path("/bills/upload", upload, methods=["POST"]))})
    seen: list[bytes] = []

    async def pieces() -> Any:
        yield b"first"
        # The second piece is sent only once the service has the first: nothing waits for the whole.
        seen.append(await asyncio.wait_for(arrived.get(), 5))
        yield b"second"

    async with gateway.client.post(f"{gateway.url}/api/bills/upload", data=pieces()) as response:
        assert await response.read() == b"done"
    assert seen == [b"first"]


async def test_a_request_has_one_id_on_all_its_way(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()})
    for given, kept in (("abc-1", True), ("a b", False), ("x" * 200, False), (None, False)):
        sent = {"X-Request-ID": given} if given else {}
        async with gateway.client.get(f"{gateway.url}/api/bills", headers=sent) as response:
            behind = headers_of(await response.json())["x-request-id"]
            assert response.headers.getall("X-Request-ID") == [behind]
            assert (behind == given) is kept


async def test_both_bodies_may_be_under_way_at_once(start: Any) -> None:
    async def interpreter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (size := int(await reader.readline(), 16)) > 0:
            word = (await reader.readexactly(size + 2))[:-2].upper()
            writer.write(b"%x\r\n%b\r\n" % (len(word), word))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    gateway = await start([BILLS], {"billing": interpreter})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /api/bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    async with asyncio.timeout(60):
        for word in (b"one", b"two", b"three"):
            writer.write(b"%x\r\n%b\r\n" % (len(word), word))
            await reader.readuntil(word.upper())
        writer.write(b"0\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_the_trace_goes_through_with_the_gateways_span_in_it(start: Any) -> None:
    gateway = await start([BILLS], {"billing": billing()})
    async with gateway.client.get(f"{gateway.url}/api/bills", headers={"traceparent": "bad"}) as response:
        headers = headers_of(await response.json())
    served, span = gateway.ring.trace(headers["traceparent"][3:35])
    assert (served.name, served.kind, served.attributes["http.route"]) == ("GET /api/bills", "server", "/api/bills")
    assert headers["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert (span.name, span.kind, span.parent_id) == ("GET /api/bills", "client", served.span_id)
    assert span.attributes["server.address"] == "billing"
    assert span.attributes["http.response.status_code"] == 200
    assert b'http_client_request_duration_seconds_count{error_type="",' in gateway.telemetry.exposition()


async def test_one_document_describes_what_can_be_reached(start: Any) -> None:
    async def openapi(_: Request) -> Response:
        operation = {"responses": {"200": {"description": "OK"}}}
        return JSONResponse(
            {"openapi": "3.1.0", "paths": {"/bills": {"get": operation}, "/internal": {"get": operation}}}
        )

    routes = [BILLS, Route("/api/users", service="user", strip_prefix="/api")]
    gateway = await start(routes, {"billing": billing(Path("/openapi.json", openapi)), "user": ["http://127.0.0.1:1"]})
    document = await gateway.bound.openapi()
    assert list(document["paths"]) == ["/api/bills"]
    assert document["x-unavailable"] == ["user"]


async def test_who_asks_for_the_document_again_and_again_is_not_passed_on_to_the_services(start: Any) -> None:
    asked = 0

    async def openapi(_: Request) -> Response:
        nonlocal asked
        asked += 1
        return JSONResponse({"openapi": "3.1.0", "paths": {}}, status_code=500)

    gateway = await start([BILLS], {"billing": billing(Path("/openapi.json", openapi))})
    documents = [await gateway.bound.openapi(f"host-{number}") for number in range(200)]
    assert all(document["x-unavailable"] == ["billing"] for document in documents)
    assert asked < 20
    assert len(gateway.bound._document._merged) == 1


async def test_the_health_of_the_services_behind_is_a_part_each(start: Any) -> None:
    async def ready(_: Request) -> Response:
        return Response(b"{}")

    async def not_ready(_: Request) -> Response:
        return Response(b"{}", status_code=503)

    gateway = await start(
        [BILLS, Route("/users", service="user"), Route("/away", service="away")],
        {
            "billing": billing(Path("/health/ready", ready)),
            "user": billing(Path("/health/ready", not_ready)),
            "away": ["http://127.0.0.1:1"],
        },
    )
    parts = gateway.bound.health_parts()
    assert list(parts) == ["billing", "user", "away"]
    await parts["billing"]()
    with pytest.raises(ConnectionError, match="503"):
        await parts["user"]()
    with pytest.raises(Exception, match="cannot be reached"):
        await parts["away"]()
