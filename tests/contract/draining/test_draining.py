"""A real process with work of every kind under way is told to end: what it began is done, what it promised is kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from microkit.bus.connect import connect
from microkit.bus.port import ShowsLag
from microkit.outbox.tables import PUBLISHED
from microkit.servers.ports import free_ports
from tests.contract.workers.workers_process import service_process

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"

SYSTEM = """
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from microkit import ANYONE, Event, Saga, Service, System, Transaction, compensatable

HERE = Path(__file__).parent

class Base(DeclarativeBase): ...

class Done(Base):
    __tablename__ = "done"
    what: Mapped[str] = mapped_column(primary_key=True)

class Said(Event, topic="alpha.said", key="text"):
    text: str

class Heard(Event, topic="alpha.heard", key="text"):
    text: str

class Order(BaseModel):
    number: int

async def reserve(order: Order) -> None:
    (HERE / "step").touch()
    await asyncio.sleep(1)

async def give_back(order: Order) -> None: ...

ordering = Saga("ordering", Order, [compensatable(reserve, undo=give_back, timeout=30)])

alpha = Service("alpha", port={port}, tables=Base.metadata)
alpha.saga(ordering)

@alpha.get("/hello", allow=ANYONE)
async def hello() -> str:
    return "hello"

@alpha.get("/slow", allow=ANYONE)
async def slow() -> str:
    (HERE / "request").touch()
    await asyncio.sleep(1)
    return "slow"

@alpha.post("/say", allow=ANYONE)
async def say(tx: Transaction) -> None:
    tx.publish(Said(text="hello"))

@alpha.post("/order", allow=ANYONE)
async def order(tx: Transaction) -> None:
    await ordering.start(tx, Order(number=7))

@alpha.on(Said)
async def hear(event: Said, tx: Transaction) -> None:
    (HERE / "handler").touch()
    await asyncio.sleep(1)
    tx.add(Done(what="heard"))
    tx.publish(Heard(text=event.text))

@alpha.get("/events", allow=ANYONE)
async def events() -> Response:
    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: tick\\n\\n"
                await asyncio.sleep(0.05)
        finally:
            (HERE / "stream-closed").touch()
    return StreamingResponse(endless(), media_type="text/event-stream")

async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)

alpha.mount("/live", Starlette(routes=[WebSocketRoute("/echo", echo)]), allow=ANYONE)
system = System("tiny", services=[alpha])
"""


@dataclass
class Alpha:
    folder: Path
    process: asyncio.subprocess.Process
    url: str
    session: aiohttp.ClientSession
    lines: list[str] = field(default_factory=list)

    async def get(self, path: str, method: str = "GET") -> tuple[int, str, bool]:
        """Status, body, and whether the connection may be kept."""
        async with self.session.request(method, self.url + path) as answer:
            return answer.status, await answer.text(), answer.headers.get("connection", "").lower() != "close"

    async def until_there(self, *marks: str) -> None:
        async with asyncio.timeout(60):
            while not all((self.folder / mark).exists() for mark in marks):
                await asyncio.sleep(0.02)

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "alpha.db")) as database:
            return database.execute(query).fetchall()


@asynccontextmanager
async def running(folder: Path, bus: str, workers: int) -> AsyncIterator[Alpha]:
    (port,) = free_ports(1)
    (folder / "tiny.py").write_text(SYSTEM.format(port=port))
    told = {
        "ALPHA_BUS_URL": bus,
        "ALPHA_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/alpha.db",
        "ALPHA_MIGRATE_ON_START": "true",
        "ALPHA_DRAIN_DELAY": "300ms",
        "ALPHA_SHUTDOWN_TIMEOUT": "3s",
    }
    async with service_process(folder, told, workers) as (process, lines), aiohttp.ClientSession() as session:
        yield Alpha(folder, process, f"http://127.0.0.1:{port}", session, lines)


async def unacknowledged(bus_url: str) -> int:
    bus = connect(bus_url)
    await bus.start()
    try:
        assert isinstance(bus, ShowsLag)
        return sum(lag.waiting for lag in await bus.lag("alpha.hear", ["alpha.said"]))
    finally:
        await bus.close()


@pytest.mark.parametrize("workers", [1, 2] if FULL else [1])
@pytest.mark.timeout(120)
async def test_everything_under_way_is_finished_acknowledged_and_sent(
    tmp_path: Path, redis_url: str, workers: int
) -> None:
    async with running(tmp_path, redis_url, workers) as alpha:
        socket = await alpha.session.ws_connect(f"{alpha.url}/live/echo")
        await socket.send_str("one")
        assert (await socket.receive_str()) == "one"
        events = await alpha.session.get(f"{alpha.url}/events")
        assert await events.content.readline() == b"data: tick\n"
        assert (await alpha.get("/order", "POST"))[0] < 300
        assert (await alpha.get("/say", "POST"))[0] < 300
        await alpha.until_there("handler", "step")
        slow = asyncio.create_task(alpha.get("/slow"))
        await alpha.until_there("request")
        assert alpha.rows("SELECT what FROM done") == []

        alpha.process.send_signal(signal.SIGTERM)
        # It says that it is leaving, and answers still.
        async with asyncio.timeout(60):
            while (await alpha.get("/health/ready"))[0] != 503:
                await asyncio.sleep(0.01)
        assert await alpha.get("/hello") == (200, '"hello"', False)

        assert (await slow)[:2] == (200, '"slow"')
        closed = await asyncio.wait_for(socket.receive(), 60)
        assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1012)  # "service restart": come again
        with suppress(aiohttp.ClientError):
            await asyncio.wait_for(events.read(), 60)
        assert await asyncio.wait_for(alpha.process.wait(), 60) == 0
        assert (tmp_path / "stream-closed").exists()
        # The handler under way has finished, and its message is acknowledged.
        assert alpha.rows("SELECT what FROM done") == [("heard",)]
        assert await unacknowledged(redis_url) == 0
        # What it published was sent.
        states = dict(alpha.rows("SELECT aggregatetype, state FROM outbox"))
        assert states == {"alpha.said": PUBLISHED, "alpha.heard": PUBLISHED}
        # The saga's step is done, and nobody holds the saga.
        assert alpha.rows("SELECT status, lease_owner FROM saga") == [("completed", None)]
        # The stream without an end was cancelled when the time was over, and that is said once.
        assert [line for line in alpha.lines if "1 requests are not over: they are cancelled" in line]
        assert not [line for line in alpha.lines if json.loads(line)["level"] in ("error", "critical")]
