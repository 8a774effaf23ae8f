"""What goes wrong seldom, and must not go wrong twice."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.errors import Conflict
from microkit.saga import (
    ASK_AGAIN,
    NO_EFFECT,
    Retry,
    Saga,
    StepContext,
    StepNotYet,
    StepRefused,
    await_event,
    compensatable,
    parallel,
    pivot,
    request,
    retriable,
)
from microkit.saga.operations import Operator, compensate, retry_step
from microkit.saga.tables import saga as saga_table
from tests.contract.saga.seats import Booking, Confirmed, Hall, SeatReserved, reserve_seat
from tests.contract.saga.trips import AT_ONCE, Bench, Trip, effect

pytestmark = pytest.mark.anyio

OPERATOR = Operator("ada")


class Place(BaseModel):
    number: int


class Journey(BaseModel):
    flight: int | None = None
    hotel: int | None = None


@pytest.fixture
async def hall(database: Database) -> Hall:
    made = Hall(database)
    await made.prepare()
    return made


async def test_an_older_version_with_nothing_to_do_keeps_no_place_of_a_limited_name(bench: Bench) -> None:
    def bill(version: int) -> Saga[Trip]:
        step = compensatable(bench.remote("pay"), undo=NO_EFFECT, timeout=5)
        return Saga("bill", Trip, [step], version=version, concurrency=1)

    old, new = bill(1), bill(2)
    async with bench.engine(old, new):
        for saga in (new, old, new):
            assert (await asyncio.wait_for(bench.until_rest(await bench.begin(saga)), 20)).status == "completed"


async def test_a_rollback_by_hand_takes_nothing_of_the_neighbours_with_it(bench: Bench) -> None:
    async def note(state: Place, tx: Transaction, step: StepContext) -> None:
        await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": "note"})
        if state.number == 7:
            await tx.session.rollback()

    saga = Saga("places", Place, [compensatable(note, undo=NO_EFFECT, retry=AT_ONCE)])
    async with bench.engine(saga):
        first = await bench.database.run(lambda tx: saga.start(tx, Place(number=99)))
        await bench.until_rest(first)

        async def begin(tx: Transaction) -> list[UUID]:
            return [await saga.start(tx, Place(number=number)) for number in range(16)]

        ids = await bench.database.run(begin)
        stories = [await bench.until_rest(each) for each in ids]
    for number, story in enumerate(stories):
        if number != 7:
            assert (number, await bench.effects(story.id)) == (number, ["note"])


@pytest.mark.parametrize("words", ["\ud800 surrogate", "nul \x00"])
@pytest.mark.parametrize("where", ["error", "refusal", "state"])
async def test_text_that_the_database_does_not_take_is_a_failure_like_any_other(
    bench: Bench, words: str, where: str
) -> None:
    async def pay(state: Trip) -> dict[str, Any]:
        if where == "state":
            return {"done": [words]}
        raise StepRefused(words) if where == "refusal" else LookupError(words)

    saga = Saga("bill", Trip, [compensatable(pay, undo=NO_EFFECT, timeout=5, retry=AT_ONCE)])
    async with bench.engine(saga):
        story = await asyncio.wait_for(bench.until_rest(await bench.begin(saga)), 20)
    assert (story.status, words) == ("completed" if (where, words[:3]) == ("state", "nul") else "compensated", words)


async def test_a_reply_that_cannot_be_noted_is_undone_as_the_command_was_carried_out(hall: Hall) -> None:
    async def note(state: Booking, event: SeatReserved) -> None:
        raise LookupError("no such row")

    saga = Saga(
        "seating",
        Booking,
        [
            compensatable(
                request(reserve_seat, reply=SeatReserved, then=note, timeout=60),
                undo=hall.local_note("give_back"),
                retry=AT_ONCE,
            )
        ],
    )
    async with hall.engine(saga):
        saga_id = await hall.start(saga)
        await hall.until_waiting(saga_id)
        await hall.deliver(saga, SeatReserved(person="ada", row=3), answers=f"{saga_id}:reserve_seat")
        assert (await hall.until_rest(saga_id)).status == "compensated"
    assert hall.noted == ["give_back"]


async def test_a_pivot_that_came_and_cannot_be_noted_is_stuck(hall: Hall) -> None:
    async def note(state: Booking, event: Confirmed) -> None:
        raise LookupError("no such row")

    saga = Saga(
        "booking",
        Booking,
        [
            compensatable(hall.local_note("hold"), undo=hall.local_note("let_go")),
            pivot(await_event(Confirmed, by="payment", then=note, timeout=60), retry=AT_ONCE, name="payment"),
            retriable(hall.local_note("tell")),
        ],
    )
    async with hall.engine(saga):
        saga_id = await hall.start(saga)
        await hall.until_waiting(saga_id)
        await hall.deliver(saga, Confirmed(payment="p1", receipt=3))
        assert (await hall.until_rest(saga_id)).status == "stuck"
    assert hall.noted == ["hold"]


def _asking(hall: Hall) -> Saga[Booking]:
    asks = request(reserve_seat, reply=SeatReserved, timeout=60, on_timeout=ASK_AGAIN)
    return Saga(
        "asking",
        Booking,
        [
            compensatable(hall.local_note("hold"), undo=hall.local_note("let_go")),
            pivot(asks),
            retriable(hall.local_note("tell")),
        ],
    )


async def test_a_pivot_that_was_asked_for_is_turned_back_only_by_who_says_that_it_did_not_happen(hall: Hall) -> None:
    saga = _asking(hall)
    async with hall.engine(saga):
        saga_id = await hall.start(saga)
        await hall.until_waiting(saga_id)
        with pytest.raises(Conflict, match="may have happened"):
            await hall.database.run(lambda tx: compensate(tx, saga_id, OPERATOR, sagas=[saga]))
        await hall.database.run(lambda tx: compensate(tx, saga_id, OPERATOR, sagas=[saga], pivot_did_not_happen=True))
        assert (await hall.until_rest(saga_id)).status == "compensated"


async def test_an_event_that_came_as_the_pivot_is_not_overlooked_by_who_compensates(hall: Hall) -> None:
    saga = Saga(
        "booking",
        Booking,
        [
            compensatable(hall.local_note("hold"), undo=hall.local_note("let_go")),
            pivot(await_event(Confirmed, by="payment", timeout=60), name="payment"),
            retriable(hall.local_note("tell")),
        ],
    )
    async with hall.engine(saga):
        saga_id = await hall.start(saga)
        await hall.until_waiting(saga_id)
    await hall.deliver(saga, Confirmed(payment="p1", receipt=3))
    with pytest.raises(Conflict):
        await hall.database.run(lambda tx: compensate(tx, saga_id, OPERATOR, sagas=[saga]))


async def test_a_command_that_was_sent_is_undone_though_its_step_was_just_tried_again(hall: Hall) -> None:
    saga = hall.seating()
    async with hall.engine(saga):
        saga_id = await hall.start(saga)
        await hall.until_waiting(saga_id)
    await hall.database.run(lambda tx: retry_step(tx, saga_id, OPERATOR, sagas=[saga]))
    await hall.database.run(lambda tx: compensate(tx, saga_id, OPERATOR, sagas=[saga]))
    async with hall.database.transaction(read_only=True) as tx:
        row = (await tx.execute(sa.select(saga_table).where(saga_table.c.id == saga_id))).one()
    assert (row.status, row.step) == ("compensating", "reserve_seat")


async def test_a_branch_that_is_to_be_tried_later_is_not_hurried_by_another(hall: Hall) -> None:
    calls: list[str] = []

    async def flight(state: Journey) -> None:
        calls.append("flight")
        if calls.count("flight") < 40:
            raise StepNotYet(after=0.01)

    async def hotel(state: Journey) -> None:
        calls.append("hotel")
        if calls.count("hotel") == 1:
            raise StepNotYet(after=3000)

    saga = Saga(
        "journey",
        Journey,
        [
            parallel(
                compensatable(flight, undo=NO_EFFECT, timeout=5),
                compensatable(hotel, undo=NO_EFFECT, timeout=5, retry=Retry(3, initial=30, maximum=30)),
            )
        ],
    )
    async with hall.engine(saga):
        await hall.database.run(lambda tx: saga.start(tx, Journey()))
        async with asyncio.timeout(60):
            while calls.count("flight") < 40:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
    assert calls.count("hotel") == 1
