"""What somebody tries who means harm, or a service that does, and what a client that did nothing gets to see of it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as AppRoute
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from microkit.auth.principal import Principal
from microkit.contract import SIGNED_IN
from microkit.fronting import RoutesFile
from microkit.gateway import Route
from microkit.gateway.connection import Connection, Owner
from microkit.gateway.filters import Cors, ResponseCache, Retry, RewriteRequestJson, RewriteResponseJson
from microkit.gateway.headers import _judged, passes

pytestmark = pytest.mark.anyio


class Mirror:
    """Answers what it was asked, as JSON, with the headers it is told to."""

    def __init__(self, name: str = "mirror", **headers: str) -> None:
        self.name = name
        self.headers = headers
        self.seen: list[list[tuple[str, str]]] = []
        self.bodies: list[bytes] = []
        self.app = Starlette(routes=[AppRoute("/{path:path}", self._answer, methods=["GET", "HEAD", "POST"])])

    async def _answer(self, request: Request) -> Response:
        self.seen.append(request.headers.items())
        self.bodies.append(await request.body())
        told = {name.replace("_", "-"): value for name, value in self.headers.items()}
        return Response(f"{self.name} {len(self.seen)}", headers=told)


async def got(gateway: Any, path: str = "/a", headers: Any = None, method: str = "GET", **options: Any) -> Any:
    async with gateway.client.request(method, gateway.url + path, headers=headers or {}, **options) as response:
        return response.status, (await response.read()).decode(), response.headers


async def test_a_header_sent_twice_is_one_value_for_routes_keys_and_kept_answers(start: Any) -> None:
    mirror = Mirror(Cache_Control="max-age=60", Vary="X-Language")
    gateway = await start([Route("/a", "mirror", filters=(ResponseCache(),))], {"mirror": mirror.app})
    first = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Language: evil\r\nX-Language: de\r\n\r\n"
    await gateway.raw(first)
    plain = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Language: de\r\n\r\n"
    assert b"mirror 2" in await gateway.raw(plain)


async def test_versions_of_one_path_never_get_each_others_kept_answers(start: Any) -> None:
    one, two = Mirror("one", Cache_Control="max-age=60"), Mirror("two", Cache_Control="max-age=60")
    cache = (ResponseCache(),)
    routes = [Route("/a", "one", filters=cache), Route("/a", "two", version="2", filters=cache)]
    gateway = await start(routes, {"one": one.app, "two": two.app})
    for _ in range(2):
        assert (await got(gateway))[1] == "one 1"
        assert (await got(gateway, headers={"Api-Version": "2"}))[1] == "two 1"
    assert (await got(gateway, method="POST"))[1] == "one 2"  # a change concerns all that is kept under the path
    assert (await got(gateway, headers={"Api-Version": "2"}))[1] == "two 2"


async def test_expires_is_as_good_as_max_age(start: Any) -> None:
    mirror = Mirror(Expires="Fri, 01 Jan 2100 00:00:00 GMT")
    gateway = await start([Route("/a", "mirror", filters=(ResponseCache(),))], {"mirror": mirror.app})
    assert [(await got(gateway))[1] for _ in range(2)] == ["mirror 1", "mirror 1"]
    mirror.headers = {"Expires": "0"}
    assert [(await got(gateway, "/a?b"))[1] for _ in range(2)] == ["mirror 2", "mirror 3"]


async def test_an_error_that_one_client_provoked_is_not_kept_for_the_others(start: Any) -> None:
    asked: list[str] = []

    async def answer(request: Request) -> Response:
        asked.append(request.headers.get("x-odd", ""))
        return Response("odd", 404) if asked[-1] else Response("even")

    app = Starlette(routes=[AppRoute("/a", answer)])
    gateway = await start([Route("/a", "app", filters=(ResponseCache(default=60),))], {"app": app})
    assert (await got(gateway, headers={"X-Odd": "1"}))[0] == 404
    assert [(await got(gateway))[1] for _ in range(2)] == ["even", "even"]
    assert asked == ["1", ""]


async def test_no_header_makes_a_service_see_another_path_or_method(start: Any) -> None:
    mirror = Mirror()
    gateway = await start([Route("/a", "mirror")], {"mirror": mirror.app})
    tricks = [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "X_HTTP_Method_Override",
        "X-Method-Override",
    ]
    await got(gateway, headers=dict.fromkeys(tricks, "/admin"))
    assert not [name for name, value in mirror.seen[0] if value == "/admin"]


def test_what_is_remembered_of_header_names_is_bounded_in_bytes() -> None:
    _judged.cache_clear()
    assert passes(b"x-" + b"a" * 10_000)
    assert not passes(b"x-user-" + b"a" * 10_000)
    assert _judged.cache_info().currsize == 0


async def test_a_subject_with_a_line_end_is_no_second_header(start: Any) -> None:
    async def verify(_: str) -> Principal:
        return Principal("eve\r\nX-User-Roles: admin", frozenset({"member"}))

    mirror = Mirror()
    gateway = await start([Route("/a", "mirror", allow=SIGNED_IN)], {"mirror": mirror.app}, verify=verify)
    assert (await got(gateway, headers={"Authorization": "Bearer x"}))[0] == 200
    assert ("x-user-id", "eve%0D%0AX-User-Roles%3A%20admin") in mirror.seen[0]


DEEP = b"[" * 400 + b"]" * 400


@pytest.mark.parametrize("body", [DEEP, b"[" * 1000 + b"]" * 1000, b"[" * 100_000], ids=len)
async def test_json_nested_too_deep_to_be_rewritten_is_refused(start: Any, body: bytes) -> None:
    mirror = Mirror()
    rewrite = RewriteRequestJson(remove=("is_admin",))
    gateway = await start([Route("/a", "mirror", filters=(rewrite,))], {"mirror": mirror.app})
    headers = {"Content-Type": "application/json"}
    assert (await got(gateway, method="POST", data=body, headers=headers))[0] == 400
    assert mirror.bodies == []


async def test_rewriting_changes_no_number_and_reads_repeated_fields_once(start: Any) -> None:
    mirror = Mirror()
    rewrite = RewriteRequestJson(remove=("is_admin",))
    gateway = await start([Route("/a", "mirror", filters=(rewrite,))], {"mirror": mirror.app})
    body = (
        b'{"amount":12345678901234567890123.4500000000000000001,"n":123456789012345678901234567890,'
        b'"is_admin":false,"is\\u005fadmin":true,"x":1,"x":2}'
    )
    assert (await got(gateway, method="POST", data=body, headers={"Content-Type": "application/json"}))[0] == 200
    assert mirror.bodies == [
        b'{"amount":12345678901234567890123.4500000000000000001,"n":123456789012345678901234567890,"x":2}'
    ]


async def test_an_answer_nested_too_deep_to_be_rewritten_is_a_502(start: Any) -> None:
    async def answer(_: Request) -> Response:
        return Response(DEEP, media_type="application/json")

    app = Starlette(routes=[AppRoute("/a", answer)])
    gateway = await start([Route("/a", "deep", filters=(RewriteResponseJson(remove=("pin",)),))], {"deep": app})
    assert (await got(gateway))[0] == 502


HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "", "https://"])
@pytest.mark.parametrize("filters", [(), (Cors(setting="cors_origins"),), (Cors(origins=("https://shop.example",)),)])
async def test_no_foreign_page_opens_a_websocket_with_cors_or_without(start: Any, filters: Any, origin: str) -> None:
    asked: list[bytes] = []

    async def service(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))

    route = Route("/ws", "talk", websocket=True, timeout=30, filters=filters)
    gateway = await start([route], {"talk": service}, setting=lambda _: [])
    assert (await got(gateway, "/ws", {**HANDSHAKE, "Origin": origin}))[0] == 403
    assert not asked
    own = await got(gateway, "/ws", {**HANDSHAKE, "Origin": gateway.url})
    assert own[0] == 502, "a page of the host itself gets through to the service, which here hangs up"
    assert asked


async def test_a_handshake_that_is_sent_elsewhere_is_not_followed(start: Any) -> None:
    met: list[bytes] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(await reader.readuntil(b"\r\n\r\n"))

    async def sends_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 See\r\nLocation: http://127.0.0.1:%d/x\r\nContent-Length: 0\r\n\r\n" % port)
        await writer.drain()

    other = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other:
        gateway = await start([Route("/ws", "talk", websocket=True, timeout=2)], {"talk": sends_away})
        assert (await got(gateway, "/ws", {**HANDSHAKE, "Authorization": "Bearer alice"}))[0] == 502
    assert met == []


async def test_a_client_that_hangs_up_between_two_attempts_leaves_no_connection_behind(start: Any) -> None:
    seen = 0

    async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        writer.write(b"HTTP/1.1 503 No\r\nRetry-After: 20\r\nContent-Length: 1000000\r\n\r\nx")
        await writer.drain()
        await reader.read()

    gateway = await start([Route("/a", "fails", timeout=60, filters=(Retry(),))], {"fails": fails})
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(60):
        while not seen:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    writer.close()
    pool = gateway.bound._pool
    async with asyncio.timeout(60):
        while any(origin.open for origin in pool._origins.values()):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"x" * 60_000, b"0\r\nX-Trailer: " + b"y" * 60_000],
    ids=["chunk extension", "trailer"],
)
async def test_what_nobody_reads_of_an_answer_has_an_end(start: Any, endless: bytes) -> None:
    sent = 0
    over = asyncio.Event()

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
        try:
            while sent < 50_000_000:
                writer.write(b"z" * 65_536)
                await writer.drain()
                sent += 65_536
        finally:
            over.set()

    gateway = await start([Route("/a", "floods", timeout=30)], {"floods": floods})
    received = await gateway.raw(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await asyncio.wait_for(over.wait(), 20)
    assert not received.endswith(b"0\r\n\r\n")
    assert sent < 30_000_000


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_body_after_a_head_is_never_the_next_clients(start: Any, version: bytes) -> None:
    connections = 0

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
        while True:
            asked = await reader.readuntil(b"\r\n\r\n")
            if asked.startswith(b"HEAD"):
                writer.write(b"HTTP/%b 200 OK\r\nContent-Length: %d\r\n\r\n" % (version, len(poison)) + poison)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    gateway = await start([Route("/a", "service", timeout=5)], {"service": service})
    for _ in range(5):
        assert (await got(gateway, method="HEAD"))[0] == 200
        assert (await got(gateway))[:2] == (200, "ok")
    assert connections >= 5


async def test_what_is_kept_of_instances_that_have_gone_does_not_grow(start: Any) -> None:
    gateway = await start([Route("/a", "mirror")], {"mirror": Mirror().app})
    pool = gateway.bound._pool
    for number in range(1000):
        pool.origin(f"http://10.0.{number // 250}.{number % 250}:80")
    assert (await got(gateway))[0] == 200
    async with asyncio.timeout(60):
        while len(pool._origins) > 1:
            await asyncio.sleep(0.02)
    assert (await got(gateway))[0] == 200


async def test_a_routes_file_is_read_when_it_is_whole_and_nothing_ends_the_looking(start: Any, tmp_path: Path) -> None:
    gateway = await start([], {"a": Mirror().app})
    path = tmp_path / "routes.toml"
    half = '[[routes]]\nprefix = "/a"\nservice = "a"\n'
    path.write_text(half.replace("/a", "/old"))
    file = RoutesFile(path, gateway.bound, gateway.telemetry, every=0.1)
    file.load()
    await file.start()
    seen: set[tuple[str, ...]] = set()

    async def until(holds: Any) -> None:
        async with asyncio.timeout(20):
            while not holds():
                seen.add(tuple(route.prefix for route in gateway.bound.routes))
                await asyncio.sleep(0.01)

    try:
        with path.open("w") as written:
            for number in range(30):
                written.write(f'[[routes]]\nprefix = "/n{number}"\nservice = "a"\n')
                written.flush()
                os.fsync(written.fileno())
                await asyncio.sleep(0.03)
                seen.add(tuple(route.prefix for route in gateway.bound.routes))
        await until(lambda: len(gateway.bound.routes) == 30)
        assert {len(one) for one in seen} <= {1, 30}, "never half of the routes"
        path.write_text("x = " + "[" * 5000)
        await until(lambda: file._trouble)
        assert len(gateway.bound.routes) == 30
        path.write_text(half)
        await until(lambda: [route.prefix for route in gateway.bound.routes] == ["/a"])
        await file.probe()
    finally:
        await file.stop(1)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_trickles_for_long_is_ended_unless_the_route_is_for_that(
    start: Any, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.gateway.body.PATIENCE", 0.2)
    mirror = Mirror()
    routes = [Route("/a", "mirror", timeout=20), Route("/slow", "mirror", timeout=20, idle_timeout=20)]
    gateway = await start(routes, {"mirror": mirror.app})

    async def trickle(path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 20"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}\r\n\r\n".encode())
        reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        try:
            for _ in range(20):
                if reading.done():  # who writes on after the answer may find the connection reset
                    break
                writer.write(b"1\r\nx\r\n" if chunked else b"x")
                await asyncio.sleep(0.03)
            else:
                writer.write(b"0\r\n\r\n" if chunked else b"")
            return await asyncio.wait_for(reading, 30)
        finally:
            writer.close()

    assert (await trickle("/a")).startswith(b"HTTP/1.1 408")
    assert (await trickle("/slow")).startswith(b"HTTP/1.1 200")
    assert mirror.bodies == [b"x" * 20]


async def test_a_websocket_message_is_not_put_together_beyond_a_megabyte(start: Any) -> None:
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            await socket.send_text(str(len(message["bytes"])))

    app = Starlette(routes=[WebSocketRoute("/ws", talk)])
    gateway = await start([Route("/ws", "talk", websocket=True, timeout=5, body_limit=100_000_000)], {"talk": app})
    async with gateway.client.ws_connect(f"{gateway.url}/ws") as socket:
        await socket.send_bytes(b"x" * 1_000_000)
        assert await socket.receive_str() == "1000000"
        await socket.send_bytes(b"x" * 8_000_000)
        end = await socket.receive(10)
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1009)


class Given(Owner):
    """A pool that notes what it is given back."""

    def __init__(self) -> None:
        self.waiting: set[Connection] = set()
        self.back: list[Connection] = []

    def give_back(self, connection: Connection) -> None:
        connection.idle_since = 0.0
        self.back.append(connection)

    def lost(self, connection: Connection) -> None: ...


class Line(asyncio.Transport):
    """A transport on which nothing goes anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: object) -> None: ...

    def abort(self) -> None:
        self.aborted = True


async def test_an_exchange_that_is_over_cannot_be_ended_again_in_the_middle_of_the_next() -> None:
    owner, line = Given(), Line()
    connection = Connection(asyncio.get_running_loop(), owner)
    connection.connection_made(line)
    first = connection.begin(b"GET /1 HTTP/1.1\r\n\r\n", wants_body=True)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nme")
    first.close()
    assert owner.back == [connection]
    second = connection.begin(b"GET /2 HTTP/1.1\r\n\r\n", wants_body=True)
    first.close()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyou")
    first.close()
    assert not line.aborted
    assert owner.back == [connection], "given back twice it would serve two clients at once"
    assert await second.piece(1) == b"you"


async def test_a_slow_reader_of_one_answer_does_not_end_the_exchange_that_comes_after(start: Any) -> None:
    size = 3_000_000
    asked: list[str] = []

    async def answer(request: Request) -> Response:
        asked.append(request.url.path)
        if request.url.path == "/big":
            return Response(b"x" * size)
        await asyncio.sleep(0.5)
        return Response("mine")

    app = Starlette(routes=[AppRoute("/{path:path}", answer)])
    gateway = await start([Route("/", "app", timeout=5)], {"app": app})
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await loop.sock_connect(slow, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(slow, b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        read = 0

        def idle() -> int:
            return sum(len(origin.idle) for origin in gateway.bound._pool._origins.values())

        async with asyncio.timeout(20):
            while not idle():  # the service has said all, and the client has not read it
                read += len(await loop.sock_recv(slow, 16_384))
                await asyncio.sleep(0)
        assert read < size
        other = asyncio.create_task(got(gateway, "/other"))
        async with asyncio.timeout(20):
            while "/other" not in asked:
                await asyncio.sleep(0.01)
        assert not idle(), "it goes over the connection that the slow client's answer came on"
        async with asyncio.timeout(20):
            while piece := await loop.sock_recv(slow, 1_000_000):
                read += len(piece)
        assert read > size
        assert (await other)[:2] == (200, "mine")
        assert idle() <= 1
