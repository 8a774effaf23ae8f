"""The consumer runtime and the inbox on a bus in memory that fails on purpose."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.bus import Bus, ConsumerRuntime, Delivery, Promises, Subscription, connect
from microkit.bus.faults import Faults, FaultyMemoryBus
from microkit.db import Transaction
from microkit.errors import ConfigurationError
from microkit.message import Event
from microkit.outbox import effect_once
from microkit.outbox.tables import metadata
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import BusSuite, until

pytestmark = pytest.mark.anyio

KEYS = 11
TOTAL = 120
MOST = 3_000
ALL = "drop_ack:0.1,duplicate:0.2,reorder:0.7,stall:0.1,crash:0.1"

effects = sa.Table(
    "effect", sa.MetaData(), sa.Column("place", sa.Integer, primary_key=True), sa.Column("number", sa.Integer)
)


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int


def message(number: int) -> Any:
    event = BillPaid(bill=str(number % KEYS), number=number)
    return event.to_message("billing", message_id=str(number))


@pytest.mark.parametrize("faults", ["drop_ack:0.3", "duplicate:0.5", "reorder:1", "stall:0.3", "crash:0.15", ALL])
async def test_every_effect_is_there_once_and_in_order(database: Any, telemetry: Telemetry, faults: str) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.run_sync(effects.metadata.create_all)
    bus = connect(f"memory://?faults={faults}&seed=7")
    assert isinstance(bus, FaultyMemoryBus)
    await bus.start()

    async def handle(delivery: Delivery) -> None:
        event = BillPaid.from_message(delivery.message)

        async def work(event: BillPaid, tx: Transaction) -> None:
            await tx.execute(sa.insert(effects).values(number=event.number))

        await effect_once(database, delivery.group, delivery.message, partial(work, event))

    members = [ConsumerRuntime(bus, Telemetry(name)) for name in ("one", "two")]
    for each in members:
        each.add(Subscription("ledger", (BillPaid.event_topic,), handle, attempts=1_000, backoff=0.01))
        await each.start()
    chosen = [fault.partition(":")[0] for fault in faults.split(",")]
    total = 0
    while total < TOTAL or (total < MOST and not all(bus.met[fault] for fault in chosen)):
        await bus.publish([message(number) for number in range(total, total + 10)])
        total += 10
        await asyncio.sleep(0.005)

    async def waiting() -> int:
        return sum(part.waiting for part in await bus.lag("ledger", [BillPaid.event_topic]))

    async with asyncio.timeout(60):
        while await waiting():
            await asyncio.sleep(0.02)
    for each in members:
        await each.stop(5)
    async with database.transaction(read_only=True) as tx:
        found = list(await tx.scalars(sa.select(effects.c.number).order_by(effects.c.place)))
    await bus.close()
    assert sorted(found) == list(range(total))
    lanes: dict[int, list[int]] = defaultdict(list)
    for number in found:
        lanes[number % KEYS].append(number)
    assert all(lane == sorted(lane) for lane in lanes.values())
    assert all(bus.met[fault] for fault in chosen), f"not all happened: {bus.met}"


class TestFaultyMemoryBus(BusSuite):
    """Faults that an adapter may show anyway break none of its promises."""

    promises = Promises(persistent=False, ordered=True, groups=True, redelivers=True, history=False)

    async def connect(self) -> Bus:
        return FaultyMemoryBus(Faults(reorder=0.5, stall=0.02))


async def test_a_seed_repeats_what_happens() -> None:
    first, second, other = (FaultyMemoryBus(Faults(crash=0.5), seed=seed) for seed in (7, 7, 8))
    runs = [[bus.happens("crash") for _ in range(50)] for bus in (first, second, other)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "query",
    [
        "faults=crash",
        "faults=crash:2",
        "faults=crash:nan",
        "faults=fire:1",
        "faults=",
        "speed=1",
        "faults=crash:1&seed=x",
    ],
)
async def test_faults_that_cannot_be_read_are_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match="bus_url"):
        connect(f"memory://?{query}")


async def test_a_member_that_dies_leaves_what_it_had_to_others() -> None:
    bus = FaultyMemoryBus(Faults(crash=0.2), seed=3)
    await bus.start()
    consumer = await bus.subscribe("shop", ["billing.bills"])
    await bus.publish([message(number) for number in range(40)])
    seen: list[int] = []

    async def read() -> None:
        while True:
            try:
                got = await consumer.fetch(7, 0.1)
            except ConnectionError:
                continue
            seen.extend(int(delivery.message.id) for delivery in got)
            await consumer.ack(got[:3])

    reading = asyncio.create_task(read())
    await until(lambda: len(set(seen)) == 40, lambda: f"{len(set(seen))} of 40 arrived")
    reading.cancel()
    assert bus.met["crash"]
    assert len(seen) > 40, "nothing came again"
    await bus.close()
