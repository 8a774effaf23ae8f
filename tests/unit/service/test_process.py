"""A flow that three services make by answering each other's events, followed by a fourth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from microkit import ANYONE, Event, Process, Service, System, Transaction
from microkit.choreography.view import ProcessStory, show_processes
from microkit.message import Message
from microkit.testing.system import SystemUnderTest, run_system

pytestmark = pytest.mark.anyio


class BookingRequested(Event, topic="web.bookings", key="booking_id"):
    booking_id: str


class SeatHeld(Event, topic="fleet.seats", key="seat"):
    seat: int
    booking_id: str


class TicketIssued(Event, topic="till.tickets", key="booking_id"):
    booking_id: str


booking = Process(
    "booking",
    by="booking_id",
    events=[BookingRequested, SeatHeld, TicketIssued],
    ends=[TicketIssued],
    stuck_after=0.3,
)

web = Service("web", tables=MetaData())  # it handles no event, and publishes all the same
fleet, till, desk = Service("fleet"), Service("till"), Service("desk")
desk.process(booking)


@web.post("/bookings/{booking_id}", allow=ANYONE)
async def book(booking_id: str, tx: Transaction) -> None:
    tx.publish(BookingRequested(booking_id=booking_id))


@fleet.on(BookingRequested)
async def hold(event: BookingRequested, tx: Transaction) -> None:
    tx.publish(SeatHeld(seat=7, booking_id=event.booking_id))


@till.on(SeatHeld)
async def issue(event: SeatHeld, tx: Transaction) -> None:
    if not event.booking_id.startswith("odd"):
        tx.publish(TicketIssued(booking_id=event.booking_id))


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path, database_url: str) -> AsyncIterator[SystemUnderTest]:
    settings = {"desk": {"database_url": database_url}}
    async with run_system(System("travel", [web, fleet, till, desk]), tmp_path, settings=settings) as started:
        yield started


async def until(running: SystemUnderTest, id_: str, right: Callable[[ProcessStory], bool]) -> ProcessStory:
    async with asyncio.timeout(60):
        while True:
            async with running["desk"].database.transaction(read_only=True) as tx:
                found = await show_processes(tx, id_, [booking])
            if found and right(found[0]):
                return found[0]
            await asyncio.sleep(0.02)


async def test_where_a_booking_is_is_known_though_nobody_orchestrates_it(running: SystemUnderTest) -> None:
    session = running["desk"].parts.session
    for id_ in ("good", "odd"):
        async with session.post(f"{running.urls['web']}/bookings/{id_}") as answer:
            assert answer.status == 200

    good = await until(running, "good", lambda story: story.status == "ended")
    odd = await until(running, "odd", lambda story: len(story.events) == 2 and story.status == "stuck")

    assert [(each.event, each.source) for each in good.events] == [
        ("web.bookings.BookingRequested", "web"),
        ("fleet.seats.SeatHeld", "fleet"),
        ("till.tickets.TicketIssued", "till"),
    ]
    assert len({each.trace_id for each in good.events}) == 1, "one trace goes through the whole process"
    assert odd.awaits == ["till.tickets.TicketIssued"]
    async with session.get(f"{running.urls['desk']}/metrics") as answer:
        metrics = await answer.text()
    assert 'microkit_process_duration_seconds_count{event="till.tickets.TicketIssued",process="booking"} 1.0' in metrics
    async with session.get(f"{running.urls['desk']}/asyncapi.json") as answer:
        assert answer.status == 200
        assert "till.tickets" in await answer.text()


async def test_copies_and_bad_events_on_the_bus_do_not_disturb_it(running: SystemUnderTest) -> None:
    for _ in range(3):
        await running.publish(TicketIssued(booking_id="copied"), source="till", message_id="one")
    bad = BookingRequested(booking_id="x" * 300).to_message("web")
    await running.running.bus.publish([bad, Message(bad.topic, "k", b"not JSON", bad.headers)])
    await running.publish(BookingRequested(booking_id="copied"), source="web")

    # The seat is held for it. Topics keep no order among each other: the ticket may be seen before the seat.
    story = await until(running, "copied", lambda story: len(story.events) >= 3 and not story.missing)
    assert sum(each.source == "till" and each.event_id == "one" for each in story.events) == 1
    assert story.missing == []
