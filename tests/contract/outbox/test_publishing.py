"""What is committed is delivered, what is rolled back is never seen, in the order of the commits of a key."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event as sqlalchemy_event

from microkit.db import Database, PreparedInsert, Transaction
from microkit.message import Event, Message
from microkit.outbox.tables import PARKED, PENDING, PUBLISHED, outbox
from microkit.outbox.writer import MOST_BYTES
from microkit.telemetry import Telemetry
from microkit.testing.faulty_bus import FaultyBus
from tests.contract.outbox.arrivals import numbers, published

pytestmark = pytest.mark.anyio


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int = 0
    note: str = ""


async def write(tx: Transaction, events: list[Event]) -> None:
    """Sends the events now, and not just before COMMIT."""
    await tx.execute(sa.text("SELECT 1"))  # else they would be held back until then
    tx.publish(*events)
    await tx.prepare()


async def test_an_event_of_a_rolled_back_transaction_is_never_published(box: Any, broker: FaultyBus) -> None:
    await box.relay(broker)
    with pytest.raises(ZeroDivisionError):
        async with box.database.transaction() as tx:
            tx.publish(BillPaid(bill="1", number=1))
            await write(tx, [BillPaid(bill="1", number=2)])
            raise ZeroDivisionError
    await box.publish(BillPaid(bill="1", number=3))
    await published(broker, 1)
    assert numbers(broker.published) == [3]
    assert len(await box.rows()) == 1


async def test_an_event_of_a_cancelled_transaction_is_never_published(box: Any, broker: FaultyBus) -> None:
    await box.relay(broker)
    inside = asyncio.Event()

    async def cancelled() -> None:
        async with box.database.transaction() as tx:
            await write(tx, [BillPaid(bill="1", number=1)])
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(cancelled())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await box.publish(BillPaid(bill="1", number=2))
    await published(broker, 1)
    assert numbers(broker.published) == [2]


async def test_an_event_arrives_in_its_envelope_with_the_trace_of_its_transaction(
    box: Any, broker: FaultyBus, telemetry: Telemetry
) -> None:
    await box.relay(broker)
    with telemetry.span("pay") as span:
        await box.publish(BillPaid(bill="☂ 1", number=7))
    await published(broker, 1)
    (message,) = broker.published
    assert (message.topic, message.key) == ("billing.bills", "☂ 1")
    assert BillPaid.from_message(message) == BillPaid(bill="☂ 1", number=7)
    trace = span.get_span_context()
    assert message.headers["traceparent"] == f"00-{trace.trace_id:032x}-{trace.span_id:016x}-01"
    assert message.headers["ce_source"] == "billing"
    assert message.headers["ce_type"] == "billing.bills.BillPaid"


async def test_a_row_has_the_columns_that_debezium_routes_by(box: Any) -> None:
    await box.publish(BillPaid(bill="1", number=7))
    (row,) = await box.rows()
    assert (row.aggregatetype, row.aggregateid, row.type) == ("billing.bills", "1", "billing.bills.BillPaid")
    assert row.id == row.headers["ce_id"]
    assert json.loads(row.payload)["number"] == 7
    assert row.state == PENDING


async def test_all_events_of_a_transaction_are_written_by_one_statement(
    box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = PreparedInsert.send

    def seen(statement: PreparedInsert, connection: Any, rows: Any, held: Any) -> None:
        sent.append(len(rows))
        send(statement, connection, rows, held)

    monkeypatch.setattr(PreparedInsert, "send", seen)
    await box.publish(*[BillPaid(bill=str(number), number=number) for number in range(20)])
    assert sent == [20]
    assert numbers([Message("", "", row.payload) for row in await box.rows()]) == list(range(20))


async def test_an_event_that_no_bus_would_take_fails_its_transaction(box: Any) -> None:
    with pytest.raises(ValueError, match="at most 1044480"):
        await box.publish(BillPaid(bill="1", note="x" * MOST_BYTES))
    assert await box.rows() == []


async def test_a_key_that_no_index_takes_is_refused_before_it_blocks_the_outbox(box: Any, broker: FaultyBus) -> None:
    """Where the bus refused such a row, PostgreSQL refused to note that, and the relay sent its neighbours for ever."""
    with pytest.raises(ValueError, match="longer than 1024 bytes"):
        await box.publish(BillPaid(bill="ü" * 513))
    broker.refuse = lambda message: ValueError("no") if len(message.key) > 1 else None
    longest = "".join(chr(random.randrange(0x4E00, 0x9FFF)) for _ in range(341))
    await box.publish(BillPaid(bill="1"), BillPaid(bill=longest))
    await box.relay(broker, attempts=2)
    async with asyncio.timeout(30):
        while await box.states() != [PUBLISHED, PARKED]:
            await asyncio.sleep(0.02)
    assert [message.key for message in broker.published] == ["1"]


async def test_thousands_of_events_arrive_once_and_in_order(box: Any, broker: FaultyBus) -> None:
    await box.relay(broker, batch=100)
    for start in range(0, 2000, 500):
        await box.publish_numbers(range(start, start + 500), keys=13)
    await published(broker, 2000)
    found = numbers(broker.published)
    assert sorted(found) == list(range(2000))
    for key in range(13):
        lane = [number for number in found if number % 13 == key]
        assert lane == sorted(lane)
    await until_all_published(box, 2000)


async def until_all_published(box: Any, number: int) -> None:
    async with asyncio.timeout(60):
        while (await box.states()).count(PUBLISHED) < number:
            await asyncio.sleep(0.02)


# Holes: numbers are given at the insert and become visible at the commit.


class TestHoles:
    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        """SQLite has one writer, and so no holes."""
        return postgres_url

    async def test_a_row_that_is_committed_after_later_ones_is_not_skipped(self, box: Any, broker: FaultyBus) -> None:
        await box.relay(broker)
        slow: Database = await box.reopen()
        async with slow.transaction() as tx:
            await write(tx, [BillPaid(bill="slow", number=1)])
            for number in range(2, 40):
                await box.publish(BillPaid(bill=str(number), number=number))
            await published(broker, 38)
            await until_all_published(box, 38)
        await published(broker, 39)
        assert numbers(broker.published)[-1] == 1
        assert min(row.seq for row in await box.rows()) == next(
            row.seq for row in await box.rows() if row.aggregateid == "slow"
        )

    async def test_writers_that_commit_in_any_order_lose_nothing_under_two_relays(
        self, box: Any, broker: FaultyBus
    ) -> None:
        await box.relay(broker, batch=7)
        await box.relay(broker, database=await box.reopen(), batch=7)

        async def writer(key: int) -> None:
            for number in range(25):
                async with box.database.transaction() as tx:
                    await write(tx, [BillPaid(bill=str(key), number=key * 1000 + number)])
                    await asyncio.sleep(random.uniform(0, 0.01))
                    if random.random() < 0.2:
                        await tx.session.rollback()
                        await write(tx, [BillPaid(bill=str(key), number=key * 1000 + number)])

        await asyncio.gather(*(writer(key) for key in range(12)))
        await published(broker, 12 * 25)
        await until_all_published(box, 12 * 25)
        found = numbers(broker.published)
        assert sorted(found) == [key * 1000 + number for key in range(12) for number in range(25)]
        for key in range(12):
            lane = [number for number in found if number // 1000 == key]
            assert lane == sorted(lane)

    async def test_events_of_one_row_are_in_the_order_of_its_changes(self, box: Any, broker: FaultyBus) -> None:
        """Many transactions change one counter and publish its new value: what arrives counts up."""
        metadata = sa.MetaData()
        counter = sa.Table("counter", metadata, sa.Column("value", sa.Integer))
        async with box.database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(sa.insert(counter).values(value=0))
        await box.relay(broker, batch=3)

        async def increment() -> None:
            async with box.database.transaction() as tx:
                changed = await tx.execute(
                    sa.update(counter).values(value=counter.c.value + 1).returning(counter.c.value)
                )
                value = changed.scalar_one()
                await asyncio.sleep(random.uniform(0, 0.005))
                tx.publish(BillPaid(bill="1", number=value))

        await asyncio.gather(*(increment() for _ in range(60)))
        await published(broker, 60)
        assert numbers(broker.published) == list(range(1, 61))

    async def test_the_oldest_rows_are_found_by_their_index_among_a_mass_of_published_ones(
        self, box: Any, broker: FaultyBus
    ) -> None:
        """With the statistics of a time when everything was pending, too."""
        relay = await box.relay(broker, start=False)
        fill = """
            INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard, created_at)
            SELECT gen_random_uuid(), 't', n::text, 't', '', '{}', n % 16, clock_timestamp()
            FROM generate_series(1, 20000) n"""
        await box.change(sa.text(fill))
        async with box.database.engine.connect() as connection:
            await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(sa.text("ANALYZE outbox"))
        await box.change(sa.update(outbox).values(state=PUBLISHED))
        await box.publish_numbers(range(3))
        plans = [await self._plan(box, relay, held) for held in ([], [1, 2])]
        async with box.database.engine.connect() as connection:
            await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(sa.text("ANALYZE outbox"))
        plans += [await self._plan(box, relay, held) for held in ([], [1, 2])]
        for plan in plans:
            assert "ix_outbox_open" in plan, plan
            assert "outbox_pkey" not in plan, plan
            assert "Seq Scan" not in plan, plan

    async def _plan(self, box: Any, relay: Any, held: list[int]) -> str:
        plan: list[str] = []

        def explain(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            return (f"EXPLAIN {statement}" if "FROM outbox" in statement else statement), parameters

        engine = box.database.engine.sync_engine
        sqlalchemy_event.listen(engine, "before_cursor_execute", explain, retval=True)
        try:
            async with box.database.transaction(read_only=True) as tx:
                statement = relay._queue.next if held else relay._queue.first
                parameters: dict[str, Any] = {"shards": list(range(16)), **({"held": held} if held else {})}
                connection = await tx.session.connection()
                raw = await connection.execute(statement, parameters)
                plan = [row[0] for row in raw.cursor.fetchall()] if raw.cursor else []
        finally:
            sqlalchemy_event.remove(engine, "before_cursor_execute", explain)
        return "\n".join(plan)
