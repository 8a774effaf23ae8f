"""The outbox and a bus that keeps nothing: the row is the only durable copy until every group has acknowledged it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.errors import UndecodableMessage
from microkit.message import Event, Message
from microkit.outbox import burial, effect_once
from microkit.outbox.tables import DEAD, PENDING, PUBLISHED, inbox, outbox, relay_presence, shard_lease
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import receive, until
from microkit.testing.faulty_bus import FaultyBus

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"
GROUP = "ledger"
Consume = Callable[..., Awaitable[ConsumerRuntime]]


class Answer(Event, topic="ledger.answers", key="bill"):
    bill: str
    number: int


def number(message: Message) -> int:
    found: int = json.loads(message.value)["number"]
    return found


async def states_become(box: Any, wanted: list[int]) -> None:
    async with asyncio.timeout(60):
        while await box.states() != wanted:
            await asyncio.sleep(0.02)


@pytest.fixture
async def consume() -> AsyncIterator[Consume]:
    started: list[ConsumerRuntime] = []

    async def start(
        bus: Any, handle: Callable[[Delivery], Awaitable[None]], *, group: str = GROUP, **options: Any
    ) -> ConsumerRuntime:
        runtime = ConsumerRuntime(bus, Telemetry(group), **options)
        runtime.add(Subscription(group, (TOPIC,), handle, attempts=3, backoff=0.01))
        await runtime.start()
        started.append(runtime)
        return runtime

    yield start
    for runtime in started:
        await runtime.stop(1)


async def test_a_row_is_pending_until_every_group_has_acknowledged_it(box: Any, bus: MemoryBus) -> None:
    one, two = await bus.subscribe("one", [TOPIC]), await bus.subscribe("two", [TOPIC])
    await box.relay(bus)
    await box.publish_numbers(range(3), keys=3)
    await receive(one, 3)
    got = await receive(two, 3, ack=False)
    await asyncio.sleep(0.2)
    assert await box.states() == [PENDING] * 3
    await two.ack([delivery for delivery in got if number(delivery.message) == 1])
    await states_become(box, [PENDING, PUBLISHED, PENDING])
    await two.ack(got)
    await states_become(box, [PUBLISHED] * 3)
    assert not await one.fetch(10, 0.2)  # and meanwhile nothing was published twice


async def test_a_row_that_nobody_listens_to_is_done(box: Any, bus: MemoryBus) -> None:
    await box.relay(bus)
    await box.publish_numbers(range(3))
    await states_become(box, [PUBLISHED] * 3)


async def test_what_was_not_settled_is_published_again_after_a_restart_in_its_order(box: Any, bus: MemoryBus) -> None:
    consumer = await bus.subscribe(GROUP, [TOPIC])
    relay = await box.relay(bus)
    await box.publish_numbers(range(10), keys=2)
    got = await receive(consumer, 10, ack=False)
    await consumer.ack([delivery for delivery in got if number(delivery.message) in (0, 1, 2)])
    await states_become(box, [PUBLISHED] * 3 + [PENDING] * 7)
    await relay.stop(5)
    await bus.close()

    again = MemoryBus()
    consumer = await again.subscribe(GROUP, [TOPIC])
    await box.relay(again)
    numbers = [number(delivery.message) for delivery in await receive(consumer, 7)]
    assert sorted(numbers) == list(range(3, 10))
    assert [count for count in numbers if count % 2] == [3, 5, 7, 9]
    await states_become(box, [PUBLISHED] * 10)
    await again.close()


async def test_no_more_rows_are_on_their_way_than_allowed(box: Any, bus: MemoryBus) -> None:
    consumer = await bus.subscribe(GROUP, [TOPIC])
    await box.relay(bus, batch=5, unsettled=10)
    await box.publish_numbers(range(50), keys=50)
    first = await receive(consumer, 10, ack=False)
    assert not await consumer.fetch(10, 0.3)
    await consumer.ack(first)
    assert len(await receive(consumer, 40)) == 40
    await states_become(box, [PUBLISHED] * 50)


async def test_an_effect_happens_once_though_its_message_is_published_again(
    box: Any, bus: MemoryBus, consume: Consume
) -> None:
    happened = sa.Column("happened", sa.Integer, primary_key=True)  # a sequence: rows themselves are in no order
    effects = sa.Table("effect", sa.MetaData(), happened, sa.Column("number", sa.Integer))
    async with box.database.engine.begin() as connection:
        await connection.run_sync(effects.metadata.create_all)
    delivered: list[int] = []

    async def handle(delivery: Delivery) -> None:
        count = number(delivery.message)

        async def work(tx: Any) -> None:
            await tx.execute(sa.insert(effects).values(number=count))

        await effect_once(box.database, GROUP, delivery.message, work)
        delivered.append(count)
        if delivered.count(count) == 1 and count % 3 == 0:
            raise ConnectionError("after the commit, before the acknowledgement")

    await consume(bus, handle)
    await box.relay(bus)
    await box.publish_numbers(range(30), keys=4)
    await states_become(box, [PUBLISHED] * 30)
    async with box.database.transaction(read_only=True) as tx:
        found = list(await tx.scalars(sa.select(effects.c.number).order_by(effects.c.happened)))
    assert sorted(found) == list(range(30))
    assert len(delivered) == 40
    for key in range(4):
        lane = [count for count in found if count % 4 == key]
        assert lane == sorted(lane)


async def test_a_dead_letter_of_a_bus_that_keeps_nothing_is_kept_in_the_outbox(
    box: Any, bus: MemoryBus, consume: Consume
) -> None:
    async def handle(delivery: Delivery) -> None:
        if number(delivery.message) == 1:
            raise UndecodableMessage("unknown-type", "who \0 are \udcff you?")

    await consume(bus, handle, bury=burial(box.database, bus))
    relay = await box.relay(bus)
    await box.publish_numbers(range(3))
    await states_become(box, [PUBLISHED] * 3 + [DEAD])
    original, letter = (await box.rows())[1], (await box.rows())[3]
    assert letter.aggregatetype == f"{TOPIC}.dead-letter"
    assert (letter.aggregateid, letter.type, letter.payload) == (original.aggregateid, original.type, original.payload)
    assert letter.headers.items() >= original.headers.items()
    assert letter.headers["mk_dlq_reason"] == "unknown-type"
    assert letter.headers["mk_dlq_topic"] == TOPIC
    assert letter.error == "who \\0 are \\udcff you?"
    await relay.stop(5)
    await box.relay(bus)
    await asyncio.sleep(0.2)
    assert (await box.states())[3] == DEAD


async def test_a_dead_letter_of_a_message_that_no_column_takes_is_kept(
    box: Any, bus: MemoryBus, consume: Consume
) -> None:
    async def handle(delivery: Delivery) -> None:
        raise AssertionError("never reached")

    await consume(bus, handle, bury=burial(box.database, bus))
    strange = b"\xff\xfe".decode("utf-8", "surrogateescape")
    await bus.publish([Message(TOPIC, "a\0b" + strange, b"\0\xff", {"note": strange, "ce_id": "\0"})])
    await states_become(box, [DEAD])
    (letter,) = await box.rows()
    assert letter.payload == b"\0\xff"
    assert letter.headers["mk_dlq_reason"] == "bad-header"
    assert letter.headers["note"] == "\\udcff\\udcfe"


async def test_a_dead_letter_of_a_bus_that_keeps_is_published_there(box: Any, broker: FaultyBus) -> None:
    bury = burial(box.database, broker)
    await bury(Message(f"{TOPIC}.dead-letter", "1", b"x", {"ce_id": "1"}))
    assert [message.topic for message in broker.published] == [f"{TOPIC}.dead-letter"]
    assert await box.rows() == []


async def test_a_relay_that_lost_its_leases_forgets_what_is_under_way(box: Any, bus: MemoryBus) -> None:
    """Another one publishes it again; what the first hears settled afterwards changes nothing."""
    consumer = await bus.subscribe(GROUP, [TOPIC])
    first = await box.relay(bus, lease=3600.0)
    await box.publish_numbers(range(3))
    got = await receive(consumer, 3, ack=False)
    await box.change(sa.update(shard_lease).values(lease_until=sa.null()), sa.delete(relay_presence))
    second = await box.relay(bus, lease=3600.0, database=await box.reopen())
    await until(lambda: second.health().shards == 16, lambda: "it did not take over")
    first._held_at = float("-inf")
    await consumer.ack(got)
    again = await receive(consumer, 3)
    assert [number(delivery.message) for delivery in again] == [0, 1, 2]
    await states_become(box, [PUBLISHED] * 3)
    await until(lambda: not first._unsettled.seqs, lambda: f"the first still has {first._unsettled.seqs}")


async def test_nothing_is_left_in_the_inbox_or_the_outbox_of_a_rolled_back_effect(
    box: Any, bus: MemoryBus, consume: Consume
) -> None:
    failures = 2

    async def handle(delivery: Delivery) -> None:
        async def work(tx: Any) -> None:
            nonlocal failures
            tx.publish(Answer(bill="9", number=99))
            if failures:
                failures -= 1
                raise ValueError("not yet")

        await effect_once(box.database, GROUP, delivery.message, work)

    await consume(bus, handle)
    await box.relay(bus)
    await box.publish_numbers(range(1))
    await states_become(box, [PUBLISHED] * 2)
    async with box.database.transaction(read_only=True) as tx:
        assert await tx.scalar(sa.select(sa.func.count()).select_from(inbox)) == 1
        answers = sa.select(sa.func.count()).select_from(outbox).where(outbox.c.aggregatetype == "ledger.answers")
        assert await tx.scalar(answers) == 1
