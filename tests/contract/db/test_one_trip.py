"""A row and its events in one round trip: the same effect as in four, or else four."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from asyncpg.prepared_stmt import PreparedStatement  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import ForeignKey, Identity, Text, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.context import deadline_within
from microkit.db import CommitUnknown, Database, PreparedInsert, Transaction
from microkit.db.migration import create_tables
from microkit.db.one_trip import MOST
from microkit.db.postgresql import PostgresConnection
from microkit.errors import DeadlineExceeded
from microkit.message import Event
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase): ...


class BillRow(Base):
    __tablename__ = "bill"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(Text)


class LineRow(Base):
    __tablename__ = "line"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bill_id: Mapped[int] = mapped_column(ForeignKey("bill.id"))


class NumberedRow(Base):
    __tablename__ = "numbered"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note: Mapped[str]


class SentRow(Base):
    __tablename__ = "sent"

    seq: Mapped[int] = mapped_column(Identity(), primary_key=True)
    bill_id: Mapped[int]


class BillCreated(Event, topic="test.bills", key="bill_id"):
    bill_id: int


SENT = PreparedInsert(insert(SentRow), ["bill_id"])


async def write(tx: Transaction, events: Sequence[Any]) -> None:
    await tx.insert(SENT, [{"bill_id": event.bill_id} for event, _ in events])


@pytest.fixture
async def bills(postgres_url: str, telemetry: Telemetry) -> AsyncIterator[Database]:
    database = Database(postgres_url, telemetry=telemetry)
    await create_tables(database, Base.metadata)
    database.outbox_writer = write
    yield database
    await database.close()


@pytest.fixture
def sent(bills: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that went to the server, each a round trip."""
    seen: list[str] = []
    execute, executemany, fetch = PostgresConnection.execute, PostgresConnection.executemany, PreparedStatement.fetch

    async def executed(connection: Any, query: str, *arguments: Any) -> Any:
        seen.append(query)
        return await execute(connection, query, *arguments)

    async def executed_many(connection: Any, query: str, arguments: Any) -> Any:
        seen.append(query)
        return await executemany(connection, query, arguments)

    async def fetched(statement: Any, *arguments: Any) -> Any:
        seen.append(statement.get_query())
        return await fetch(statement, *arguments)

    monkeypatch.setattr(PostgresConnection, "execute", executed)
    monkeypatch.setattr(PostgresConnection, "executemany", executed_many)
    monkeypatch.setattr(PreparedStatement, "fetch", fetched)
    return seen


async def everything(bills: Database) -> tuple[list[int], list[int]]:
    async with bills.transaction(read_only=True) as tx:
        rows = list(await tx.scalars(select(BillRow.id).order_by(BillRow.id)))
        return rows, list(await tx.scalars(select(SentRow.bill_id).order_by(SentRow.seq)))


def words(sent: list[str]) -> list[str]:
    return [" ".join(query.split()[:1]).rstrip(";") for query in sent]


async def test_a_row_and_its_events_are_one_round_trip(bills: Database, sent: list[str]) -> None:
    await bills.ping()
    sent.clear()
    for number in range(3):
        async with bills.transaction() as tx:
            tx.add(BillRow(id=number, note="it's $1, 'quoted'"))
            tx.publish(BillCreated(bill_id=number), BillCreated(bill_id=-number))
    assert words(sent) == ["WITH"] * 3
    assert await everything(bills) == ([0, 1, 2], [0, 0, 1, -1, 2, -2])


async def test_the_events_of_a_transaction_are_numbered_in_their_order(bills: Database) -> None:
    for first in range(0, 80, MOST):
        async with bills.transaction() as tx:
            tx.add(BillRow(id=first, note="x"))
            tx.publish(*(BillCreated(bill_id=number) for number in range(first, first + MOST)))
    assert (await everything(bills))[1] == list(range(80))


async def test_a_row_alone_and_an_event_alone_are_one_round_trip(bills: Database, sent: list[str]) -> None:
    await bills.ping()
    sent.clear()
    async with bills.transaction() as tx:
        tx.add(BillRow(id=1, note="x"))
    async with bills.transaction() as tx:
        tx.publish(BillCreated(bill_id=1))
    assert words(sent) == ["INSERT", "INSERT"]
    assert await everything(bills) == ([1], [1])


async def test_signals_come_after_it(bills: Database) -> None:
    async with bills.transaction() as tx:
        tx.add(BillRow(id=1, note="x"))
        tx.wake("outbox")
    assert await bills.signal("outbox").wait(0)


async def test_what_raises_before_its_end_sends_nothing(bills: Database, sent: list[str]) -> None:
    with pytest.raises(RuntimeError):
        async with bills.transaction() as tx:
            tx.add(BillRow(id=1, note="x"))
            raise RuntimeError
    assert sent == []


async def test_an_outbox_that_refuses_takes_the_row_back(bills: Database, sent: list[str]) -> None:
    async def refuse(tx: Transaction, events: Sequence[Any]) -> None:
        await tx.flush()
        raise ValueError("too large")

    bills.outbox_writer = refuse
    with pytest.raises(ValueError, match="too large"):
        async with bills.transaction() as tx:
            tx.add(BillRow(id=1, note="x"))
            tx.publish(BillCreated(bill_id=1))
    assert await everything(bills) == ([], [])
    assert bills._writers.used == 0


async def test_a_constraint_refuses_row_and_events_together(bills: Database) -> None:
    async def work(tx: Transaction) -> None:
        tx.add(BillRow(id=1, note="x"))
        tx.publish(BillCreated(bill_id=1))

    await bills.run(work)
    with pytest.raises(IntegrityError, match="bill_pkey"):
        await bills.run(work)
    assert await everything(bills) == ([1], [1])
    assert bills._writers.used == 0


async def after_a_read(tx: Transaction) -> None:
    await tx.scalar(select(BillRow.id))
    tx.add(BillRow(id=1, note="x"))
    tx.publish(BillCreated(bill_id=1))


async def after_a_flush(tx: Transaction) -> None:
    tx.add(BillRow(id=1, note="x"))
    await tx.flush()
    tx.publish(BillCreated(bill_id=1))


async def two_tables(tx: Transaction) -> None:
    tx.add(BillRow(id=1, note="x"))
    tx.add(LineRow(id=1, bill_id=1))
    tx.publish(BillCreated(bill_id=1))


async def two_rows(tx: Transaction) -> None:
    tx.add_all([BillRow(id=1, note="x"), BillRow(id=2, note="y")])
    tx.publish(BillCreated(bill_id=1))


async def a_number_from_the_server(tx: Transaction) -> None:
    tx.add(BillRow(id=1, note="x"))
    tx.add(NumberedRow(note="x"))
    tx.publish(BillCreated(bill_id=1))


async def an_expression(tx: Transaction) -> None:
    tx.add(BillRow(id=1, note=select(text("'quoted $1'")).scalar_subquery()))
    tx.publish(BillCreated(bill_id=1))


async def many_events(tx: Transaction) -> None:
    tx.add(BillRow(id=1, note="x"))
    tx.publish(*(BillCreated(bill_id=1) for _ in range(20)))


@pytest.mark.parametrize(
    "work", [after_a_read, after_a_flush, two_tables, two_rows, a_number_from_the_server, an_expression, many_events]
)
async def test_anything_else_is_sent_one_by_one_and_in_order(
    bills: Database, sent: list[str], work: Callable[[Transaction], Awaitable[None]]
) -> None:
    await bills.ping()
    sent.clear()
    await bills.run(work)
    assert words(sent)[0].startswith("BEGIN")
    assert words(sent)[-1] == "COMMIT"
    tables = [query.split()[2] for query in sent if query.startswith("INSERT")]
    assert tables[0] in ("bill", "numbered")
    assert tables[-1] == "sent"
    rows, events = await everything(bills)
    assert rows[0] == 1
    assert set(events) == {1}


async def test_a_refusal_of_what_was_held_comes_out_where_it_is_sent(bills: Database) -> None:
    async with bills.transaction() as tx:
        tx.add(BillRow(id=1, note="x"))
    with pytest.raises(IntegrityError):
        async with bills.transaction() as tx:
            tx.add(BillRow(id=1, note="x"))
            tx.add(LineRow(id=1, bill_id=1))
    assert bills._writers.used == 0
    async with bills.transaction() as tx:
        tx.add(LineRow(id=1, bill_id=1))


async def lock(bills: Database) -> str:
    return "LOCK TABLE bill IN ACCESS EXCLUSIVE MODE"


async def test_it_is_stopped_when_the_deadline_passes_and_the_next_one_is_not(bills: Database, sent: list[str]) -> None:
    async with bills.transaction() as holder:
        await holder.execute(text(await lock(bills)))
        with pytest.raises(DeadlineExceeded), deadline_within(0.1):
            async with bills.transaction() as tx:
                tx.add(BillRow(id=1, note="x"))
    sent.clear()
    for number in range(2, 5):
        with deadline_within(10):
            async with bills.transaction() as tx:
                tx.add(BillRow(id=number, note="x"))
    assert words(sent).count("SET") <= 1
    assert (await everything(bills))[0] == [2, 3, 4]


async def waiting(bills: Database) -> None:
    found = None
    while not found:
        await asyncio.sleep(0.01)
        async with bills.transaction(read_only=True) as tx:
            found = await tx.scalar(
                text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%'")
            )


async def test_a_connection_lost_meanwhile_leaves_it_unknown(bills: Database) -> None:
    tries = 0

    async def work(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        tx.add(BillRow(id=1, note="x"))

    async with bills.transaction() as holder:
        await holder.execute(text(await lock(bills)))
        task = asyncio.create_task(bills.run(work))
        await waiting(bills)
        await holder.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        )
        with pytest.raises(CommitUnknown):
            await task
    assert tries == 1
    assert bills._writers.used == 0


async def test_it_is_finished_although_cancelled(bills: Database) -> None:
    called: list[int] = []

    async def work(tx: Transaction) -> None:
        tx.add(BillRow(id=1, note="x"))
        tx.after_commit(lambda: called.append(1))

    async with bills.transaction() as holder:
        await holder.execute(text(await lock(bills)))
        task = asyncio.create_task(bills.run(work))
        await waiting(bills)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == [1]
    assert (await everything(bills))[0] == [1]


async def test_an_administrators_cancel_is_an_error_and_no_time_out(bills: Database) -> None:
    async def work(tx: Transaction) -> None:
        tx.add(BillRow(id=1, note="x"))

    async with bills.transaction() as holder:
        await holder.execute(text(await lock(bills)))
        task = asyncio.create_task(bills.run(work))
        await waiting(bills)
        await holder.execute(text("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        with pytest.raises(DBAPIError, match="user request"):
            await task
    assert (await everything(bills))[0] == []


async def test_sixteen_at_once_lose_nothing(bills: Database) -> None:
    async def work(tx: Transaction, number: int) -> None:
        tx.add(BillRow(id=number, note="x"))
        tx.publish(BillCreated(bill_id=number))

    async def worker(first: int) -> None:
        for number in range(first, 320, 16):
            await bills.run(lambda tx: work(tx, number))  # noqa: B023  it is awaited here

    await asyncio.gather(*(worker(first) for first in range(16)))
    rows, events = await everything(bills)
    assert rows == list(range(320))
    assert sorted(events) == list(range(320))
