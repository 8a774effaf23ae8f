"""From a committed row to its effect in another service's database, over a real Valkey that is killed on the way."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.bus import ConsumerRuntime, Delivery, Subscription, connect
from microkit.db import Transaction
from microkit.message import Event
from microkit.outbox import effect_once
from microkit.outbox.tables import PUBLISHED
from microkit.servers.valkey import ValkeyServer
from microkit.telemetry import Telemetry
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio

KEYS = 7
PATIENCE = 60

effects = sa.Table(
    "effect", sa.MetaData(), sa.Column("place", sa.Integer, primary_key=True), sa.Column("number", sa.Integer)
)


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int


@pytest.fixture
def server() -> Any:
    with valkey(durable=True) as running:  # else a kill may take what was confirmed
        yield running


@pytest.fixture
async def ledger(box: Any) -> Any:
    async with box.database.engine.begin() as connection:
        await connection.run_sync(effects.metadata.create_all)
    return box.database


async def numbers_of(database: Any) -> list[int]:
    async with database.transaction(read_only=True) as tx:
        return list(await tx.scalars(sa.select(effects.c.number).order_by(effects.c.place)))


def member(database: Any, bus: Any, name: str) -> ConsumerRuntime:
    """A process of the consuming service, as far as the bus can tell."""

    async def handle(delivery: Delivery) -> None:
        event = BillPaid.from_message(delivery.message)

        async def work(event: BillPaid, tx: Transaction) -> None:
            await tx.execute(sa.insert(effects).values(number=event.number))

        await effect_once(database, delivery.group, delivery.message, partial(work, event))

    runtime = ConsumerRuntime(bus, Telemetry(name))
    runtime.add(Subscription("ledger", ("billing.bills",), handle, backoff=0.01, longest_backoff=0.1))
    return runtime


async def test_each_event_has_its_effect_once_and_in_order_though_the_broker_is_killed(
    box: Any, ledger: Any, server: ValkeyServer
) -> None:
    total = 400
    url = f"{server.url}?lease=1s"
    buses = [connect(url) for _ in range(3)]
    for bus in buses:
        await bus.start()
    members = [member(ledger, buses[0], "one"), member(ledger, buses[1], "two")]
    for each in members:
        await each.start()
    relay = await box.relay(buses[2])
    for start in range(0, total, 20):
        await box.publish_numbers(range(start, start + 20), keys=KEYS)
        if start in (100, 240):
            await asyncio.to_thread(server.restart)
    async with asyncio.timeout(PATIENCE):
        while len(await numbers_of(ledger)) < total:
            await asyncio.sleep(0.05)
        while set(await box.states()) != {PUBLISHED}:
            await asyncio.sleep(0.05)
    await relay.stop(5)
    for each in members:
        await each.stop(5)
    for bus in buses:
        await bus.close()
    found = await numbers_of(ledger)
    assert sorted(found) == list(range(total))
    lanes: dict[int, list[int]] = defaultdict(list)
    for number in found:
        lanes[number % KEYS].append(number)
    assert all(lane == sorted(lane) for lane in lanes.values())


async def test_an_event_of_a_rolled_back_transaction_is_never_seen(box: Any, ledger: Any, redis_url: str) -> None:
    bus = connect(redis_url)
    await bus.start()
    runtime = member(ledger, bus, "one")
    await runtime.start()
    await box.relay(bus)
    with pytest.raises(ZeroDivisionError):
        async with box.database.transaction() as tx:
            tx.publish(BillPaid(bill="1", number=1))
            raise ZeroDivisionError
    await box.publish_numbers([2])
    async with asyncio.timeout(PATIENCE):
        while await numbers_of(ledger) != [2]:
            await asyncio.sleep(0.02)
    assert sum(part.waiting for part in await bus.lag("ledger", ["billing.bills"])) <= 1  # type: ignore[attr-defined]
    await runtime.stop(5)
    await bus.close()
