"""Transactions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import DateTime, Numeric, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, MultipleResultsFound, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.context import deadline_within
from microkit.db import Database, PreparedInsert, Transaction, database_now
from microkit.db.migration import create_tables
from microkit.errors import DeadlineExceeded, DefinitionError
from microkit.message import Event
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

Count = Callable[[Database], Awaitable[int]]


class Minted(Event, topic="test.coins", key="coin_id"):
    coin_id: int


async def test_what_a_block_adds_is_committed_when_it_ends(coins: Database, coin: type[Any], count: Count) -> None:
    async with coins.transaction() as tx:
        tx.add(coin(id=1, name="cowrie"))
    assert await count(coins) == 1


async def test_what_a_block_adds_is_gone_when_it_raises(coins: Database, coin: type[Any], count: Count) -> None:
    with pytest.raises(RuntimeError, match="no"):
        async with coins.transaction() as tx:
            tx.add(coin(id=1, name="cowrie"))
            await tx.flush()
            raise RuntimeError("no")
    assert await count(coins) == 0


async def test_a_row_can_still_be_read_after_its_transaction(coins: Database, coin: type[Any]) -> None:
    row = coin(id=1, name="cowrie")
    async with coins.transaction() as tx:
        tx.add(row)
    assert (row.id, row.name) == (1, "cowrie")


async def test_a_block_that_asks_nothing_takes_no_connection(coins: Database) -> None:
    async with coins.transaction(), coins.transaction() as tx:
        assert coins._writers.used == 0
        await tx.execute(text("SELECT 1"))
        assert coins._writers.used == 1
    assert coins._writers.used == 0


async def test_a_transaction_that_has_ended_cannot_be_used(coins: Database) -> None:
    async with coins.transaction() as tx:
        await tx.execute(text("SELECT 1"))
    with pytest.raises(DefinitionError, match="has ended"):
        await tx.execute(text("SELECT 1"))
    assert coins._writers.used == 0


async def test_a_callback_that_fails_does_not_make_the_commit_look_failed(
    coins: Database, coin: type[Any], count: Count, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []
    async with coins.transaction() as tx:
        tx.add(coin(id=1, name="x"))
        tx.after_commit(lambda: called.append(1 // 0))
        tx.after_commit(lambda: called.append(2))
    assert called == [2]
    assert await count(coins) == 1
    assert "the transaction stands" in caplog.text


async def test_rows_are_found_read_changed_and_deleted(coins: Database, coin: type[Any], count: Count) -> None:
    async with coins.transaction() as tx:
        tx.add_all([coin(id=1, name="cowrie"), coin(id=2, name="naira"), coin(id=3, name="naira")])
    async with coins.transaction() as tx:
        row = await tx.find(coin, coin.id == 1, coin.name == "cowrie")
        assert row is not None
        assert await tx.get(coin, 1) is row
        assert await tx.find(coin, coin.id == 1, coin.name == "naira") is None
        with pytest.raises(MultipleResultsFound):
            await tx.find(coin, coin.name == "naira")
        changed: Any = row
        changed.name = "shell"
        second = await tx.get(coin, 2)
        await tx.delete(second)
    async with coins.transaction(read_only=True) as tx:
        assert await tx.scalars(select(coin.name).order_by(coin.id)) == ["shell", "naira"]
        assert await tx.scalar(select(coin.name).where(coin.id == 9)) is None
    assert await count(coins) == 2


async def test_finding_for_update_sees_what_others_committed_meanwhile(coins: Database, coin: type[Any]) -> None:
    if coins.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time: there is no meanwhile")
    async with coins.transaction() as tx:
        tx.add(coin(id=1, name="old"))
    async with coins.transaction() as tx:
        await tx.find(coin, coin.id == 1)
        async with coins.transaction() as other:
            await other.execute(text("UPDATE coin SET name = 'new'"))
        row = await tx.find(coin, coin.id == 1, for_update=True)
        assert row is not None
        assert row.name == "new"


async def test_a_reader_does_not_wait_for_a_writer_and_sees_nothing_of_it(
    coins: Database, coin: type[Any], count: Count
) -> None:
    async with coins.transaction() as tx:
        tx.add(coin(id=1, name="cowrie"))
        await tx.flush()
        assert await count(coins) == 0
    assert await count(coins) == 1


async def test_a_read_only_transaction_refuses_to_write(coins: Database, coin: type[Any], count: Count) -> None:
    coins.outbox_writer = keep
    async with coins.transaction(read_only=True) as tx:
        assert tx.read_only
        with pytest.raises(DefinitionError, match="in a read-only transaction"):
            tx.add(coin(id=1, name="x"))
        with pytest.raises(DefinitionError, match="in a read-only transaction"):
            tx.add_all([])
        with pytest.raises(DefinitionError, match="in a read-only transaction"):
            tx.publish(Minted(coin_id=1))
        with pytest.raises(DefinitionError, match="read-only"):
            await tx.find(coin, coin.id == 1, for_update=True)
    with pytest.raises(DBAPIError):
        async with coins.transaction(read_only=True) as tx:
            await tx.execute(text("INSERT INTO coin VALUES (1, 'x')"))
    assert await count(coins) == 0
    async with coins.transaction() as tx:  # the connection is not read-only for ever
        tx.add(coin(id=1, name="x"))
    assert await count(coins) == 1


async def keep(tx: Transaction, events: Sequence[Any]) -> None:
    await tx.execute(text("INSERT INTO coin VALUES (:id, 'event')"), [{"id": -event.coin_id} for event, _ in events])


async def test_events_are_written_once_in_order_with_the_transaction(
    coins: Database, coin: type[Any], count: Count
) -> None:
    seen: list[int] = []

    async def writer(tx: Transaction, events: Sequence[Any]) -> None:
        seen.extend(event.coin_id for event, _ in events)
        await keep(tx, events)

    coins.outbox_writer = writer
    async with coins.transaction() as tx:
        tx.publish(Minted(coin_id=1), Minted(coin_id=2))
        tx.add(coin(id=9, name="row"))
        tx.publish(Minted(coin_id=3))
        assert seen == []
    assert seen == [1, 2, 3]
    assert await count(coins) == 4
    with pytest.raises(RuntimeError):
        async with coins.transaction() as tx:
            tx.publish(Minted(coin_id=4))
            raise RuntimeError
    assert seen == [1, 2, 3]


async def test_the_row_is_there_when_its_event_is_written(coins: Database, coin: type[Any]) -> None:
    async def writer(tx: Transaction, events: Sequence[Any]) -> None:
        assert await tx.scalar(text("SELECT count(*) FROM coin")) == 1

    coins.outbox_writer = writer
    async with coins.transaction() as tx:
        tx.publish(Minted(coin_id=1))
        tx.add(coin(id=1, name="row"))


async def test_publishing_without_an_outbox_says_so(coins: Database) -> None:
    async with coins.transaction() as tx:
        with pytest.raises(DefinitionError, match="outbox"):
            tx.publish(Minted(coin_id=1))


async def test_signals_and_callbacks_come_after_commit_and_only_then(coins: Database) -> None:
    called: list[str] = []
    signal = coins.signal("outbox")
    with pytest.raises(RuntimeError):
        async with coins.transaction() as tx:
            tx.wake("outbox")
            tx.after_commit(lambda: called.append("never"))
            await tx.execute(text("SELECT 1"))
            raise RuntimeError
    assert not await signal.wait(0.01)
    async with coins.transaction() as tx:
        tx.wake("outbox")
        tx.after_commit(lambda: called.append("once"))
        await tx.execute(text("SELECT 1"))
        assert called == []
    assert called == ["once"]
    assert await signal.wait(0)
    assert not await signal.wait(0.01)
    assert coins.signal("outbox") is signal


async def test_a_prepared_insert_does_what_the_session_would(coins: Database, coin: type[Any]) -> None:
    prepared = PreparedInsert(insert(coin).values(name=func.lower("LOWERED")), ["id"])
    named = PreparedInsert(insert(coin), ["id", "name"])
    async with coins.transaction() as tx:
        tx.add(coin(id=1, name="first"))
        await tx.insert(prepared, [{"id": 2}])
        await tx.insert(named, [{"id": 3, "name": "c"}, {"id": 4, "name": "d"}])
    async with coins.transaction(read_only=True) as tx:
        assert await tx.scalars(select(coin.name).order_by(coin.id)) == ["first", "lowered", "c", "d"]
    for rows in ([{"id": 1}], [{"id": 7}, {"id": 1}]):
        with pytest.raises(IntegrityError):
            async with coins.transaction() as tx:
                await tx.insert(prepared, rows)
    async with coins.transaction(read_only=True) as tx:
        assert await tx.scalar(select(func.count()).select_from(coin)) == 4


async def test_a_statement_is_stopped_when_the_deadline_passes(coins: Database) -> None:
    endless = {
        "postgresql": "SELECT pg_sleep(60)",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
    }[coins.dialect]

    async def work(tx: Transaction) -> None:
        await tx.execute(text(endless))

    for read_only in (False, True):
        with pytest.raises(DeadlineExceeded), deadline_within(0.1):
            await coins.run(work, read_only=read_only)
    assert coins._writers.used == 0


async def test_a_statement_is_stopped_when_it_takes_longer_than_the_setting(
    database_url: str, telemetry: Telemetry
) -> None:
    # A second: a session that is idle in its transaction for twice as long is ended, however busy its process is.
    database = Database(database_url, telemetry=telemetry, statement_timeout=1.0)
    endless = {
        "postgresql": "SELECT pg_sleep(60)",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
    }[database.dialect]
    with pytest.raises(DeadlineExceeded, match="longer than it may"):
        async with database.transaction() as tx:
            await tx.execute(text(endless))
    async with database.transaction() as tx:
        assert await tx.scalar(text("SELECT 1")) == 1
    await database.close()


async def test_nothing_is_asked_once_the_deadline_has_passed(coins: Database, coin: type[Any], count: Count) -> None:
    with pytest.raises(DeadlineExceeded):
        async with coins.transaction() as tx:
            tx.add(coin(id=1, name="x"))
            await tx.flush()
            with deadline_within(-1):
                await tx.execute(text("SELECT 1"))
    assert await count(coins) == 0
    with deadline_within(-1), pytest.raises(DeadlineExceeded):
        await coins.ping()


async def test_the_time_out_of_later_statements_shrinks_with_the_deadline(coins: Database) -> None:
    if coins.dialect == "sqlite":
        pytest.skip("SQLite's limit is set anew with every statement")

    async def in_force(tx: Transaction) -> int:
        return int(await tx.scalar(text("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")))

    async with coins.transaction() as tx:
        assert await in_force(tx) == 30_000
    with deadline_within(20):
        async with coins.transaction() as tx:
            assert 15_000 < await in_force(tx) <= 20_000
            with deadline_within(5):
                assert 0 < await in_force(tx) <= 5_000
    async with coins.transaction() as tx:
        assert await in_force(tx) == 30_000


async def now(tx: Transaction, plus: float) -> datetime:
    found: datetime | None = await tx.scalar(select(database_now(plus)))
    assert found is not None
    return found


async def test_the_clock_of_the_database_moves_inside_a_transaction_and_is_in_utc(coins: Database) -> None:
    async with coins.transaction() as tx:
        first = await now(tx, 0)
        await asyncio.sleep(0.01)
        second, later, sooner = await now(tx, 0), await now(tx, 90.5), await now(tx, -90.5)
    assert first < second
    assert second.tzinfo is not None
    assert abs(second - datetime.now(UTC)) < timedelta(seconds=30)
    assert timedelta(seconds=90) < later - second < timedelta(seconds=95)
    assert timedelta(seconds=85) < second - sooner < timedelta(seconds=91)


NAIVE = datetime(2026, 1, 2)  # noqa: DTZ001  what it is about


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012  SQLAlchemy's own form


class ReadingRow(Base):
    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal | None]
    price: Mapped[Decimal | None] = mapped_column(Numeric(15, 7))
    at: Mapped[datetime | None]
    local: Mapped[datetime | None] = mapped_column(DateTime())


async def test_decimals_and_times_come_back_as_they_went_in(database: Database) -> None:
    await create_tables(database, Base.metadata)
    lagos = timezone(timedelta(hours=1))
    at = datetime(2026, 3, 1, 0, 30, 0, 123456, tzinfo=lagos)
    async with database.transaction() as tx:
        tx.add(ReadingRow(id=1, amount=Decimal("12345678.9012345"), price=Decimal("0.1"), at=at, local=None))
        tx.add(ReadingRow(id=2, amount=Decimal("-9"), price=Decimal("90000000.1234567"), local=NAIVE))
        tx.add(ReadingRow(id=3, price=Decimal("0.2")))
    async with database.transaction(read_only=True) as tx:
        one, two, three = await tx.scalars(select(ReadingRow).order_by(ReadingRow.id))
        assert (one.amount, one.price) == (Decimal("12345678.9012345"), Decimal("0.1"))
        assert one.at == at
        assert one.at.utcoffset() == timedelta(0)
        assert (two.amount, two.price, two.local) == (Decimal("-9"), Decimal("90000000.1234567"), NAIVE)
        assert (three.amount, three.at) == (None, None)
        assert isinstance(one.amount, Decimal)
        assert str(one.price) == "0.1000000"
        assert await tx.scalar(select(func.sum(ReadingRow.price))) == Decimal("90000000.4234567")
        smaller = select(ReadingRow.id).where(ReadingRow.price < Decimal("0.15"))
        assert await tx.scalars(smaller) == [1]
        before = select(ReadingRow.id).where(ReadingRow.at < datetime(2026, 3, 1, tzinfo=UTC))
        assert await tx.scalars(before) == [1]
        assert await tx.scalar(select(ReadingRow.id).where(ReadingRow.at < database_now())) == 1


async def test_a_time_without_its_zone_is_refused_where_one_belongs(database: Database) -> None:
    await create_tables(database, Base.metadata)
    for values in ({"at": NAIVE}, {"local": datetime(2026, 1, 1, tzinfo=UTC)}):
        with pytest.raises(StatementError, match="time zone"):
            async with database.transaction() as tx:
                tx.add(ReadingRow(id=1, **values))


async def test_a_database_in_memory_is_one_database(telemetry: Telemetry, coin: type[Any], count: Count) -> None:
    database = Database("sqlite+aiosqlite://", telemetry=telemetry)
    await database.start()
    await create_tables(database, coin.metadata)

    async def work(tx: Transaction, number: int) -> None:
        tx.add(coin(id=number, name="x"))

    def one(number: int) -> Callable[[Transaction], Awaitable[None]]:
        return lambda tx: work(tx, number)

    await asyncio.gather(*(database.run(one(number)) for number in range(20)))
    assert await count(database) == 20
    await database.close()
