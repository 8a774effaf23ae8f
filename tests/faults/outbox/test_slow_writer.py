"""A writer that holds its transaction open while thousands commit after it: its event has an early number, and is late.

``MICROKIT_FAULTS=full`` holds it open for a minute.
"""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import sqlalchemy as sa

from microkit.db import Database
from microkit.message import Event
from microkit.outbox import Relay, RelayOptions, install
from microkit.outbox.tables import PUBLISHED, metadata, outbox
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import until
from microkit.testing.faulty_bus import FaultyBus

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
OPEN = 60.0 if FULL else 2.0
TOGETHER = 50
SLOW = "slow"


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int


async def test_its_event_arrives_and_nothing_is_lost(postgres_url: str) -> None:
    database, other = (Database(postgres_url, telemetry=Telemetry(name)) for name in ("billing", "slow"))
    for each in (database, other):
        await each.start()
        install(each, "billing")
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    broker = FaultyBus()
    relays = [
        Relay(each, broker, Telemetry(name), source="billing", options=RelayOptions(batch=100, lease=3.0))
        for name, each in (("one", database), ("two", other))
    ]
    for relay in relays:
        await relay.start()

    committed = 0
    async with other.transaction() as tx:
        await tx.execute(sa.text("SELECT 1"))  # else the event would be held back until COMMIT
        tx.publish(BillPaid(bill=SLOW, number=-1))
        await tx.prepare()
        for _ in range(5):  # no statement for longer than a session may be idle in its transaction
            until_then = asyncio.get_running_loop().time() + OPEN / 5
            while asyncio.get_running_loop().time() < until_then or committed < 2000:
                events = [
                    BillPaid(bill=str(number % 40), number=number) for number in range(committed, committed + TOGETHER)
                ]
                async with database.transaction() as fast:
                    fast.publish(*events)
                committed += TOGETHER
                if FULL:
                    await asyncio.sleep(0.02)
            await tx.execute(sa.text("SELECT 1"))
        await until(lambda: len(broker.published) == committed, lambda: f"{len(broker.published)} of {committed}")
    await until(lambda: len(broker.published) == committed + 1, lambda: "its event did not arrive")

    found = [json.loads(message.value)["number"] for message in broker.published]
    assert found[-1] == -1
    assert sorted(found) == list(range(-1, committed))
    for key in range(40):
        lane = [number for number in found[:-1] if number % 40 == key]
        assert lane == sorted(lane)
    for relay in relays:
        await relay.stop(10)
    async with database.transaction(read_only=True) as tx:
        first = await tx.scalar(sa.select(outbox.c.aggregateid).order_by(outbox.c.seq).limit(1))
        left = await tx.scalar(sa.select(sa.func.count()).select_from(outbox).where(outbox.c.state != PUBLISHED))
    assert (first, left) == (SLOW, 0)
    for each in (database, other):
        await each.close()
