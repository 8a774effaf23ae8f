"""A database with the outbox's tables, and relays on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.bus import Bus, MemoryBus
from microkit.db import Database
from microkit.message import Event
from microkit.outbox import Relay, RelayOptions, install
from microkit.outbox.tables import metadata, outbox
from microkit.telemetry import Telemetry
from microkit.testing.faulty_bus import FaultyBus

SOURCE = "billing"

OPTIONS = RelayOptions(lease=3.0, poll=0.05, backoff=0.01, longest_backoff=0.02)


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int


@dataclass
class Outbox:
    """A service's database with its outbox. ``open`` opens it again, as another process would."""

    database: Database
    reopen: Callable[[], Awaitable[Database]]
    relays: list[Relay] = field(default_factory=list)

    async def publish(self, *events: Event) -> None:
        async with self.database.transaction() as tx:
            tx.publish(*events)

    async def publish_numbers(self, numbers: Sequence[int], *, keys: int = 1) -> None:
        await self.publish(*[BillPaid(bill=str(number % keys), number=number) for number in numbers])

    async def relay(self, bus: Bus, *, database: Database | None = None, start: bool = True, **changes: Any) -> Relay:
        relay = Relay(
            database or self.database,
            bus,
            Telemetry(f"relay {len(self.relays)}"),
            source=SOURCE,
            options=replace(OPTIONS, **changes),
        )
        self.relays.append(relay)
        if start:
            await relay.start()
        return relay

    async def states(self) -> list[int]:
        """The state of each row, by number."""
        async with self.database.transaction(read_only=True) as tx:
            return list(await tx.scalars(sa.select(outbox.c.state).order_by(outbox.c.seq)))

    async def rows(self) -> Sequence[sa.Row[Any]]:
        async with self.database.transaction(read_only=True) as tx:
            return (await tx.execute(sa.select(outbox).order_by(outbox.c.seq))).all()

    async def change(self, *statements: sa.Executable) -> None:
        async with self.database.transaction() as tx:
            for statement in statements:
                await tx.execute(statement)


@pytest.fixture
async def box(database: Database, database_url: str) -> AsyncIterator[Outbox]:
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    install(database, SOURCE)
    opened: list[Database] = []

    async def reopen() -> Database:
        again = Database(database_url, telemetry=Telemetry("another process"))
        await again.start()
        install(again, SOURCE)
        opened.append(again)
        return again

    box = Outbox(database, reopen)
    yield box
    for relay in box.relays:
        await relay.stop(0)
    for again in opened:
        await again.close()


@pytest.fixture
async def broker() -> AsyncIterator[FaultyBus]:
    bus = FaultyBus()
    await bus.start()
    yield bus
    bus.open.set()
    await bus.close()


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    await bus.start()
    yield bus
    await bus.close()
