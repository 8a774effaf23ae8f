"""A service whose saga sends a command to another service and waits for its reply, over buses that are real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from microkit import Event, Saga, Service, StepRefused, Transaction, await_event, compensatable, pivot, request
from microkit.bus import connect
from microkit.saga import NO_EFFECT
from microkit.saga.view import SagaStory, show_saga

pytestmark = pytest.mark.anyio


class ReserveSeat(Event, topic="hall.commands", key="person"):
    person: str


class SeatReserved(Event, topic="hall.seats", key="person"):
    person: str
    row: int


class SeatRefused(Event, topic="hall.seats", key="person"):
    person: str


class Paid(Event, topic="bank.payments", key="payment"):
    payment: str


class Booking(BaseModel):
    person: str
    row: int | None = None


def reserve_seat(state: Booking) -> ReserveSeat:
    return ReserveSeat(person=state.person)


async def note_seat(state: Booking, event: SeatReserved | SeatRefused) -> dict[str, Any]:
    if isinstance(event, SeatRefused):
        raise StepRefused("The hall is full")
    return {"row": event.row}


booking = Saga(
    "booking",
    Booking,
    [
        compensatable(
            request(reserve_seat, reply=SeatReserved | SeatRefused, then=note_seat, timeout=60), undo=NO_EFFECT
        ),
        pivot(await_event(Paid, by=("payment", "person"), timeout=60), name="paid"),
    ],
)
box_office = Service("box-office")
box_office.saga(booking)
hall = Service("hall")


@hall.on(ReserveSeat)
async def reserve(event: ReserveSeat, tx: Transaction) -> None:
    """It knows nothing of sagas: whom it answers is in the command's headers, and goes with what it publishes."""
    tx.publish(SeatRefused(person=event.person) if event.person == "eve" else SeatReserved(person=event.person, row=4))


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_saga_gets_its_reply_and_its_event_over_the_bus(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bus = connect("memory://" if kind == "memory" else request.getfixturevalue("redis_url"))
    await bus.start()

    def settings(name: str) -> dict[str, object]:
        url = f"sqlite+aiosqlite:///{tmp_path / name}.db"
        return {"database_url": url, "migrate_on_start": True, "port": 0}

    try:
        async with (
            hall.instance(settings("hall"), bus=bus),
            box_office.instance(settings("box"), bus=bus) as office,
        ):
            database = office.database
            assert database is not None

            async def end(person: str) -> SagaStory:
                saga_id = uuid4()
                await database.run(lambda tx: booking.start(tx, Booking(person=person), saga_id=saga_id))

                async def publish(tx: Transaction) -> None:
                    tx.publish(Paid(payment=person))

                await database.run(publish)  # before anybody waits for it
                async with asyncio.timeout(60):
                    while True:
                        story = await database.run(lambda tx: show_saga(tx, saga_id), read_only=True)
                        if story.status in ("completed", "compensated", "stuck"):
                            return story
                        await asyncio.sleep(0.02)

            ada, eve = await asyncio.gather(end("ada"), end("eve"))
            told = office.telemetry.exposition().decode()
    finally:
        await bus.close()

    assert (ada.status, ada.state["row"]) == ("completed", 4)
    assert eve.failure is not None
    assert (eve.status, eve.failure.reason) == ("compensated", "The hall is full")
    assert 'microkit_saga_replies_total{outcome="delivered"' in told


def test_the_groups_of_a_saga_are_the_service_s() -> None:
    assert set(box_office.declared.groups()) == {
        "box-office.saga.booking.reserve_seat",
        "box-office.saga.booking.paid",
    }
