"""How a service handles events together, and what it is told about errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import DeadLetter, DefinitionError, Event, Service, System, Transaction
from microkit.bus import Subscription, workers
from microkit.db.failure import StorageFull
from microkit.message import Message
from microkit.outbox.tables import DEAD, inbox, outbox
from microkit.testing.system import SystemUnderTest, run_system

pytestmark = pytest.mark.anyio


class Ordered(Event, topic="shop.orders", key="order"):
    order: str
    pieces: int


class Packed(Event, topic="depot.packed", key="order"):
    order: str


class Base(DeclarativeBase): ...


class Row(Base):
    __tablename__ = "packed"

    id: Mapped[int] = mapped_column(primary_key=True)
    handler: Mapped[str]
    order: Mapped[str]


class Listing(Exception): ...


depot = Service("depot", tables=Base.metadata)
sizes: dict[str, list[int]] = {}


@depot.on(Ordered)
async def pack(event: Ordered, tx: Transaction) -> None:
    if event.pieces < 0:
        raise DeadLetter("no-pieces", f"{event.pieces} of them")
    tx.add(Row(handler="pack", order=event.order))
    tx.publish(Packed(order=event.order))


@depot.on(Ordered, batch=20, wait=0.05)
async def list_them(events: list[Ordered], tx: Transaction) -> None:
    sizes.setdefault("list", []).append(len(events))
    tx.add_all([Row(handler="list", order=event.order) for event in events])


@depot.on(Ordered, ignore=(Listing,))
async def ignore(event: Ordered, tx: Transaction) -> None:
    tx.add(Row(handler="ignore", order=event.order))
    if event.pieces % 2:
        raise Listing


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path) -> AsyncIterator[SystemUnderTest]:
    sizes.clear()
    async with run_system(System("shop", [depot]), tmp_path) as started:
        yield started


def ordered(number: int, pieces: int = 2) -> Message:
    event = Ordered(order=f"{number % 10}", pieces=pieces)
    trace = {"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01"}
    return event.to_message("till", trace=trace, message_id=f"{number}")


async def eventually(running: SystemUnderTest, what: Callable[[Transaction], Awaitable[Any]], wanted: Any) -> None:
    found = None
    async with asyncio.timeout(60):
        while found != wanted:
            async with running.running.instances["depot"].database.transaction(read_only=True) as tx:
                found = await what(tx)
            await asyncio.sleep(0.02)


def rows(handler: str) -> Callable[[Transaction], Awaitable[Any]]:
    return lambda tx: tx.scalar(sa.select(sa.func.count()).select_from(Row).where(Row.handler == handler))


async def test_effects_of_several_events_happen_once_each_and_their_events_keep_their_traces(
    running: SystemUnderTest,
) -> None:
    messages = [ordered(number) for number in range(100)]
    await running.running.bus.publish(messages)
    await running.running.bus.publish(messages)  # copies
    await eventually(running, rows("pack"), 100)
    await eventually(running, rows("list"), 100)
    await eventually(running, lambda tx: tx.scalar(sa.select(sa.func.count()).select_from(inbox)), 300)
    database = running.running.instances["depot"].database
    async with database.transaction(read_only=True) as tx:
        headers = await tx.scalars(sa.select(outbox.c.headers).where(outbox.c.type == Packed.event_type))
    assert {int(each["traceparent"].split("-")[1], 16) for each in headers} == set(range(1, 101))
    exposition = running.running.instances["depot"].telemetry.exposition().decode()
    assert 'microkit_consumer_batches_total{messaging_consumer_group_name="depot.pack",outcome="done"}' in exposition
    assert max(sizes["list"]) > 1


async def test_a_bad_event_among_good_ones_is_a_dead_letter_and_the_others_have_their_effects(
    running: SystemUnderTest,
) -> None:
    messages = [ordered(number, -1 if number == 17 else 2) for number in range(40)]
    await running.running.bus.publish(messages)
    await eventually(running, rows("pack"), 39)
    await eventually(
        running,
        lambda tx: tx.scalar(sa.select(outbox.c.error).where(outbox.c.state == DEAD)),
        "-1 of them",
    )


async def test_an_ignored_error_leaves_no_effect_and_is_not_tried_again(running: SystemUnderTest) -> None:
    await running.running.bus.publish([ordered(number, number) for number in range(10)])
    await eventually(running, rows("ignore"), 5)
    await eventually(running, rows("pack"), 10)
    progress = running.running.instances["depot"].parts.consumers
    assert progress is not None
    assert all(group.retrying == 0 for group in progress.progress())


async def test_a_full_disk_is_waited_out_and_held_against_no_message(
    running: SystemUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = running.running.instances["depot"]
    monkeypatch.setattr(Subscription, "delay", lambda *_: 0.0)
    monkeypatch.setattr(workers, "pause", lambda _failures: 0.01)
    full, real = [StorageFull() for _ in range(100)], parts.database.run

    async def run(*arguments: Any, **options: Any) -> Any:
        if full and not options.get("read_only"):
            raise full.pop()
        return await real(*arguments, **options)

    monkeypatch.setattr(parts.database, "run", run)
    await running.running.bus.publish([ordered(number) for number in range(5)])
    await eventually(running, rows("pack"), 5)
    await eventually(running, lambda tx: tx.scalar(sa.select(sa.func.count()).where(outbox.c.state == DEAD)), 0)
    assert not full


async def test_what_cannot_be_meant_is_refused_where_it_is_written(tmp_path: Path) -> None:
    service = Service("twice")

    @service.on(Ordered)
    async def handle(event: Ordered) -> None: ...

    async def other(event: Packed) -> None: ...

    other.__name__ = "handle"
    with pytest.raises(DefinitionError, match="two functions are called handle"):
        service.on(Packed)(other)
    service.on(Packed, group="twice.handle", attempts=3)(other)
    with pytest.raises(Exception, match="different options"):
        async with run_system(System("shop", [service]), tmp_path):
            pass
