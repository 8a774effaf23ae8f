"""Connections that are opened anew, asked before they are lent, lent by a pooler, or of a copy."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import pytest
from sqlalchemy import make_url, text

from microkit.db import Database, Transaction
from microkit.db.failure import DatabaseUnavailable
from microkit.db.options import PoolOptions
from microkit.servers.ports import free_ports
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio


async def backend(tx: Transaction) -> int:
    found: int = await tx.scalar(text("SELECT pg_backend_pid()"))
    return found


async def test_a_connection_that_is_too_old_is_opened_anew(postgres_url: str, telemetry: Telemetry) -> None:
    async def backends(recycle: float) -> set[int]:
        options = PoolOptions(recycle=recycle)
        database = Database(postgres_url, telemetry=Telemetry("test"), pool_size=1, max_overflow=0, options=options)
        found = set()
        for _ in range(3):
            found.add(await database.run(backend))
            await asyncio.sleep(0.02)
        await database.close()
        return found

    assert len(await backends(0.01)) == 3
    assert len(await backends(3600)) == 1
    assert len(await backends(0)) == 1


@pytest.mark.parametrize("pre_ping", [True, False])
async def test_pre_ping_asks_a_connection_before_it_is_lent(
    postgres_url: str, telemetry: Telemetry, pre_ping: bool
) -> None:
    options = PoolOptions(pre_ping=pre_ping)
    database = Database(postgres_url, telemetry=telemetry, pool_size=1, max_overflow=0, options=options)
    statements: list[str] = []
    async with database.transaction(read_only=True) as tx:
        await tx.execute(text("SELECT 1"))
        driver = (await (await tx.session.connection()).get_raw_connection()).driver_connection
    assert driver is not None
    driver.add_query_logger(lambda query: statements.append(query.query))
    async with database.transaction() as tx:
        await tx.execute(text("SELECT 2"))
    # The question is a transaction of its own.
    assert sum(each.startswith("BEGIN") for each in statements) == (2 if pre_ping else 1)
    await database.close()


async def test_behind_a_pooler_nothing_is_kept_prepared_or_set(postgres_url: str, telemetry: Telemetry) -> None:
    database = Database(postgres_url, telemetry=telemetry, options=PoolOptions(pgbouncer=True), statement_timeout=7.0)
    await database.start()
    assert not database.hears
    async with database.transaction() as tx:
        await tx.execute(text("CREATE TABLE coin (id int primary key)"))
    seen = set()
    for number in range(3):
        async with database.transaction() as tx:
            await tx.execute(text("INSERT INTO coin VALUES (:number)"), {"number": number})
            seen.add(await backend(tx))
            kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'"
            assert await tx.scalar(text(kept)) == 0
            # The limit is the transaction's own, and the session has no setting of ours.
            assert await tx.scalar(text("SHOW statement_timeout")) == "7s"
            ours = (
                "SELECT count(*) FROM pg_settings WHERE source IN ('client') AND name IN ('statement_timeout', 'jit')"
            )
            assert await tx.scalar(text(ours)) == 0
    assert len(seen) == 3  # none is kept
    async with database.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM coin")) == 3
        assert await tx.scalar(text("SHOW transaction_read_only")) == "on"
    await database.close()


@pytest.fixture
def two_urls(postgres_cluster: object) -> object:
    """Of two empty databases."""
    names = [postgres_cluster.create() for _ in range(2)]  # type: ignore[attr-defined]  # the plugin's own
    yield [postgres_cluster.url(name) for name in names]  # type: ignore[attr-defined]
    for name in names:
        postgres_cluster.drop(name)  # type: ignore[attr-defined]


async def where(tx: Transaction) -> str:
    found: str = await tx.scalar(text("SELECT current_database()"))
    return found


async def test_what_may_be_read_from_a_copy_is_and_nothing_else(two_urls: list[str], telemetry: Telemetry) -> None:
    primary, copy = two_urls
    database = Database(primary, telemetry=telemetry, options=PoolOptions(replica_url=copy))
    await database.start()
    here, there = (str(make_url(url).database) for url in two_urls)
    assert await database.run(where, read_only=True, replica=True) == there
    assert await database.run(where, read_only=True) == here
    assert await database.run(where, replica=True) == here
    assert [pool.name for pool in database.pools()] == ["write", "replica"]
    await database.close()


async def test_while_the_copy_is_away_the_primary_serves_its_readers(
    postgres_url: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    away = make_url(postgres_url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
    database = Database(postgres_url, telemetry=telemetry, options=PoolOptions(replica_url=away))
    await database.start()
    here = str(make_url(postgres_url).database)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert await database.run(where, read_only=True, replica=True) == here
    assert [each.getMessage()[:28] for each in caplog.records if "replica" in each.getMessage()] == [
        "the read replica is away, th"
    ]
    assert [pool.used for pool in database.pools()] == [0, 0]
    await database.close()


@pytest.mark.parametrize("moves", [True, False])
async def test_a_copy_that_is_busy_is_not_away_and_its_readers_are_not_sent_to_the_primary(
    two_urls: list[str], telemetry: Telemetry, moves: bool
) -> None:
    primary, copy = two_urls
    options = PoolOptions(replica_url=copy)
    database = Database(primary, telemetry=telemetry, pool_size=1, max_overflow=0, pool_timeout=0.05, options=options)
    replica = database._replica
    assert replica is not None
    async with database.transaction(read_only=True, replica=True) as tx:
        await where(tx)
        # Connections were given back just now, or not for long: the copy may have fallen silent.
        replica.pool._given_back = math.inf if moves else -math.inf
        if moves:
            with pytest.raises(DatabaseUnavailable):
                await database.run(where, read_only=True, replica=True)
        else:
            assert await database.run(where, read_only=True, replica=True) == str(make_url(primary).database)
    assert replica.away is not moves
    await database.close()


async def test_a_copy_that_is_back_is_asked_again(two_urls: list[str], telemetry: Telemetry) -> None:
    primary, copy = two_urls
    database = Database(primary, telemetry=telemetry, options=PoolOptions(replica_url=copy))
    replica = database._replica
    assert replica is not None
    replica.failed(OSError("a test says so"))
    here, there = (str(make_url(url).database) for url in two_urls)
    assert await database.run(where, read_only=True, replica=True) == here
    replica._asked_again = time.monotonic()  # as if the pause had passed
    assert await database.run(where, read_only=True, replica=True) == there
    assert not replica.away
    await database.close()
