"""The pool: what it tells about itself, and how it opens and closes."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from microkit.context import deadline_within
from microkit.db import Database, PoolExhausted
from microkit.errors import ConfigurationError
from microkit.probes import answering
from microkit.telemetry import Telemetry
from microkit.web import Health, State

pytestmark = pytest.mark.anyio


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


async def test_the_pool_is_measured_under_opentelemetrys_names(database_url: str, telemetry: Telemetry) -> None:
    database = Database(database_url, telemetry=telemetry, pool_size=1, max_overflow=0)
    await database.start()
    pool = {"db_client_connection_pool_name": "write"}

    def count(state: str) -> float | None:
        return value(telemetry, "db_client_connection_count", **pool, db_client_connection_state=state)

    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1"))
        assert count("used") == 1
        assert value(telemetry, "db_client_connection_max", **pool) == 1

        async def wait() -> None:
            async with database.transaction() as other:
                await other.execute(text("SELECT 1"))

        waiter = asyncio.create_task(wait())
        while not database._writers.pending:
            await asyncio.sleep(0)
        assert value(telemetry, "db_client_connection_pending_requests", **pool) == 1
    await waiter
    assert (count("used"), count("idle")) == (0, 1)
    assert value(telemetry, "db_client_connection_pending_requests", **pool) == 0
    assert value(telemetry, "db_client_connection_timeouts_total", **pool) == 0
    waits = value(telemetry, "db_client_connection_wait_time_seconds_count", **pool)
    assert waits is not None
    assert waits >= 2
    uses = value(telemetry, "db_client_connection_use_time_seconds_count", **pool)
    assert uses is not None
    assert uses >= 2
    await database.close()


async def test_a_burst_is_served_in_the_order_it_came_in_for_as_long_as_one_may_wait(
    database_url: str, telemetry: Telemetry
) -> None:
    database = Database(database_url, telemetry=telemetry, pool_size=2, max_overflow=0, pool_timeout=1.0)
    served: list[int] = []

    async def use(number: int) -> None:
        async with database.transaction(read_only=True) as tx:
            await tx.execute(text("SELECT 1"))
            served.append(number)
            await asyncio.sleep(0.05)

    found = await asyncio.gather(*(use(number) for number in range(200)), return_exceptions=True)
    refused = [number for number, error in enumerate(found) if error is not None]
    # Neighbours run on two connections, and either may be the first to have its answer. When patience ends, it ends for
    # those first who came first, while a connection may be on its way to them: then somebody behind them has it.
    assert all(later - earlier >= -2 for earlier, later in pairwise(served))
    assert len(served) >= 4
    assert sorted([*served, *refused]) == list(range(200))
    assert all(isinstance(error, PoolExhausted) for error in found if error is not None)
    assert database._readers._free._value == 2
    await use(200)
    await database.close()


async def test_who_would_get_a_connection_too_late_is_told_at_once(database_url: str, telemetry: Telemetry) -> None:
    database = Database(database_url, telemetry=telemetry, pool_size=1, max_overflow=0, pool_timeout=3600.0)
    pool = database._writers
    pool._use = 10.0  # as if connections had been in use for ten seconds each

    async def use() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))

    async with database.transaction() as holder:
        await holder.execute(text("SELECT 1"))
        waiting = asyncio.create_task(use())
        while not pool.pending:
            await asyncio.sleep(0)
        with pytest.raises(PoolExhausted, match="wait for 1 connections"), deadline_within(29.0):
            await use()  # while the holder keeps its connection
        patient = asyncio.create_task(use())  # nobody's deadline, and less than the pool's patience
        while pool.pending < 2:
            await asyncio.sleep(0)
    await asyncio.gather(waiting, patient)
    assert pool._free._value == 1
    await database.close()


async def test_two_databases_of_one_process_share_no_metric(sqlite_url: str, postgres_url: str) -> None:
    one, two = Telemetry("one"), Telemetry("two")
    first, second = Database(sqlite_url, telemetry=one), Database(postgres_url, telemetry=two)
    async with first.transaction() as tx:
        await tx.execute(text("SELECT 1"))
        pool = {"db_client_connection_pool_name": "write", "db_client_connection_state": "used"}
        assert value(one, "db_client_connection_count", **pool) == 1
        assert value(two, "db_client_connection_count", **pool) == 0
    await first.close()
    await second.close()


async def test_a_database_can_be_closed_and_nothing_is_left(database_url: str, telemetry: Telemetry) -> None:
    database = Database(database_url, telemetry=telemetry)
    await database.start()
    own = {task for task in asyncio.all_tasks() if task.get_name() == "connection leaks"}
    before = asyncio.all_tasks() - own
    await database.close()
    await database.close()
    assert asyncio.all_tasks() == before
    assert database._writers.idle == 0


async def test_the_folder_of_a_file_is_made(tmp_path: Path, telemetry: Telemetry) -> None:
    file = tmp_path / "deep" / "er" / "billing.db"
    database = Database(f"sqlite+aiosqlite:///{file}", telemetry=telemetry)
    await database.start()
    assert file.exists()
    await database.close()


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path, telemetry: Telemetry) -> None:
    file = tmp_path / "billing.db"
    file.write_text("not a database at all, but long enough to look like one" * 100)
    database = Database(f"sqlite+aiosqlite:///{file}", telemetry=telemetry)
    with pytest.raises(ConfigurationError, match=r"billing\.db cannot be opened: the file is no SQLite database"):
        await database.start()
    await database.close()


async def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path, telemetry: Telemetry) -> None:
    (tmp_path / "file").touch()
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'file' / 'x' / 'billing.db'}", telemetry=telemetry)
    with pytest.raises(ConfigurationError, match=r"folder of .*billing\.db cannot be made"):
        await database.start()
    await database.close()


async def test_a_database_that_does_not_exist_is_refused_without_its_password(
    postgres_url: str, telemetry: Telemetry
) -> None:
    there = make_url(postgres_url)
    url = there.set(password="S3cretPassword", database="not_there").render_as_string(hide_password=False)
    database = Database(url, telemetry=telemetry)
    with pytest.raises(ConfigurationError, match="has no database of this name") as caught:
        await database.start()
    assert "S3cret" not in str(caught.value)
    await database.close()


async def test_a_connection_knows_the_service(postgres_url: str, telemetry: Telemetry) -> None:
    database = Database(postgres_url, telemetry=telemetry)
    async with database.transaction(read_only=True) as tx:
        row: Any = (
            await tx.execute(
                text("SELECT current_setting('application_name'), current_setting('TimeZone'), pg_backend_pid()")
            )
        ).one()
    assert row[0] == "test"
    assert row[1] == "UTC"
    await database.close()


def test_the_names_are_all_those_of_opentelemetrys_conventions(sqlite_url: str, telemetry: Telemetry) -> None:
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.metrics.db_metrics")
    Database(sqlite_url, telemetry=telemetry)
    units = {"count": "", "create_time": "_seconds", "use_time": "_seconds", "wait_time": "_seconds"}
    ours = {family.name for family in telemetry.registry.collect()}
    for constant, name in vars(conventions).items():
        if constant.startswith("DB_CLIENT_CONNECTION_"):
            short = name.removeprefix("db.client.connection.")
            assert name.replace(".", "_") + units.get(short, "") in ours, name


async def test_connections_beyond_the_pool_are_closed_when_the_load_is_over(
    postgres_url: str, telemetry: Telemetry
) -> None:
    database = Database(postgres_url, telemetry=telemetry, pool_size=2, max_overflow=3, pool_timeout=60.0)
    await database.start()
    together = asyncio.Barrier(5)

    async def use() -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await together.wait()

    await asyncio.gather(*(use() for _ in range(5)))
    (state,) = database.pools()
    assert (state.size, state.used, state.idle) == (5, 0, 2)
    pool = {"db_client_connection_pool_name": "write"}
    assert value(telemetry, "db_client_connection_idle_max", **pool) == 2
    assert value(telemetry, "db_client_connection_create_time_seconds_count", **pool) == 5
    await database.close()


async def test_an_instance_that_lends_nobody_a_connection_any_more_is_not_ready(
    database_url: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.web.health.PROBE_TIMEOUT", 0.3)
    monkeypatch.setattr("microkit.web.health.FRESH", 0.0)
    database = Database(database_url, telemetry=telemetry, pool_size=1, max_overflow=0, pool_timeout=60.0)
    await database.start()
    health = Health()
    health.part("database", answering(database.ping))
    health.state = State.READY
    async with database.transaction(read_only=True) as tx:
        await tx.execute(text("SELECT 1"))
        assert not await health.ready()
        assert await health.live()  # a restart would help nobody
    async with asyncio.timeout(30):
        while not await health.ready():
            await asyncio.sleep(0.05)
    await database.close()
