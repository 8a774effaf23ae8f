"""Who has the connections, and for too long."""

from __future__ import annotations

import asyncio
import linecache
import logging
from pathlib import Path

import pytest
from sqlalchemy import text

from microkit.db import Database
from microkit.db.holders import HolderView
from microkit.db.options import PoolOptions
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

HERE = Path(__file__).name


def holders(database: Database) -> list[HolderView]:
    return [holder for pool in database.pools() for holder in pool.holders]


async def test_the_table_says_who_has_a_connection_since_when_and_where_it_was_taken(
    database: Database, telemetry: Telemetry
) -> None:
    let_go = asyncio.Event()

    async def slow_report() -> None:
        with telemetry.span("GET /report"):
            async with database.transaction() as tx:
                await tx.execute(text("SELECT 1"))
                await let_go.wait()

    task = asyncio.create_task(slow_report(), name="the slow one")
    while not holders(database):
        await asyncio.sleep(0)
    (seen,) = holders(database)
    while "Event.wait" not in " ".join(seen.now):  # the statement is answered, and then it waits
        await asyncio.sleep(0.001)
        (seen,) = holders(database)
    assert (seen.pool, seen.work, seen.task) == ("write", "GET /report", "the slow one")
    assert seen.function.endswith("slow_report")
    file, line = seen.taken_at.split(":")
    assert Path(file).name == HERE
    assert linecache.getline(__file__, int(line)).strip() == 'await tx.execute(text("SELECT 1"))'
    assert any(HERE in frame and "slow_report" in frame for frame in seen.now)
    assert seen.seconds >= 0
    let_go.set()
    await task
    assert holders(database) == []
    assert [(pool.used, pool.pending) for pool in database.pools()] == [(0, 0)] * len(database.pools())


async def test_a_transaction_that_has_sent_nothing_holds_nothing(database: Database) -> None:
    async with database.transaction():
        assert holders(database) == []


async def test_a_holder_that_is_cancelled_or_fails_leaves_the_table(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            raise LookupError

    async def wait() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await asyncio.Event().wait()

    with pytest.raises(LookupError):
        await fail()
    task = asyncio.create_task(wait())
    while not holders(database):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert holders(database) == []


async def test_a_connection_held_too_long_is_logged_once_with_the_stack_of_its_holder(
    database_url: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(database_url, telemetry=telemetry, options=PoolOptions(leak_after=0.05))
    await database.start()

    async def forgetful() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            while not caplog.records:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # it is looked at again, and not told of again

    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(30):
            await forgetful()
    await database.close()
    (record,) = [each for each in caplog.records if "leaked" in each.getMessage()]
    assert "forgetful" in record.getMessage()
    assert HERE in record.getMessage()
    labels = {"db_client_connection_pool_name": "write"}
    assert telemetry.registry.get_sample_value("db_client_connection_leaks_total", labels) == 1


async def test_the_leak_detector_can_be_turned_off(database_url: str, telemetry: Telemetry) -> None:
    database = Database(database_url, telemetry=telemetry, options=PoolOptions(leak_after=0))
    await database.start()
    assert "connection leaks" not in {task.get_name() for task in asyncio.all_tasks()}
    await database.close()
