"""The queue before the database's connections, as requests meet it that would have to stand in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import pytest
from sqlalchemy import text

from microkit.auth.principal import Principal
from microkit.db import Database
from microkit.telemetry import Telemetry
from microkit.web import Limits
from microkit.web.access import Access
from microkit.web.route import Transacts
from microkit.web.shedding import Entrance

pytestmark = pytest.mark.anyio


async def verify(token: str) -> Principal:
    raise AssertionError("nobody looks at a token")


@asynccontextmanager
async def busy(database: Database) -> AsyncIterator[None]:
    """All connections that write are taken, and as many transactions wait for one, which are known to take long."""
    go = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await go.wait()

    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1"))
        await asyncio.sleep(0.5)
    size = database.pools()[0].size
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2 * size):
            tasks.create_task(work())
        async with asyncio.timeout(20):
            while database.pools()[0].pending < size:
                await asyncio.sleep(0.01)
        yield
        go.set()


async def test_who_would_wait_for_too_long_is_refused_and_readers_wait_for_no_writer(database: Database) -> None:
    entrance = Entrance(Limits(queue=0.01), Telemetry("busy"), Access(verify), database)
    async with busy(database):
        refused = {}
        for transacts in get_args(Transacts):
            if not entrance.enter_now(0.0, transacts=transacts):
                refused[transacts] = await entrance.enter(0.0, {}, transacts=transacts)
        assert entrance.enter_now(0.0, transacts=None)  # nothing of it concerns who needs no database
    assert refused.keys() == ({"writes"} if database.reads_apart else {"writes", "reads"})
    for reply in refused.values():
        assert reply is not None
        assert reply.status == 503
        assert "retry-after" in {name.decode() for name, _ in reply.headers}
    entrance.close()
