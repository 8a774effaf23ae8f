"""Sagas that wait for outside events and for replies."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from microkit.db import Database
from microkit.message import REPLY_TO
from microkit.saga import ASK_AGAIN, Saga, StepRefused, await_event, compensatable, pivot, retriable
from microkit.saga.operations import Operator, compensate, skip_step
from microkit.saga.replies import expected_by
from microkit.saga.tables import saga as saga_table
from tests.contract.saga.seats import (
    Booking,
    Confirmed,
    Declined,
    Hall,
    SeatCancelled,
    SeatRefused,
    SeatReserved,
    note_payment,
)
from tests.contract.saga.trips import history

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hall(database: Database) -> Hall:
    made = Hall(database)
    await made.prepare()
    return made


async def test_an_awaited_event_moves_the_saga_on_with_what_it_says(hall: Hall) -> None:
    booking = hall.booking()
    async with hall.engine(booking):
        saga_id = await hall.start(booking)
        await hall.until_waiting(saga_id)
        assert await hall.deliver(booking, Confirmed(payment="p1", receipt=7)) == ["delivered"]
        story = await hall.until_rest(saga_id)

    assert story.status == "completed"
    assert story.state["receipt"] == 7
    assert history(story) == [
        ("hold", "action", 1, "done"),
        ("payment", "action", 1, "done"),
        ("tell", "action", 1, "done"),
    ]


async def test_a_saga_that_waits_holds_no_lease_and_is_not_asked_for(hall: Hall) -> None:
    booking = hall.booking(timeout=86_400)
    async with hall.engine(booking) as engine:
        saga_id = await hall.start(booking)
        await hall.until_waiting(saga_id)
        await hall.eventually(lambda: _is_idle(engine))
    row = await _row(hall, saga_id)

    assert (row["status"], row["step"], row["lease_owner"], row["attempts"]) == ("running", "payment", None, 0)
    assert (row["next_at"] - row["updated_at"]).total_seconds() > 86_000


async def test_an_event_that_comes_before_the_saga_waits_is_kept_and_found(hall: Hall) -> None:
    booking = hall.booking()
    saga_id = await hall.start(booking)  # no engine runs yet
    assert await hall.deliver(booking, Confirmed(payment="p1", receipt=8)) == ["kept"]
    async with hall.engine(booking):
        story = await hall.until_rest(saga_id)

    assert (story.status, story.state["receipt"]) == ("completed", 8)


async def test_an_event_that_comes_before_the_saga_has_begun_is_found_as_well(hall: Hall) -> None:
    booking = hall.booking()
    assert await hall.deliver(booking, Confirmed(payment="p1", receipt=9)) == ["kept"]
    async with hall.engine(booking):
        story = await hall.until_rest(await hall.start(booking))

    assert (story.status, story.state["receipt"]) == ("completed", 9)


async def test_the_copy_of_an_event_is_not_taken_for_the_event_of_the_next_saga(hall: Hall) -> None:
    booking = hall.booking(timeout=600)
    async with hall.engine(booking):
        first = await hall.start(booking)
        await hall.until_waiting(first)
        await hall.deliver(booking, Confirmed(payment="p1", receipt=1))
        assert (await hall.until_rest(first)).status == "completed"
        assert await hall.deliver(booking, Confirmed(payment="p1", receipt=1)) == ["twice"]
        second = await hall.start(booking)
        await hall.until_waiting(second)
        await hall.later()
        story = await hall.until_rest(second)

    assert story.status == "compensated"


async def test_when_the_time_is_over_the_saga_turns_back_and_what_may_still_come_is_undone(hall: Hall) -> None:
    booking = hall.booking(timeout=0.2)
    async with hall.engine(booking):
        saga_id = await hall.start(booking)
        story = await hall.until_rest(saga_id)
        assert story.status == "compensated"
        assert story.failure is not None
        assert (story.failure.reason, story.failure.type) == ("no Confirmed or Declined came in 0.2 s", "timeout")
        assert hall.noted == ["hold", "pay_back", "let_go"]
        assert await hall.deliver(booking, Confirmed(payment="p1", receipt=1)) == ["late"]


async def test_the_time_goes_on_while_no_process_runs(hall: Hall) -> None:
    booking = hall.booking(timeout=600)
    saga_id = await hall.start(booking)
    async with hall.engine(booking):
        await hall.until_waiting(saga_id)
    await hall.later()
    async with hall.engine(booking):
        story = await hall.until_rest(saga_id)

    assert story.status == "compensated"


async def test_a_function_may_say_how_it_goes_on_without_the_event(hall: Hall) -> None:
    async def by_hand(state: Booking) -> dict[str, Any]:
        return {"receipt": 0}

    booking = hall.booking(timeout=0.1, on_timeout=by_hand)
    async with hall.engine(booking):
        story = await hall.until_rest(await hall.start(booking))

    assert (story.status, story.state["receipt"]) == ("completed", 0)


async def test_an_event_may_be_a_refusal_and_then_nothing_of_the_step_is_undone(hall: Hall) -> None:
    booking = hall.booking()
    async with hall.engine(booking):
        saga_id = await hall.start(booking)
        await hall.until_waiting(saga_id)
        await hall.deliver(booking, Declined(payment="p1"))
        story = await hall.until_rest(saga_id)

    assert story.status == "compensated"
    assert story.failure is not None
    assert story.failure.type == "declined"
    assert hall.noted == ["hold", "let_go"]


async def test_an_awaited_event_may_be_the_pivot(hall: Hall) -> None:
    saga = Saga(
        "paying",
        Booking,
        [
            compensatable(hall.local_note("hold"), undo=hall.local_note("let_go")),
            pivot(await_event(Confirmed | Declined, by="payment", then=note_payment, timeout=60), name="pay"),
            retriable(hall.local_note("tell")),
        ],
    )
    async with hall.engine(saga):
        paid, declined = await hall.start(saga, payment="a"), await hall.start(saga, payment="b")
        await hall.deliver(saga, Confirmed(payment="a", receipt=1))
        await hall.deliver(saga, Declined(payment="b"))
        ends = [(await hall.until_rest(each)).status for each in (paid, declined)]

    assert ends == ["completed", "compensated"]


async def test_an_event_twice_and_one_for_an_ended_saga_change_nothing(hall: Hall) -> None:
    booking = hall.booking()
    async with hall.engine(booking):
        saga_id = await hall.start(booking)
        await hall.until_waiting(saga_id)
        event = Confirmed(payment="p1", receipt=1)
        assert await hall.deliver(booking, event, message_id="m1") == ["delivered"]
        assert await hall.deliver(booking, event, message_id="m1") == [None]  # the inbox knows it
        story = await hall.until_rest(saga_id)
        assert await hall.deliver(booking, Declined(payment="p1")) == ["twice"]

    assert (await hall.story(saga_id)).steps == story.steps
    assert 'outcome="twice"' in hall.telemetry.exposition().decode()


async def test_an_event_that_is_kept_is_forgotten_in_the_end(hall: Hall) -> None:
    booking = hall.booking(timeout=0.3, keep=600)
    assert await hall.deliver(booking, Confirmed(payment="p1", receipt=1)) == ["kept"]
    await hall.later()
    async with hall.engine(booking):
        assert (await hall.until_rest(await hall.start(booking))).status == "compensated"


async def test_two_sagas_that_wait_for_one_event_both_get_it(hall: Hall) -> None:
    booking = hall.booking()
    async with hall.engine(booking):
        both = [await hall.start(booking), await hall.start(booking)]

        async def wait() -> bool:
            async with hall.database.transaction(read_only=True) as tx:
                return (await tx.execute(sa.text("SELECT count(*) FROM saga_wait"))).scalar() == 2

        await hall.eventually(wait)
        await hall.deliver(booking, Confirmed(payment="p1", receipt=3))
        assert [(await hall.until_rest(each)).status for each in both] == ["completed", "completed"]


async def test_a_field_that_is_empty_when_the_saga_begins_to_wait_is_a_failure_and_no_endless_wait(hall: Hall) -> None:
    booking = hall.booking()
    async with hall.engine(booking):
        story = await hall.until_rest(await hall.start(booking, payment=""))

    assert story.status == "compensated"
    assert story.failure is not None
    assert "tells no saga from another" in story.failure.reason


async def test_a_command_goes_out_with_the_wait_and_its_reply_comes_back_by_header(hall: Hall) -> None:
    seating = hall.seating()
    async with hall.engine(seating):
        saga_id = await hall.start(seating)
        await hall.until_waiting(saga_id)
        [(kind, payload, headers)] = await hall.commands()
        assert (kind, payload) == ("ReserveSeat", {"person": "ada"})
        assert headers[REPLY_TO] == f"{saga_id}:reserve_seat"
        reply = SeatReserved(person="ada", row=4)
        assert await hall.deliver(seating, reply, answers=headers[REPLY_TO]) == ["delivered"]
        story = await hall.until_rest(saga_id)

    assert (story.status, story.state["row"]) == ("completed", 4)


async def test_a_refusal_in_reply_is_not_undone(hall: Hall) -> None:
    seating = hall.seating()
    async with hall.engine(seating):
        saga_id = await hall.start(seating)
        await hall.until_waiting(saga_id)
        await hall.deliver(seating, SeatRefused(person="ada", why="Full"), answers=f"{saga_id}:reserve_seat")
        story = await hall.until_rest(saga_id)

    assert story.status == "compensated"
    assert story.failure is not None
    assert story.failure.reason == "Full"
    assert [kind for kind, _, _ in await hall.commands()] == ["ReserveSeat"]


async def test_a_compensation_may_be_a_command_that_waits_for_its_reply(hall: Hall) -> None:
    seating = hall.seating()
    async with hall.engine(seating):
        saga_id = await hall.start(seating, person="nobody")
        await hall.until_waiting(saga_id)
        await hall.deliver(seating, SeatReserved(person="nobody", row=1), answers=f"{saga_id}:reserve_seat")

        async def cancelled() -> bool:
            return len(await hall.commands()) == 2

        await hall.eventually(cancelled)
        assert (await hall.story(saga_id)).status == "compensating"
        [_, (kind, _, headers)] = await hall.commands()
        assert (kind, headers[REPLY_TO]) == ("CancelSeat", f"{saga_id}:reserve_seat:undo")
        assert await hall.deliver(seating, SeatCancelled(person="nobody"), answers=headers[REPLY_TO]) == ["delivered"]
        story = await hall.until_rest(saga_id)

    assert story.status == "compensated"
    assert history(story)[-1] == ("reserve_seat", "undo", 1, "done")


async def test_a_command_without_a_reply_is_sent_again_as_often_as_its_retry_says(hall: Hall) -> None:
    seating = hall.seating(timeout=600, on_timeout=ASK_AGAIN, attempts=3)
    async with hall.engine(seating):
        saga_id = await hall.start(seating)

        async def sent(times: int) -> bool:
            return [kind for kind, _, _ in await hall.commands()].count("ReserveSeat") == times

        for times in (1, 2):
            await hall.eventually(partial(sent, times))
            await hall.later()
        await hall.eventually(partial(sent, 3))
        assert await hall.deliver(seating, SeatReserved(person="ada", row=2), answers=f"{saga_id}:reserve_seat") == [
            "delivered"
        ]
        story = await hall.until_rest(saga_id)

    assert (story.status, story.state["row"]) == ("completed", 2)
    assert [step.status for step in story.steps[:2]] == ["timed-out", "timed-out"]


async def test_a_reply_for_an_unknown_saga_or_another_step_is_a_no_op(hall: Hall) -> None:
    seating = hall.seating()
    reply = SeatReserved(person="ada", row=2)

    assert await hall.deliver(seating, reply, answers=f"{uuid4()}:reserve_seat") == ["unknown"]
    assert await hall.deliver(seating, reply, answers=f"{uuid4()}:elsewhere") == [None]
    assert await hall.deliver(seating, reply, answers="nonsense") == [None]
    assert await hall.deliver(seating, reply) == [None]


async def test_a_reply_for_a_saga_that_an_operator_moved_on_is_late(hall: Hall) -> None:
    booking = hall.booking()
    saga_id = await hall.start(booking)
    async with hall.engine(booking):
        await hall.until_waiting(saga_id)
    operator = Operator("ada")
    await hall.database.run(lambda tx: skip_step(tx, saga_id, operator, step="payment", sagas=[booking]))

    assert await hall.deliver(booking, Confirmed(payment="p1", receipt=1)) == ["late"]
    async with hall.engine(booking):
        assert (await hall.until_rest(saga_id)).status == "completed"


async def test_an_operator_may_compensate_a_saga_that_waits(hall: Hall) -> None:
    booking = hall.booking()
    saga_id = await hall.start(booking)
    async with hall.engine(booking):
        await hall.until_waiting(saga_id)
        await hall.database.run(lambda tx: compensate(tx, saga_id, Operator("ada"), sagas=[booking]))
        assert (await hall.until_rest(saga_id)).status == "compensated"
    assert hall.noted == ["hold", "pay_back", "let_go"]


async def test_a_refusal_by_what_takes_note_of_the_time_turns_back(hall: Hall) -> None:
    async def refuse(state: Booking) -> None:
        raise StepRefused("Too late for you")

    booking = hall.booking(timeout=0.1, on_timeout=refuse)
    async with hall.engine(booking):
        story = await hall.until_rest(await hall.start(booking))

    assert story.failure is not None
    assert (story.status, story.failure.reason) == ("compensated", "Too late for you")


def test_each_step_that_waits_has_a_consumer_group_of_its_own() -> None:
    hall = Hall.__new__(Hall)
    hall.noted = []
    found = {each.group("hall"): [event.__name__ for event in each.events] for each in expected_by([hall.seating()])}

    assert found == {
        "hall.saga.seating.reserve_seat": ["SeatReserved", "SeatRefused"],
        "hall.saga.seating.reserve_seat.undo": ["SeatCancelled"],
    }


async def _is_idle(engine: Any) -> bool:
    return bool(engine.health().in_flight == 0)


async def _row(hall: Hall, saga_id: Any) -> Any:
    async with hall.database.transaction(read_only=True) as tx:
        return (await tx.execute(sa.select(saga_table).where(saga_table.c.id == saga_id))).mappings().one()
