"""WebSockets through a gateway: both ways, as who one is, within limits, to the end."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import suppress
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from microkit.auth.issuer import Issuer
from microkit.auth.key_source import FixedKeys
from microkit.auth.keys import SigningKey
from microkit.auth.verifier import Verifier
from microkit.contract import SIGNED_IN
from microkit.gateway import Route
from microkit.gateway.filters import Cors, RateLimit

pytestmark = pytest.mark.anyio


class Talk:
    """A service that says back what it hears, with what it knows of who is talking."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, str | None]] = []
        self.sent = 0
        self.headers: dict[str, str] = {}
        self.app = Starlette(
            routes=[
                WebSocketRoute("/talk", self._talk),
                WebSocketRoute("/flood", self._flood),
                WebSocketRoute("/ends", self._ends),
                WebSocketRoute("/refuses", self._refuses),
            ]
        )

    async def _talk(self, socket: WebSocket) -> None:
        self.headers = dict(socket.headers)
        await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            await socket.send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        self.ended.append((message["code"], message.get("reason")))

    async def _flood(self, socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_bytes(b"x" * 65_536)
            self.sent += 65_536

    async def _ends(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4001, "enough")

    async def _refuses(self, socket: WebSocket) -> None:
        await socket.close()


@pytest.fixture
def talk() -> Talk:
    return Talk()


def route(**options: Any) -> Route:
    return Route("/ws", "talk", strip_prefix="/ws", websocket=True, **{"timeout": 5, **options})


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


async def test_messages_pass_both_ways_with_who_is_talking(start: Any, talk: Talk) -> None:
    gateway = await start([route(allow=SIGNED_IN)], {"talk": talk.app})
    headers = {"Authorization": "Bearer alice", "X-User-Id": "root", "X-Forwarded-For": "6.6.6.6"}
    async with gateway.client.ws_connect(f"{gateway.url}/ws/talk", headers=headers, protocols=("chat.v2",)) as socket:
        assert socket.protocol == "chat.v2"
        await socket.send_str("grüß")
        assert await socket.receive_str() == "grüß"
        await socket.send_bytes(b"\x00\xff" * 50_000)
        assert await socket.receive_bytes() == b"\x00\xff" * 50_000
        assert b"gateway_websockets 1.0" in gateway.telemetry.exposition()
        await socket.close(code=4007, message=b"bye")
    await eventually(lambda: talk.ended == [(4007, "bye")])
    assert talk.headers["x-user-id"] == "user-alice"
    assert talk.headers["x-forwarded-for"] == "127.0.0.1"
    assert talk.headers["traceparent"]


async def test_the_services_close_code_reaches_the_client(start: Any, talk: Talk) -> None:
    gateway = await start([route()], {"talk": talk.app})
    async with gateway.client.ws_connect(f"{gateway.url}/ws/ends") as socket:
        end = await socket.receive(10)
        assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "enough")


async def handshake(gateway: Any, path: str = "/ws/talk", **headers: str) -> tuple[int, dict[str, Any]]:
    asked = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    async with gateway.client.get(gateway.url + path, headers=asked) as response:
        body = await response.read() if response.status != 101 else b""
        return response.status, orjson.loads(body) if body.startswith(b"{") else {}


async def test_a_handshake_is_refused_with_a_problem_before_the_service_hears_of_it(start: Any, talk: Talk) -> None:
    routes = [route(allow=SIGNED_IN), Route("/plain", "talk"), Route("/away", "away", websocket=True)]
    gateway = await start(routes, {"talk": talk.app, "away": ["http://127.0.0.1:1"]})
    assert (await handshake(gateway))[0] == 401
    assert (await handshake(gateway, Authorization="Bearer forged"))[0] == 401
    status, problem = await handshake(gateway, "/plain")
    assert (status, problem["type"]) == (404, "urn:problem:not-found")
    assert (await handshake(gateway, "/away"))[0] == 502
    assert (await handshake(gateway, "/ws/refuses", Authorization="Bearer alice"))[0] == 403
    assert talk.headers == {}


async def test_pages_of_other_origins_may_open_none_unless_they_are_named(start: Any, talk: Talk) -> None:
    strict = await start([route()], {"talk": talk.app})
    assert (await handshake(strict, Origin="https://evil.example"))[0] == 403
    assert (await handshake(strict, Origin=strict.url))[0] == 101
    named = await start([route(filters=(Cors(origins=("https://shop.example",)),))], {"talk": talk.app})
    assert (await handshake(named, Origin="https://evil.example"))[0] == 403
    assert (await handshake(named, Origin="https://shop.example"))[0] == 101


async def test_handshakes_are_limited_as_requests_are(start: Any, talk: Talk) -> None:
    gateway = await start([route(filters=(RateLimit("1/h", by="address"),))], {"talk": talk.app})
    assert (await handshake(gateway))[0] == 101
    status, problem = await handshake(gateway)
    assert (status, problem["status"]) == (429, 429)


async def test_a_message_beyond_the_limit_ends_both_sides(start: Any, talk: Talk) -> None:
    gateway = await start([route(body_limit=1000)], {"talk": talk.app})
    async with gateway.client.ws_connect(f"{gateway.url}/ws/talk") as socket:
        await socket.send_bytes(b"x" * 1001)
        assert (await socket.receive(10)).data == 1009
    await eventually(lambda: talk.ended and talk.ended[0][0] == 1009)
    flooded = await start([route(body_limit=1000)], {"talk": talk.app})
    async with flooded.client.ws_connect(f"{flooded.url}/ws/flood") as socket:
        end = await socket.receive(10)
        assert end.type is aiohttp.WSMsgType.CLOSE


async def test_a_client_that_vanishes_ends_the_services_side_and_the_other_way_round(start: Any, talk: Talk) -> None:
    gateway = await start([route()], {"talk": talk.app})
    socket = await gateway.client.ws_connect(f"{gateway.url}/ws/talk")
    await socket.send_str("x")
    await socket.receive_str()
    transport = socket.get_extra_info("socket")
    assert transport is not None
    socket._response.connection.transport.abort()
    await eventually(lambda: talk.ended)
    assert talk.ended[0][0] in {1000, 1001}, (
        "the server does not tell a connection that broke from a close without a code"
    )

    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        accept = base64.b64encode(digest).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        await writer.drain()
        await reader.read(10)
        writer.transport.abort()

    gateway = await start([route()], {"talk": drops})
    async with gateway.client.ws_connect(f"{gateway.url}/ws/talk") as socket:
        await socket.send_str("x")
        assert (await socket.receive(10)).data == 1014


async def test_a_client_that_does_not_read_holds_the_service_up(start: Any, talk: Talk) -> None:
    gateway = await start([route()], {"talk": talk.app})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(
        b"GET /ws/flood HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readline()
    before = -1
    while before != talk.sent:
        before = talk.sent
        await asyncio.sleep(0.5)
    assert 0 < talk.sent < 64 * 1024 * 1024
    writer.close()


async def test_silence_ends_a_socket_where_the_route_says_so(start: Any, talk: Talk) -> None:
    gateway = await start([route(idle_timeout=0.3)], {"talk": talk.app})
    async with gateway.client.ws_connect(f"{gateway.url}/ws/talk") as socket:
        assert (await socket.receive(10)).data == 1001


async def test_a_socket_ends_with_the_token_that_opened_it(start: Any, talk: Talk) -> None:
    issuer = Issuer("https://user.example", audience="shop", keys=[SigningKey.generate("one")], lifetime=2)
    verifier = Verifier({issuer.issuer: FixedKeys(issuer.jwks())}, audience="shop", leeway=0)
    gateway = await start([route(allow=SIGNED_IN)], {"talk": talk.app}, verify=verifier.verify)
    headers = {"Authorization": f"Bearer {issuer.sign('ann').value}"}
    async with gateway.client.ws_connect(f"{gateway.url}/ws/talk", headers=headers) as socket:
        await socket.send_str("still in")
        assert await socket.receive_str() == "still in"
        end = await socket.receive(30)
        assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 1008, "the access token has expired")
    await eventually(lambda: talk.ended == [(1008, "the access token has expired")])
    assert (await handshake(gateway, **headers))[0] == 401, "and nobody comes back with it"


async def test_a_gateway_that_closes_says_so_to_both_sides(start: Any, talk: Talk) -> None:
    gateway = await start([route()], {"talk": talk.app})
    socket = await gateway.client.ws_connect(f"{gateway.url}/ws/talk")
    await socket.send_str("x")
    await socket.receive_str()
    with suppress(asyncio.CancelledError):
        await gateway.bound.close()
    assert (await socket.receive(10)).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
    await eventually(lambda: talk.ended)
    assert talk.ended[0][0] == 1001
    await socket.close()
