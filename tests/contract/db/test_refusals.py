"""A disk that is full, a file that nobody may write, a password that counts no more, a server without connections:
what a running service answers, what it logs once, and that it goes on by itself when the trouble is over."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, func, insert, make_url, select, text

from microkit.db import Database, Transaction
from microkit.db.failure import DatabaseUnavailable, StorageFull
from microkit.db.migration import create_tables
from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry
from tests.conditions import fill, make_room, read_only, small_disk

pytestmark = pytest.mark.anyio

own = MetaData()
blobs = Table("blob", own, Column("id", Integer, primary_key=True), Column("data", LargeBinary, nullable=False))


async def store(tx: Transaction) -> None:
    await tx.execute(insert(blobs).values(data=b"x" * 300_000))


async def ask(tx: Transaction) -> None:
    await tx.execute(text("SELECT 1"))


async def stored(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        return await tx.scalar(select(func.count()).select_from(blobs)) or 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as folder:
        yield folder


async def test_a_full_disk_under_sqlite_refuses_what_writes_and_nothing_of_it_stands(
    disk: Path, telemetry: Telemetry
) -> None:
    database = Database(f"sqlite+aiosqlite:///{disk}/blobs.db", telemetry=telemetry)
    await database.start()
    await create_tables(database, own)
    await database.run(store)
    fill(disk)
    for _ in range(3):
        with pytest.raises(StorageFull):
            await database.run(store)
        assert await stored(database) == 1
    make_room(disk)
    await database.run(store)
    assert await stored(database) == 2
    await database.close()


async def test_a_start_on_a_full_disk_is_one_sentence(disk: Path, telemetry: Telemetry) -> None:
    fill(disk)
    database = Database(f"sqlite+aiosqlite:///{disk}/blobs.db", telemetry=telemetry)
    with pytest.raises(ConfigurationError) as caught:
        await database.start()
    assert str(caught.value) == (
        f"the database sqlite+aiosqlite:///{disk}/blobs.db cannot be used: the disk of {disk} is full (0 MiB left): "
        "make room, or name another file in the URL"
    )
    await database.close()


async def test_a_start_where_nothing_may_be_written_is_one_sentence(tmp_path: Path, telemetry: Telemetry) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir()
    first = Database(f"sqlite+aiosqlite:///{folder}/blobs.db", telemetry=telemetry)
    await first.start()
    await create_tables(first, own)
    await first.close()
    with read_only(folder):
        for file in (f"{folder}/blobs.db", f"{folder}/new.db"):
            database = Database(f"sqlite+aiosqlite:///{file}", telemetry=telemetry)
            with pytest.raises(ConfigurationError) as caught:
                await database.start()
            assert str(caught.value) == (
                f"the database sqlite+aiosqlite:///{file} cannot be used: {file} cannot be written: let this user "
                f"write in {folder}, or name another file in the URL"
            )
            await database.close()
        database = Database(f"sqlite+aiosqlite:///{folder}/deeper/x.db", telemetry=telemetry)
        with pytest.raises(ConfigurationError, match=r"cannot be made \(Read-only file system\): let this user write"):
            await database.start()
        await database.close()


async def test_a_disk_that_becomes_read_only_is_unavailable_and_heals(tmp_path: Path, telemetry: Telemetry) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/blobs.db", telemetry=telemetry)
    await database.start()
    await create_tables(database, own)
    async with database.transaction() as tx:
        await tx.execute(text("PRAGMA query_only = 1"))  # what SQLite says then is what it says of such a disk
    with pytest.raises(DatabaseUnavailable, match="can only be read"):
        await database.run(store, attempts=2)
    assert await stored(database) == 0
    await database.close()


@pytest.fixture
def tablespace(postgres_cluster: Any, tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB on which PostgreSQL keeps what is told to."""
    data = Path(postgres_cluster.psql("SHOW data_directory"))
    with small_disk(data.parent / "space", 4) as folder:
        inner = folder / "inner"
        inner.mkdir()
        owner = data.stat()
        os.chown(inner, owner.st_uid, owner.st_gid)
        postgres_cluster.psql(f"CREATE TABLESPACE small LOCATION '{inner}'")
        yield folder
        postgres_cluster.psql("DROP TABLESPACE small")


async def test_a_full_disk_under_postgresql_refuses_what_writes_and_nothing_of_it_stands(
    tablespace: Path, postgres_url: str, telemetry: Telemetry
) -> None:
    database = Database(postgres_url, telemetry=telemetry)
    await database.start()
    await create_tables(database, own)
    async with database.transaction() as tx:
        await tx.execute(text("ALTER TABLE blob ALTER data SET STORAGE EXTERNAL"))
        await tx.execute(text("ALTER TABLE blob SET TABLESPACE small"))
    await database.run(store)
    fill(tablespace)
    for _ in range(3):
        with pytest.raises(StorageFull):
            await database.run(store)
        assert await stored(database) == 1
    make_room(tablespace)
    await database.run(store)
    assert await stored(database) == 2
    async with database.transaction() as tx:
        await tx.execute(text("DROP TABLE blob"))
    await database.close()


async def test_a_password_that_counts_no_more_is_told_once_and_answered_as_unavailable(
    postgres_role_url: str, postgres_cluster: Any, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(postgres_role_url, telemetry=telemetry, pool_size=1, max_overflow=0)
    await database.start()
    name = str(make_url(postgres_role_url).database)
    change = "ALTER ROLE guarded PASSWORD '{}'"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND usename = 'guarded'"
    with caplog.at_level(logging.INFO):
        postgres_cluster.psql(change.format("another"))
        postgres_cluster.psql(end)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match="takes no connections") as caught:
                await database.run(ask, attempts=2)
            assert caught.value.headers["Retry-After"] == "1"
        postgres_cluster.psql(change.format("the right password"))
        await database.run(ask)
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if line.startswith("the database gives")] == [
        "the database gives no connection: the server refuses this user with this password; see both in the URL",
        "the database gives connections again",
    ]
    await database.close()


async def test_fifty_instances_on_a_server_of_few_connections_wait_are_refused_and_recover(
    postgres_cluster: Any, postgres_url: str
) -> None:
    """A role that may have five connections stands for a server that has no more."""
    name = str(make_url(postgres_url).database)
    postgres_cluster.psql("CREATE ROLE crowd LOGIN CONNECTION LIMIT 5")
    url = postgres_cluster.url(name).replace("://postgres@", "://crowd@")
    instances = [
        Database(url, telemetry=Telemetry(f"crowd-{number}"), pool_size=1, max_overflow=0, pool_timeout=0.2)
        for number in range(50)
    ]
    try:
        started = await asyncio.gather(*(each.start() for each in instances), return_exceptions=True)
        refused = [error for error in started if error is not None]
        assert started.count(None) == 5
        assert {str(error).partition("reached: ")[2] for error in refused} == {
            "the server has no connection left: give it a higher max_connections, or the services smaller pools"
        }
        late = instances[started.index(refused[0])]
        with pytest.raises(DatabaseUnavailable) as caught:
            await late.run(ask)
        assert caught.value.headers["Retry-After"] == "1"
        one = instances[started.index(None)]
        waiting = asyncio.create_task(late.run(ask, attempts=100))
        await asyncio.sleep(0.05)
        await one.close()  # there is one more
        await waiting
        await late.start()
    finally:
        await asyncio.gather(*(each.close() for each in instances))
        postgres_cluster.psql("DROP ROLE crowd")
