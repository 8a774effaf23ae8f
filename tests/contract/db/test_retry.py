"""Whole transactions tried again, where that is safe and may help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from microkit.context import deadline_within
from microkit.db import CommitUnknown, Database, DatabaseUnavailable, PoolExhausted, Transaction, TransactionAborted
from microkit.errors import Conflict, DeadlineExceeded
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

Count = Callable[[Database], Awaitable[int]]


@pytest.fixture
async def postgres(postgres_url: str, telemetry: Telemetry) -> Any:
    database = Database(postgres_url, telemetry=telemetry)
    async with database.transaction() as tx:
        await tx.execute(text("CREATE TABLE coin (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"))
    yield database
    await database.close()


async def terminate_others(database: Database) -> None:
    """As an administrator, ends every connection to the database but one's own."""
    async with database.transaction(read_only=True) as tx:
        await tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


async def test_the_result_of_the_work_is_returned(coins: Database) -> None:
    async def work(tx: Transaction) -> int:
        return 42

    assert await coins.run(work) == 42


async def test_an_error_of_the_work_is_not_tried_again(coins: Database, coin: type[Any], count: Count) -> None:
    tries = 0

    async def work(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.add(coin(id=1, name="cowrie"))
        await tx.flush()
        raise Conflict("no")

    with pytest.raises(Conflict):
        await coins.run(work)
    assert tries == 1
    assert await count(coins) == 0


async def test_a_constraint_is_not_tried_again(coins: Database, coin: type[Any]) -> None:
    tries = 0

    async def work(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.add(coin(id=1, name="cowrie"))

    await coins.run(work)
    with pytest.raises(IntegrityError):
        await coins.run(work)
    assert tries == 2


async def test_what_people_typed_is_not_in_the_error(coins: Database, coin: type[Any]) -> None:
    async def work(tx: Transaction) -> None:
        tx.add(coin(id=1, name="S3cret"))

    await coins.run(work)
    with pytest.raises(IntegrityError) as caught:
        await coins.run(work)
    assert "S3cret" not in str(caught.value)


async def test_fifty_writers_of_one_row_lose_no_update(coins: Database, coin: type[Any]) -> None:
    async def first(tx: Transaction) -> None:
        tx.add(coin(id=1, name="0"))

    async def increment(tx: Transaction) -> None:
        row = await tx.find(coin, coin.id == 1, for_update=True)
        assert row is not None
        await asyncio.sleep(0)
        row.name = str(int(row.name) + 1)

    await coins.run(first)
    await asyncio.gather(*(coins.run(increment) for _ in range(50)))
    async with coins.transaction(read_only=True) as tx:
        row = await tx.get(coin, 1)
        assert row is not None
        assert row.name == "50"


async def test_a_serialization_failure_runs_the_whole_of_it_again(postgres: Database) -> None:
    tries = 0

    async def increment(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        await tx.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        name = await tx.scalar(text("SELECT name FROM coin WHERE id = 1"))
        await asyncio.sleep(0.01)
        await tx.execute(text("UPDATE coin SET name = :name WHERE id = 1"), {"name": str(int(name) + 1)})

    async def first(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO coin VALUES (1, '0')"))

    await postgres.run(first)
    await asyncio.gather(*(postgres.run(increment, attempts=50) for _ in range(8)))
    async with postgres.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT name FROM coin")) == "8"
    assert tries > 8


async def test_of_two_in_a_deadlock_one_is_run_again(postgres: Database) -> None:
    tries = 0
    met = asyncio.Barrier(2)

    async def first(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO coin VALUES (1, 'a'), (2, 'b')"))

    async def work(tx: Transaction, one: int, other: int) -> None:
        nonlocal tries
        tries += 1
        await tx.execute(text("UPDATE coin SET name = name || '!' WHERE id = :id"), {"id": one})
        if tries <= 2:
            await met.wait()
        await tx.execute(text("UPDATE coin SET name = name || '!' WHERE id = :id"), {"id": other})

    await postgres.run(first)
    await asyncio.gather(postgres.run(lambda tx: work(tx, 1, 2)), postgres.run(lambda tx: work(tx, 2, 1)))
    async with postgres.transaction(read_only=True) as tx:
        assert await tx.scalars(text("SELECT name FROM coin ORDER BY id")) == ["a!!", "b!!"]
    # On a busy server the one that is run again may have its first row before the other has woken up for it, and the
    # two are in a deadlock once more.
    assert tries >= 3


async def test_idle_connections_that_the_server_closed_are_not_even_noticed(postgres: Database) -> None:
    async def all_at_once(met: asyncio.Barrier) -> None:
        async with postgres.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await met.wait()

    met = asyncio.Barrier(10)
    await asyncio.gather(*(all_at_once(met) for _ in range(10)))
    assert postgres._writers.idle == 10
    await terminate_others(postgres)
    await asyncio.sleep(0.05)
    met = asyncio.Barrier(10)
    await asyncio.gather(*(all_at_once(met) for _ in range(10)))


async def test_connections_terminated_in_mid_transaction_cost_a_retry_and_nothing_else(postgres: Database) -> None:
    tries = inserted = 0
    begun, terminated = asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction, number: int) -> None:
        nonlocal tries, inserted
        tries += 1
        await tx.execute(text("INSERT INTO coin VALUES (:id, 'x')"), {"id": number})
        inserted += 1  # its connection is one of those that are terminated
        if inserted >= 8:
            begun.set()
        await terminated.wait()
        await tx.execute(text("UPDATE coin SET name = 'y' WHERE id = :id"), {"id": number})

    def one(number: int) -> Callable[[Transaction], Awaitable[None]]:
        return lambda tx: work(tx, number)

    workers = [asyncio.create_task(postgres.run(one(number))) for number in range(8)]
    await begun.wait()
    await terminate_others(postgres)
    terminated.set()
    await asyncio.gather(*workers)
    async with postgres.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM coin WHERE name = 'y'")) == 8
    assert tries == 16
    assert postgres._writers.used == 0


async def test_a_transaction_that_is_not_run_but_opened_tells_of_a_lost_connection(postgres: Database) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with postgres.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            await terminate_others(postgres)
            await asyncio.sleep(0.05)
            await tx.execute(text("SELECT 2"))
    assert caught.value.connection_invalidated
    async with postgres.transaction() as tx:
        assert await tx.scalar(text("SELECT 3")) == 3


async def slow_commit(database: Database, seconds: float) -> None:
    """Makes COMMIT take time, as a synchronous replica does."""
    async with database.transaction() as tx:
        for statement in (
            f"CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep({seconds}); "
            "RETURN NEW; END$$",
            "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON coin DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION nap()",
        ):
            await tx.execute(text(statement))


async def until_committing(database: Database) -> None:
    while True:
        async with database.transaction(read_only=True) as tx:
            if await tx.scalar(text("SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'COMMIT'")):
                return
        await asyncio.sleep(0.01)


async def test_a_commit_whose_outcome_nobody_knows_is_said_and_not_tried_again(postgres: Database) -> None:
    await slow_commit(postgres, 30)
    tries = 0
    called = []

    async def work(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.after_commit(lambda: called.append(1))
        await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))

    task = asyncio.create_task(postgres.run(work))
    await until_committing(postgres)
    await terminate_others(postgres)
    with pytest.raises(CommitUnknown):
        await task
    assert tries == 1
    assert called == []
    assert postgres._writers.used == 0


async def test_a_commit_under_way_is_finished_although_cancelled(postgres: Database) -> None:
    await slow_commit(postgres, 0.3)
    called = []

    async def work(tx: Transaction) -> None:
        tx.after_commit(lambda: called.append(1))
        await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))

    task = asyncio.create_task(postgres.run(work))
    await until_committing(postgres)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == [1], "whoever waits for the signal hears of what was committed"
    async with postgres.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM coin")) == 1


async def test_a_commit_that_hangs_is_cut_when_its_grace_is_over(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.db.shield.GRACE", 0.1)
    await slow_commit(postgres, 30)

    async def work(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))

    task = asyncio.create_task(postgres.run(work))
    await until_committing(postgres)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert postgres._writers.used == 0
    async with postgres.transaction() as tx:
        await tx.execute(text("SELECT 1"))


async def test_a_failure_that_was_swallowed_is_not_committed_over(coins: Database) -> None:
    with pytest.raises(TransactionAborted, match="nothing was committed"):
        async with coins.transaction() as tx:
            await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))
            with pytest.raises(IntegrityError):
                await tx.execute(text("INSERT INTO coin VALUES (1, 'y')"))
    async with coins.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM coin")) == 0


async def test_a_failure_inside_a_savepoint_is_taken_back_alone(coins: Database) -> None:
    async with coins.transaction() as tx:
        await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))
        with pytest.raises(IntegrityError):
            async with tx.session.begin_nested():
                await tx.execute(text("INSERT INTO coin VALUES (1, 'y')"))
        await tx.execute(text("INSERT INTO coin VALUES (2, 'z')"))
    async with coins.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM coin")) == 2


async def test_a_table_changed_by_a_neighbour_costs_a_retry(postgres: Database, postgres_url: str) -> None:
    other = Database(postgres_url, telemetry=Telemetry("other"))

    async def read(tx: Transaction) -> int:
        return len((await tx.execute(text("SELECT * FROM coin"))).keys())

    assert await postgres.run(read) == 2
    async with other.transaction() as tx:
        await tx.execute(text("ALTER TABLE coin ADD COLUMN weight INTEGER"))
    assert await postgres.run(read) == 3
    await other.close()


async def test_a_database_that_is_not_there_is_unavailable(telemetry: Telemetry) -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing", telemetry=telemetry)
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        await database.start()
    assert database._writers.used == 0
    await database.close()


async def test_a_full_pool_is_waited_for_only_so_long_and_not_tried_again(
    database_url: str, telemetry: Telemetry
) -> None:
    database = Database(database_url, telemetry=telemetry, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with database.transaction() as holder:
        await holder.execute(text("SELECT 1"))

        async def work(tx: Transaction) -> None:
            await tx.execute(text("SELECT 1"))

        with pytest.raises(PoolExhausted):
            await database.run(work)
        assert (
            telemetry.registry.get_sample_value(
                "db_client_connection_timeouts_total", {"db_client_connection_pool_name": "write"}
            )
            == 1
        )
        with pytest.raises(DeadlineExceeded), deadline_within(0.02):
            await database.run(work)
    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1"))
    await database.close()


async def test_an_update_counts_its_rows(coins: Database, coin: type[Any]) -> None:
    async with coins.transaction() as tx:
        tx.add_all([coin(id=n, name="x") for n in range(3)])
        await tx.flush()
        result = await tx.execute(update(coin).where(coin.id > 0).values(name="y"))
        assert result.rowcount == 2  # type: ignore[attr-defined]  # a CursorResult
