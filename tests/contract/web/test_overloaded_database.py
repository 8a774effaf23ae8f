"""The queue before the database's connections, as requests meet it that would have to stand in it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import pytest
from sqlalchemy import text

from microkit.auth.principal import Principal
from microkit.db import Database
from microkit.db.options import PoolOptions
from microkit.telemetry import Telemetry
from microkit.web import Limits
from microkit.web.access import Access
from microkit.web.route import Transacts
from microkit.web.shedding import Entrance

pytestmark = pytest.mark.anyio


async def verify(token: str) -> Principal:
    raise AssertionError("nobody looks at a token")


@asynccontextmanager
async def busy(database: Database, *, replica: bool = False, work: float = 0.5) -> AsyncIterator[None]:
    """All connections that write (those of the replica, if it says so) are taken, and as many transactions wait for
    one, which are known to take long."""
    go = asyncio.Event()
    number = -1 if replica else 0

    async def one() -> None:
        async with database.transaction(read_only=replica, replica=replica) as tx:
            await tx.execute(text("SELECT 1"))
            await go.wait()

    async with database.transaction(read_only=replica, replica=replica) as tx:
        await tx.execute(text("SELECT 1"))
        await asyncio.sleep(work)
    size = database.pools()[number].size
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2 * size):
            tasks.create_task(one())
        async with asyncio.timeout(20):
            while database.pools()[number].pending < size:
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


@pytest.mark.parametrize(("replica", "let_in"), [(False, "reads"), (True, "writes")])
async def test_who_reads_from_a_copy_stands_in_the_queue_before_the_copy(
    postgres_url: str, telemetry: Telemetry, replica: bool, let_in: Transacts
) -> None:
    database = Database(
        postgres_url, telemetry=telemetry, pool_size=1, max_overflow=0, pool_timeout=60.0,
        options=PoolOptions(replica_url=postgres_url),
    )  # fmt: skip
    entrance = Entrance(Limits(queue=0.01), Telemetry("busy"), Access(verify), database)
    async with busy(database, replica=replica, work=0.2):
        found = {each for each in get_args(Transacts) if entrance.enter_now(0.0, transacts=each)}
    assert found == {let_in}
    assert database._replica is not None
    database._replica._asked_again = math.inf  # it is away, for as long as a slow machine takes
    async with busy(database, work=0.2):
        assert not entrance.enter_now(0.0, transacts="reads"), "the primary stands in for a copy that is away"
    entrance.close()
    await database.close()
