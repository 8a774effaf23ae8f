"""A handler that declares it is bounded by the request that published its event: so are its calls and statements, in
memory and over a real broker. One that declares nothing has a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import aiohttp
import pytest
from sqlalchemy import MetaData, text

from microkit import context
from microkit.bus import Bus, connect
from microkit.bus.memory import MemoryBus
from microkit.contract import ANYONE, Contract, get
from microkit.db import Transaction
from microkit.discovery.memory import MemoryRegistry
from microkit.instance import Instance
from microkit.message import DEADLINE, Event, Message
from microkit.outbox.dead_letters import OutboxLetters
from microkit.service import Service

pytestmark = pytest.mark.anyio

ALLOWED = 1.5
SLEEP = text("SELECT pg_sleep(300)")
RUNNING = text("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(%'")


class Deep(Contract, service="deep", prefix="/deep", allow=ANYONE):
    @get("/sleep")
    async def sleep(self) -> int: ...


class SqlAsked(Event, topic="desk.sql", key="thing_id"):
    thing_id: UUID


class CallAsked(Event, topic="desk.calls", key="thing_id"):
    thing_id: UUID


class System:
    """A desk that publishes and listens, and a service that it calls, on one PostgreSQL and one bus."""

    def __init__(self) -> None:
        self.left: dict[str, float | None] = {}
        self.begun: list[UUID] = []
        self.shown: dict[str, str] = {}
        self.free = asyncio.Event()

        deep = Service("deep", tables=MetaData())
        desk = Service("desk", tables=MetaData())
        behind = desk.client(Deep)

        @deep.handles(Deep.sleep)
        async def sleep(tx: Transaction) -> int:
            self.left["deep"] = context.remaining()
            await tx.execute(SLEEP)
            return 1

        @desk.post("/sql", allow=ANYONE)
        async def ask_sql(tx: Transaction) -> int:
            tx.publish(SqlAsked(thing_id=uuid4()))
            return 1

        @desk.post("/call", allow=ANYONE)
        async def ask_call(tx: Transaction) -> int:
            tx.publish(CallAsked(thing_id=uuid4()))
            return 1

        @desk.on(SqlAsked, deadline=True)
        async def in_sql(event: SqlAsked, tx: Transaction) -> None:
            self.begun.append(event.thing_id)
            self.left["sql"] = context.remaining()
            await tx.execute(SLEEP)

        @desk.on(CallAsked, deadline=True)
        async def by_call(event: CallAsked) -> None:
            self.begun.append(event.thing_id)
            self.left["call"] = context.remaining()
            await behind.sleep()

        @desk.on(SqlAsked, group="desk.free")
        async def unbounded(_: SqlAsked, message: Message) -> None:
            self.left["free"] = context.remaining()
            self.shown = dict(message.headers)
            self.free.set()

        self.services = (deep, desk)
        self.running: dict[str, Instance] = {}
        self.bus: Bus

    async def ask(self, path: str) -> int:
        url = f"{self.running['desk'].url}{path}"
        headers = {"Request-Timeout-Ms": str(int(ALLOWED * 1000))}
        async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as response:
            return response.status

    async def statements(self) -> int:
        """How many of the long statements the server is at."""
        async with self.running["deep"].database.transaction(read_only=True) as tx:
            return int(await tx.scalar(RUNNING) or 0)

    async def dead_letter(self, topic: str) -> Message:
        """The one letter: in the dead-letter topic, or in the service's outbox where the bus keeps nothing."""
        async with asyncio.timeout(60):
            if isinstance(self.bus, MemoryBus):
                box = OutboxLetters(self.running["desk"].database, "desk")
                while True:
                    async for letter in box.letters([topic]):
                        return letter.message
                    await asyncio.sleep(0.02)
            consumer = await self.bus.subscribe(f"undertaker-{topic}", [f"{topic}.dead-letter"])
            try:
                while not (found := await consumer.fetch(1, 1)):
                    pass
            finally:
                await consumer.close()
        return found[0].message


@pytest.fixture(params=["memory", "redis"])
async def system(anyio_backend: str, postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[System]:
    made = System()
    registry = MemoryRegistry()
    made.bus = bus = MemoryBus() if request.param == "memory" else connect(request.getfixturevalue("redis_url"))
    async with AsyncExitStack() as stack:
        await bus.start()
        stack.push_async_callback(bus.close)
        for service in made.services:
            settings: dict[str, object] = {
                "port": 0,
                "database_url": postgres_url,
                "migrate_on_start": True,
                "log_level": "CRITICAL",
            }
            settings["shutdown_timeout"] = 1.0  # one that nobody bounds is still at its statement then
            instance = service.instance(settings, bus=bus, registry=registry)
            made.running[service.name] = await stack.enter_async_context(instance)
        yield made


@pytest.mark.parametrize(("path", "topic"), [("/sql", "desk.sql"), ("/call", "desk.calls")])
async def test_a_requests_deadline_bounds_the_handler_of_its_event_and_the_statement_that_this_causes(
    system: System, path: str, topic: str
) -> None:
    assert await system.ask(path) == 200
    async with asyncio.timeout(30):
        while not await system.statements():
            await asyncio.sleep(0.02)
    letter = await system.dead_letter(topic)
    async with asyncio.timeout(30):
        while await system.statements():  # they would go on for minutes
            await asyncio.sleep(0.02)
    assert letter.headers["mk_dlq_reason"] == "deadline-passed"
    assert len(system.begun) == 1, "what is too late is not tried again"
    left = system.left[path.strip("/")]
    assert left is not None
    assert left <= ALLOWED
    if path == "/call":
        assert system.left["deep"] is not None
        assert system.left["deep"] <= left, "what travels on is the time that remains"


async def test_a_handler_that_declares_nothing_has_its_own_time_and_is_shown_the_deadline(system: System) -> None:
    assert await system.ask("/sql") == 200
    async with asyncio.timeout(30):
        await system.free.wait()
    left = system.left["free"]
    assert left is not None
    assert left > ALLOWED
    assert system.shown[DEADLINE].isdigit()


async def test_an_event_that_comes_too_late_is_not_begun(system: System) -> None:
    late = SqlAsked(thing_id=uuid4()).to_message("desk", trace={DEADLINE: "1"})
    await system.bus.publish([late])
    letter = await system.dead_letter("desk.sql")
    assert letter.headers["mk_dlq_reason"] == "deadline-passed"
    assert letter.headers["mk_dlq_group"] == "desk.in_sql"
    assert system.begun == []
    async with asyncio.timeout(30):
        await system.free.wait()


async def test_what_is_published_where_nobody_waits_carries_no_deadline(system: System) -> None:
    async with system.running["desk"].database.transaction() as tx:
        tx.publish(SqlAsked(thing_id=uuid4()))
    async with asyncio.timeout(30):
        await system.free.wait()
    assert DEADLINE not in system.shown
