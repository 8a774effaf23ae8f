"""Sagas that wait, and the events that they wait for, delivered as a consumer group does it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson
import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.message import IN_REPLY_TO, Event, Message
from microkit.outbox import effect_once, install
from microkit.outbox.tables import metadata as outbox_tables
from microkit.outbox.tables import outbox
from microkit.saga import (
    ASK_AGAIN,
    REFUSE,
    Retry,
    Saga,
    StepRefused,
    await_event,
    compensatable,
    request,
    retriable,
)
from microkit.saga.awaiting import OnTimeout, Then
from microkit.saga.replies import Expected, Replies, expected_by
from microkit.saga.waits import Fate
from tests.contract.saga.trips import Bench


class Confirmed(Event, topic="bank.payments", key="payment"):
    payment: str
    receipt: int


class Declined(Event, topic="bank.payments", key="payment"):
    payment: str


class ReserveSeat(Event, topic="hall.commands", key="person"):
    person: str


class CancelSeat(Event, topic="hall.commands", key="person"):
    person: str


class SeatReserved(Event, topic="hall.seats", key="person"):
    person: str
    row: int


class SeatRefused(Event, topic="hall.seats", key="person"):
    person: str
    why: str


class SeatCancelled(Event, topic="hall.seats", key="person"):
    person: str


class Booking(BaseModel):
    payment: str = "p1"
    person: str = "ada"
    receipt: int | None = None
    row: int | None = None
    notes: list[str] = []


async def note_payment(state: Booking, event: Confirmed | Declined) -> dict[str, Any]:
    if isinstance(event, Declined):
        raise StepRefused("The bank has declined", type="declined")
    return {"receipt": event.receipt}


def reserve_seat(state: Booking) -> ReserveSeat:
    return ReserveSeat(person=state.person)


def cancel_seat(state: Booking) -> CancelSeat:
    return CancelSeat(person=state.person)


async def note_seat(state: Booking, event: SeatReserved | SeatRefused) -> dict[str, Any]:
    if isinstance(event, SeatRefused):
        raise StepRefused(event.why)
    return {"row": event.row}


class Hall(Bench):
    """A bench whose sagas wait. ``deliver`` hands an event over as the bus would."""

    replies: Replies

    async def prepare(self) -> None:
        await super().prepare()
        await create_tables(self.database, outbox_tables)
        install(self.database, "hall")
        self.replies = Replies(self.telemetry)

    async def deliver(
        self, saga: Saga[Any], event: Event, *, answers: str | None = None, message_id: str | None = None
    ) -> list[Fate | None]:
        """Once for each place that waits for such events; ``answers`` is what a command said that it wants to hear."""
        headers = {IN_REPLY_TO: answers} if answers else None
        message = event.to_message("bank", trace=headers, message_id=message_id)
        return [
            await self.hand_over(expected, event, message)
            for expected in expected_by([saga])
            if type(event) in expected.events
        ]

    async def hand_over(self, expected: Expected, event: Event, message: Message) -> Fate | None:
        fates: list[Fate | None] = []

        async def work(tx: Transaction) -> None:
            fates[:] = [await self.replies.handle(expected, event, message, tx)]

        await effect_once(self.database, expected.group("hall"), message, work)
        return fates[0] if fates else None

    async def commands(self) -> list[tuple[str, dict[str, Any], Mapping[str, str]]]:
        """What was sent: the type, the payload, the headers."""
        async with self.database.transaction(read_only=True) as tx:
            rows = (await tx.execute(sa.select(outbox).order_by(outbox.c.seq))).mappings().all()
        return [(row["type"].rpartition(".")[2], orjson.loads(row["payload"]), row["headers"]) for row in rows]

    def booking(
        self,
        *,
        timeout: float = 60.0,
        on_timeout: Then | OnTimeout = REFUSE,
        keep: float = 60.0,
        version: int = 1,
    ) -> Saga[Booking]:
        """Local, a payment that somebody else makes, local."""
        return Saga(
            "booking",
            Booking,
            [
                compensatable(self.local_note("hold"), undo=self.local_note("let_go")),
                compensatable(
                    await_event(
                        Confirmed | Declined,
                        by="payment",
                        then=note_payment,
                        timeout=timeout,
                        on_timeout=on_timeout,
                        keep=keep,
                    ),
                    undo=self.local_note("pay_back"),
                    name="payment",
                ),
                retriable(self.local_note("tell")),
            ],
            version=version,
        )

    def seating(self, *, timeout: float = 60.0, on_timeout: OnTimeout = REFUSE, attempts: int = 3) -> Saga[Booking]:
        """A seat by command and reply, then one that refuses if the person is called ``nobody``."""
        return Saga(
            "seating",
            Booking,
            [
                compensatable(
                    request(
                        reserve_seat,
                        reply=SeatReserved | SeatRefused,
                        then=note_seat,
                        timeout=timeout,
                        on_timeout=on_timeout,
                    ),
                    undo=request(cancel_seat, reply=SeatCancelled, timeout=timeout, on_timeout=ASK_AGAIN),
                    retry=Retry(attempts=attempts),
                ),
                compensatable(self.local_note("hold"), undo=self.local_note("let_go")),
                retriable(self.local_note("tell")),
            ],
        )

    def local_note(self, name: str) -> Any:
        async def step(state: Booking, tx: Transaction) -> dict[str, Any]:
            self.noted.append(name)
            if name == "hold" and state.person == "nobody":
                raise StepRefused("Nobody is no person")
            return {"notes": [*state.notes, name]}

        step.__name__ = name
        return step

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.noted: list[str] = []

    async def start(self, saga: Saga[Booking], **state: Any) -> UUID:
        return await self.database.run(lambda tx: saga.start(tx, Booking(**state)))

    async def until_waiting(self, saga_id: UUID) -> None:
        async def waits() -> bool:
            table = sa.text("SELECT count(*) FROM saga_wait WHERE status = 'waiting'")
            async with self.database.transaction(read_only=True) as tx:
                found = (await tx.execute(table)).scalar()
            story = await self.story(saga_id)
            return bool(found) and (not story.steps or story.steps[-1].status != "under-way")

        await self.eventually(waits)

    async def eventually(self, holds: Any) -> None:
        async with asyncio.timeout(60):
            while not await holds():
                await asyncio.sleep(0.01)
