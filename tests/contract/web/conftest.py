"""A service on a real server, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import aiohttp
import orjson
import pytest
from pydantic import BaseModel, Field

from microkit import context
from microkit.auth.principal import Principal
from microkit.contract import ANYONE, Contract, Header, get, post
from microkit.db import Database
from microkit.db.migration import create_tables
from microkit.errors import NotFound, Unauthorized
from microkit.page import Page, PageRequest
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Limits, Mount, Server, Surface, WebApp
from microkit.web.tables import metadata
from tests.contract.web.charging import charge_tables
from tests.contract.web.serving import Running, Serve


class NewThing(BaseModel):
    name: str
    count: int = 0
    price: Decimal | None = None
    ratio: float | None = None
    at: datetime | None = None
    owner: UUID | None = None
    code: Annotated[str, Field(pattern=r"^[0-9]{6}$")] = "000000"
    anything: Any = None


class Thing(NewThing):
    id: int


class Things(Contract, service="things", prefix="/things", allow=ANYONE):
    @post("", status=201)
    async def create(self, body: NewThing) -> Thing: ...

    @get("")
    async def list(self, page: PageRequest, most: int = 5, cheap: bool = False) -> Page[Thing]: ...

    @get("/{owner}/{number}", raises=(NotFound,))
    async def read(self, owner: UUID, number: int, etag: Annotated[str | None, Header("If-Match")] = None) -> Thing: ...

    @post("/secret", allow="member")
    async def secret(self) -> str: ...


async def create(body: NewThing) -> Thing:
    return Thing(id=1, **body.model_dump())


async def list_things(page: PageRequest, most: int, cheap: bool) -> Page[Thing]:
    after = page.after(tuple[datetime, UUID])
    return Page(items=[Thing(id=most, name=f"{cheap} {after}")])


async def read(number: int, etag: str | None) -> Thing:
    return Thing(id=number, name=str(etag))


async def secret(caller: Principal) -> str:
    return caller.subject


async def slow(caught: str = "") -> str:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        if caught:
            return "finished all the same"
        raise
    return "never"


async def fails() -> str:
    raise RuntimeError("password=hunter2 is in no reply")


async def left() -> float:
    return context.remaining() or 0.0


async def verify(token: str) -> Principal:
    if token == "mine":
        return Principal("me", frozenset({"member"}), token)
    if token == "guest":
        return Principal("guest", frozenset({"guest"}), token)
    raise Unauthorized("The token is not valid", headers={"www-authenticate": 'Bearer error="invalid_token"'})


def things_app(**options: Any) -> WebApp:
    surface = Surface(
        "things",
        "Things",
        "1.2",
        operations=[
            (Things.create, create),
            (Things.list, list_things),
            (Things.read, read),
            (Things.secret, secret),
        ],
        routes=[
            InlineRoute("GET", "/slow", slow, ANYONE, timeout=0.2),
            InlineRoute("GET", "/fails", fails, ANYONE),
            InlineRoute("GET", "/left", left, ANYONE),
        ],
    )
    return WebApp(surface, telemetry=Telemetry("things"), verify=verify, **options)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Wire = Callable[..., Awaitable[Answer]]


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    closed = headers.get("connection") == "close"
    if closed:
        assert await asyncio.wait_for(reader.read(), 10) == b"", "the end of the connection comes after the answer"
    return Answer(int(lines[0].split()[1]), headers, body, closed)


def wire_to(server: Server) -> Wire:
    """A function that sends bytes to the server over a new connection and reads one answer."""

    async def send(*pieces: bytes) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            await writer.drain()
            return await read_answer(reader)
        finally:
            writer.close()

    return send


def request(method: str, target: str, *headers: str, body: bytes | None = None, host: str = "things.test") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def post_json(body: bytes, *headers: str, media_type: str = "application/json") -> bytes:
    return request("POST", "/things", f"Content-Type: {media_type}", *headers, body=body)


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[Server]:
    limits = Limits(allowed_hosts=("things.test", "*.things.test"), header_timeout=0.5)
    server = Server(things_app(limits=limits), limits=limits)
    await server.start()
    yield server
    await server.stop(5)


@pytest.fixture
def wire(server: Server) -> Wire:
    return wire_to(server)


@pytest.fixture
def http() -> Any:
    """How requests are written: ``http.request``, ``http.post_json``."""

    class Http:
        pass

    found = Http()
    found.request, found.post_json, found.things_app = request, post_json, things_app  # type: ignore[attr-defined]
    found.wire_to, found.read_answer = wire_to, read_answer  # type: ignore[attr-defined]
    return found


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


@pytest.fixture
async def charged(database: Database) -> Database:
    await create_tables(database, metadata)
    await create_tables(database, charge_tables)
    return database
