"""A database of an older microkit, with events and sagas under way, is upgraded: all come to their end, once."""

from __future__ import annotations

import asyncio
import os
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import Database, Event, Service, Transaction
from microkit.db.migration import create_tables, migrate, moving
from microkit.db.scripts import MICROKIT
from microkit.outbox import install
from microkit.outbox.tables import outbox
from microkit.saga import Saga, retriable
from microkit.saga.tables import saga

pytestmark = pytest.mark.anyio
in_full = pytest.mark.skipif(os.environ.get("MICROKIT_FAULTS") != "full", reason="the full form of the fault tests")


class Base(DeclarativeBase): ...


class ParcelRow(Base):
    __tablename__ = "parcel"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[UUID]
    what: Mapped[str]


class ParcelSent(Event, topic="parcels.parcels", key="parcel_id"):
    parcel_id: UUID


class Send(BaseModel):
    parcel_id: UUID


async def pack(state: Send, tx: Transaction) -> None:
    tx.add(ParcelRow(id=state.parcel_id, what="packed"))


async def post(state: Send, tx: Transaction) -> None:
    tx.add(ParcelRow(id=state.parcel_id, what="posted"))
    tx.publish(ParcelSent(parcel_id=state.parcel_id))


send = Saga("send", Send, [retriable(pack), retriable(post)])


def parcels() -> Service:
    service = Service("parcels", tables=Base.metadata)
    service.saga(send)

    @service.on(ParcelSent)
    async def see(event: ParcelSent, tx: Transaction) -> None:
        tx.add(ParcelRow(id=event.parcel_id, what="seen"))

    return service


async def what(database: Database) -> dict[UUID, list[str]]:
    async with database.transaction(read_only=True) as tx:
        rows = await tx.scalars(sa.select(ParcelRow).order_by(ParcelRow.number))
    found: dict[UUID, list[str]] = {}
    for row in rows:
        found.setdefault(row.id, []).append(row.what)
    return found


@pytest.mark.parametrize("older", ["0001", pytest.param("0005", marks=in_full)])
async def test_events_and_sagas_of_an_older_version_come_to_their_end_once(
    older: str, database: Database, database_url: str
) -> None:
    install(database, "parcels")
    await migrate(database, None)
    await create_tables(database, Base.metadata)
    told, begun, settled = uuid4(), uuid4(), uuid4()
    settings: dict[str, object] = {"database_url": database_url, "port": 0, "database_pool_timeout": 60.0}
    async with parcels().instance(settings) as instance:  # leaves a saga that has ended, and a row of the inbox
        async with database.transaction() as tx:
            await send.start(tx, Send(parcel_id=settled))
        async with asyncio.timeout(120):
            while (await what(database)).get(settled) != ["packed", "posted", "seen"]:
                await asyncio.sleep(0.05)
        await instance.stop()
    async with database.transaction() as tx:  # nobody is there to go on with these
        tx.publish(ParcelSent(parcel_id=told))
        await send.start(tx, Send(parcel_id=begun))
    async with moving(database, MICROKIT) as move:
        await move(older)
    async with database.engine.connect() as connection:
        for table, kept in ((outbox, 1), (saga, 2), (sa.table("inbox"), 1)):
            assert (await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0) >= kept
    await migrate(database, None)
    async with parcels().instance(settings), asyncio.timeout(120):
        while len([each for done in (await what(database)).values() for each in done]) < 7:
            await asyncio.sleep(0.05)
    found = await what(database)
    assert found == {settled: ["packed", "posted", "seen"], told: ["seen"], begun: ["packed", "posted", "seen"]}
    async with database.transaction(read_only=True) as tx:
        assert {row.status for row in await tx.execute(sa.select(saga.c.status))} == {"completed"}
