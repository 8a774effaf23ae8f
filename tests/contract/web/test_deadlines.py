"""One deadline bounds what a request causes: the calls to other services, their statements, and what those cause.

An event is not bounded by the request that published it, where its handler declares nothing: it has a deadline of its
own, which bounds what its handler causes in the same way. For those that do see ``test_event_deadlines.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from sqlalchemy import MetaData, text

from microkit import context
from microkit.bus.memory import MemoryBus
from microkit.contract import ANYONE, Contract, get, post
from microkit.db import Transaction
from microkit.discovery.memory import MemoryRegistry
from microkit.errors import DeadlineExceeded
from microkit.instance import Instance
from microkit.message import Event
from microkit.service import Service

pytestmark = pytest.mark.anyio

SLEEP = text("SELECT pg_sleep(300)")
FOREVER = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")


class Deep(Contract, service="deep", prefix="/deep", allow=ANYONE):
    @get("/sleep")
    async def sleep(self) -> int: ...

    @get("/quick")
    async def quick(self) -> int: ...


class Middle(Contract, service="middle", prefix="/middle", allow=ANYONE):
    @get("/sleep")
    async def sleep(self) -> int: ...

    @post("/tell")
    async def tell(self) -> int: ...


class Told(Event, topic="middle.things", key="thing_id"):
    thing_id: UUID


class System:
    """Two services on PostgreSQL, the one calling the other, and what their handlers saw of their deadlines."""

    def __init__(self) -> None:
        self.left: dict[str, float | None] = {}
        self.failed: list[type[BaseException]] = []
        self.handled = asyncio.Event()

        deep = Service("deep", tables=MetaData())
        middle = Service("middle", tables=MetaData())
        behind = middle.client(Deep)

        @deep.handles(Deep.sleep)
        async def sleep(tx: Transaction) -> int:
            self.left["deep"] = context.remaining()
            await tx.execute(SLEEP)
            return 1

        @deep.handles(Deep.quick)
        async def quick() -> int:
            self.left["quick"] = context.remaining()
            return 1

        @middle.handles(Middle.sleep)
        async def call() -> int:
            self.left["middle"] = context.remaining()
            return await behind.sleep()

        @middle.handles(Middle.tell)
        async def tell(tx: Transaction) -> int:
            tx.publish(Told(thing_id=uuid4()))
            return 1

        @middle.on(Told, timeout=1.0, attempts=1)
        async def told(_: Told) -> None:
            self.left["event"] = context.remaining()
            try:
                await behind.sleep()
            except BaseException as error:
                self.failed.append(type(error))
                raise
            finally:
                self.handled.set()

        self.services = (deep, middle)
        self.running: dict[str, Instance] = {}

    async def statements(self) -> int:
        """How many of the long statements the server is at."""
        query = text("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(%'")
        async with self.running["deep"].database.transaction(read_only=True) as tx:
            return int(await tx.scalar(query) or 0)

    async def quiet(self) -> None:
        """Until none of them runs; they would go on for minutes."""
        async with asyncio.timeout(30):
            while await self.statements():
                await asyncio.sleep(0.02)


@pytest.fixture
async def system(anyio_backend: str, postgres_url: str) -> AsyncIterator[System]:
    made = System()
    registry, bus = MemoryRegistry(), MemoryBus()
    async with AsyncExitStack() as stack:
        for service in made.services:
            settings = {"port": 0, "database_url": postgres_url, "migrate_on_start": True, "log_level": "CRITICAL"}
            instance = service.instance(settings, bus=bus, registry=registry)
            made.running[service.name] = await stack.enter_async_context(instance)
        yield made


async def ask(instance: Instance, method: str, path: str, milliseconds: int | None) -> tuple[int, Any]:
    headers = {} if milliseconds is None else {"Request-Timeout-Ms": str(milliseconds)}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{instance.url}{path}", headers=headers) as response,
    ):
        return response.status, await response.json()


async def test_the_deadline_of_a_request_bounds_the_call_and_the_statement_two_services_further(system: System) -> None:
    asked = asyncio.create_task(ask(system.running["middle"], "GET", "/middle/sleep", 1500))
    async with asyncio.timeout(30):
        while not await system.statements():
            await asyncio.sleep(0.02)
    status, problem = await asked
    assert (status, problem["status"]) == (504, 504)
    await system.quiet()
    first, second = system.left["middle"], system.left["deep"]
    assert first is not None
    assert second is not None
    assert 1.5 >= first >= second, "what travels is the time that remains"


async def test_a_deadline_that_has_passed_calls_nobody(system: System) -> None:
    instance = system.running["middle"]
    with context.working(context.WorkContext(deadline=0.0)), pytest.raises(DeadlineExceeded):
        await instance.client(Deep).quick()
    assert "quick" not in system.left
    assert (await ask(system.running["deep"], "GET", "/deep/quick", 0))[0] == 504
    assert "quick" not in system.left
    assert (await ask(system.running["deep"], "GET", "/deep/quick", None))[0] == 200
    assert system.left["quick"] is not None, "a service sets one where its caller does not"


async def test_an_event_has_a_deadline_of_its_own_which_bounds_what_its_handler_causes(system: System) -> None:
    assert (await ask(system.running["middle"], "POST", "/middle/tell", 800))[0] == 200
    async with asyncio.timeout(30):
        await system.handled.wait()
    left = system.left["event"]
    assert left is not None
    assert left <= 1.0, "the handler's own, whatever its publisher had left"
    assert len(system.failed) == 1
    deep = system.left["deep"]
    assert deep is not None
    assert deep <= left
    await system.quiet()


async def test_a_statement_of_sqlite_ends_with_the_request_and_leaves_the_file_to_others(sqlite_url: str) -> None:
    service = Service("solo", tables=MetaData())
    rounds = 0

    @service.post("/forever", allow=ANYONE)
    async def forever(tx: Transaction) -> int:
        nonlocal rounds
        rounds += 1
        await tx.execute(FOREVER)
        return 1

    @service.post("/write", allow=ANYONE)
    async def write(tx: Transaction) -> int:
        await tx.execute(text("CREATE TABLE IF NOT EXISTS t (i INTEGER)"))
        await tx.execute(text("INSERT INTO t VALUES (1)"))
        return int(await tx.scalar(text("SELECT count(*) FROM t")) or 0)

    settings = {"port": 0, "database_url": sqlite_url, "migrate_on_start": True, "log_level": "CRITICAL"}
    async with service.instance(settings, bus=MemoryBus()) as instance:
        assert (await ask(instance, "POST", "/forever", 500))[0] == 504
        # The one writer of the file is free again: a statement still under way would keep it for good.
        assert await ask(instance, "POST", "/write", None) == (200, 1)
    assert rounds == 1
