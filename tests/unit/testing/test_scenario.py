"""Scenarios of sagas: what they say is what the real engine does."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.contract import Contract, post
from microkit.db import Transaction
from microkit.errors import Conflict, DefinitionError, NotFound
from microkit.message import Event
from microkit.saga import (
    NO_EFFECT,
    Retry,
    Saga,
    StepContext,
    StepNotYet,
    StepRefused,
    await_event,
    compensatable,
    pivot,
    request,
    retriable,
)
from microkit.testing.expectation import (
    called,
    compensated,
    completed,
    done,
    failed,
    holds,
    published,
    refused,
    state,
    stuck,
    timed_out,
    took,
    undone,
    waiting,
)
from microkit.testing.scenario import Scenario, scenario
from microkit.testing.stub import answers, breaks_off, does, refuses, times_out, unreachable


class Base(DeclarativeBase): ...


class Booking(Base):
    __tablename__ = "bookings"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")


class SoldOut(Conflict, status=409): ...


class Seat(BaseModel):
    number: int


class Seats(Contract, service="seats", allow="service:booking"):
    @post("/seats/{booking_id}", idempotent=True, raises=(SoldOut,))
    async def hold(self, booking_id: UUID) -> Seat: ...

    @post("/seats/{booking_id}/release", idempotent=True)
    async def release(self, booking_id: UUID) -> None: ...


class BookingMade(Event, topic="booking.bookings", key="booking_id"):
    booking_id: UUID
    seat: int


class Till:
    """A resource: what takes the money."""

    def __init__(self, *outcomes: Exception) -> None:
        self.outcomes = list(outcomes)
        self.taken = 0

    async def take(self) -> None:
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.taken += 1


class Book(BaseModel):
    booking_id: UUID
    seat: int | None = None


async def open_booking(state: Book, tx: Transaction) -> None:
    booking = await tx.get(Booking, state.booking_id)
    assert booking is not None
    booking.status = "held"


async def cancel_booking(state: Book, tx: Transaction, step: StepContext) -> None:
    booking = await tx.get(Booking, state.booking_id)
    assert booking is not None
    booking.status = step.failure.reason if step.failure else "?"


async def hold_seat(state: Book, seats: Seats) -> Mapping[str, Any]:
    return {"seat": (await seats.hold(state.booking_id)).number}


async def release_seat(state: Book, seats: Seats) -> None:
    await seats.release(state.booking_id)


async def take_money(state: Book, till: Till) -> None:
    await till.take()


async def confirm(state: Book, tx: Transaction) -> None:
    assert state.seat is not None
    tx.publish(BookingMade(booking_id=state.booking_id, seat=state.seat))


def booking_saga(patience: float | None = None) -> Saga[Book]:
    """With ``patience`` it tries again after up to so many seconds, at random: hardly ever in the moment that a test
    gives it."""
    hold = compensatable(hold_seat, undo=release_seat, timeout=5)
    retry = Retry(attempts=3)
    if patience:
        retry = Retry(attempts=3, initial=patience, maximum=patience)
        hold = compensatable(hold_seat, undo=release_seat, timeout=5, retry=retry)
    return Saga(
        "book-seat",
        Book,
        [
            compensatable(open_booking, undo=cancel_booking),
            hold,
            pivot(take_money, timeout=5, retry=retry),
            retriable(confirm),
        ],
    )


DAY = 86_400.0
ID = uuid4()


def begun(till: Till | None = None, *, patience: float | None = None) -> Scenario[Book]:
    return (
        scenario(booking_saga(patience), tables=Base.metadata)
        .having(Booking(id=ID))
        .given(Seats.hold, answers(Seat(number=12)))
        .given(Seats.release, answers(None))
        .offering(Till, till or Till())
    )


def test_a_saga_that_goes_through() -> None:
    async def is_held(tx: Transaction) -> None:
        assert (await tx.scalars(sa.select(Booking.status))) == ["held"]

    (
        begun()
        .when(Book(booking_id=ID))
        .expect(
            done(open_booking, hold_seat, take_money, confirm),
            completed(),
            published(BookingMade(booking_id=ID, seat=12)),
            called(Seats.hold, booking_id=ID),
            state(seat=12),
            holds(is_held),
        )
    )


def test_a_saga_that_is_refused_is_compensated_in_reverse_order() -> None:
    (
        begun(Till(StepRefused("the card is empty")))
        .when(Book(booking_id=ID))
        .expect(
            done(open_booking, hold_seat),
            refused(take_money),
            undone(hold_seat, open_booking),
            compensated("the card is empty"),
            published(),
        )
    )


def test_a_declared_problem_is_a_refusal() -> None:
    (
        begun()
        .given(Seats.hold, refuses(SoldOut("no seats")))
        .when(Book(booking_id=ID))
        .expect(done(open_booking), refused(hold_seat), undone(open_booking), compensated("no seats"))
    )


def test_another_service_that_fails_in_every_way_and_then_answers() -> None:
    (
        begun()
        .given(Seats.hold, times_out(), unreachable(), breaks_off(), answers(Seat(number=7)))
        .when(Book(booking_id=ID))
        .expect(
            done(open_booking),
            failed(hold_seat, times=3),
            done(hold_seat, take_money, confirm),
            completed(),
            called(Seats.hold, times=4),
            took(at_least=timedelta(seconds=5)),
        )
    )


def test_a_step_that_takes_too_long_is_timed_out() -> None:
    (
        begun(patience=1000 * DAY)
        .given(Seats.hold, answers(Seat(number=1), after=86_400.0))
        .when(Book(booking_id=ID))
        .after(minutes=1)
        .expect(done(open_booking), failed(hold_seat), waiting(hold_seat))
    )


def test_a_backoff_of_days_takes_no_time() -> None:
    outcome = begun(Till(OSError(), OSError()), patience=DAY).when(Book(booking_id=ID)).run()

    assert outcome.status == "completed"
    assert [step.status for step in outcome.steps] == ["done", "done", "failed", "failed", "done", "done"]
    assert outcome.took < timedelta(days=2, minutes=1)


def test_a_step_whose_turn_has_not_come_waits_for_hours() -> None:
    waits = [StepNotYet("the till is closed", after=3600.0) for _ in range(16)]
    begun(Till(*waits)).when(Book(booking_id=ID)).expect(completed(), took(at_least=timedelta(hours=16)))


def test_a_pivot_whose_fate_is_unknown_is_stuck() -> None:
    (
        begun(Till(OSError("down"), OSError("down"), OSError("down")))
        .when(Book(booking_id=ID))
        .expect(done(open_booking, hold_seat), failed(take_money, times=3), stuck("down"))
    )


def test_each_attempt_of_a_call_has_the_same_idempotency_key() -> None:
    outcome = begun().given(Seats.hold, breaks_off(), answers(Seat(number=3))).when(Book(booking_id=ID)).run()

    keys = [call.idempotency_key for call in outcome.calls]
    assert len(keys) == 2
    assert keys[0] is not None
    assert len(set(keys)) == 1


def test_a_fake_may_remember() -> None:
    taken: list[UUID] = []

    def hold(booking_id: UUID) -> Seat:
        taken.append(booking_id)
        return Seat(number=len(taken))

    begun().given(Seats.hold, does(hold)).when(Book(booking_id=ID)).expect(completed(), state(seat=1))
    assert taken == [ID]


def test_time_passes_as_far_as_is_said_and_no_further() -> None:
    (
        begun(Till(OSError(), OSError()), patience=1000 * DAY)
        .when(Book(booking_id=ID))
        .after(minutes=1)
        .expect(done(open_booking, hold_seat), failed(take_money), waiting(take_money))
    )


def test_what_is_not_as_expected_is_told_with_the_story() -> None:
    with pytest.raises(AssertionError) as caught:
        (
            begun(Till(StepRefused("the card is empty")))
            .when(Book(booking_id=ID))
            .expect(done(open_booking, hold_seat, take_money, confirm), completed(), published(BookingMade))
        )

    told = str(caught.value)
    assert "it should be completed and is compensated" in told
    assert "it should publish booking.bookings.BookingMade and published nothing" in told
    assert "take_money refused: the card is empty" in told
    assert "undo of hold_seat done" in told


@pytest.mark.parametrize(
    ("expectation", "told"),
    [
        (compensated(), "it should be compensated and is completed"),
        (stuck(), "it should be stuck"),
        (waiting("take_money"), "it should wait at take_money and is completed"),
        (called(Seats.hold, times=2), "should be called 2 times and was called 1 times"),
        (called(Seats.hold, booking_id=UUID(int=0)), "should be called with booking_id"),
        (state(seat=13), "the state has seat=12, not 13"),
        (took(at_least=timedelta(hours=1)), "which is not between"),
        (published(BookingMade(booking_id=ID, seat=99)), "it should publish"),
        (done("open_booking"), "its steps should be"),
        (timed_out("hold_seat"), "its steps should be"),
    ],
)
def test_every_expectation_can_fail(expectation: Any, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        begun().when(Book(booking_id=ID)).expect(expectation)


def test_a_check_of_the_tables_can_fail() -> None:
    async def is_cancelled(tx: Transaction) -> None:
        assert (await tx.scalars(sa.select(Booking.status))) == ["cancelled"]

    with pytest.raises(AssertionError, match="is_cancelled does not hold"):
        begun().when(Book(booking_id=ID)).expect(holds(is_cancelled))


def test_a_call_that_nobody_has_foreseen_is_told_at_once() -> None:
    asked = scenario(booking_saga(), tables=Base.metadata).having(Booking(id=ID)).offering(Till, Till())

    with pytest.raises(AssertionError, match=r"Seats.hold is called, and nothing says what it answers"):
        asked.when(Book(booking_id=ID)).expect(completed())


def test_a_problem_that_the_operation_does_not_declare_cannot_be_given() -> None:
    with pytest.raises(DefinitionError, match="does not declare NotFound"):
        begun().given(Seats.hold, refuses(NotFound()))


def test_a_scenario_without_a_beginning_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"begins with \.when\(\)"):
        begun().expect(completed())


def test_a_scenario_begins_with_its_sagas_state() -> None:
    with pytest.raises(DefinitionError, match="is started with a Book"):
        begun().when(Seat(number=1))  # type: ignore[arg-type]  # what is refused


def test_a_scenario_that_was_never_run_says_so() -> None:
    with pytest.warns(RuntimeWarning, match="was never run"):
        begun().when(Book(booking_id=ID))


def test_what_was_said_before_can_be_gone_on_from() -> None:
    first = begun(Till(OSError(), OSError()), patience=DAY).when(Book(booking_id=ID)).after(seconds=5)

    first.expect(waiting(take_money)).after(days=3).expect(completed())


@pytest.mark.anyio
async def test_it_can_be_called_inside_an_event_loop() -> None:
    begun().when(Book(booking_id=ID)).expect(completed())


class MoneyCame(Event, topic="bank.transfers", key="booking_id"):
    booking_id: UUID
    cents: int


class HoldSeat(Event, topic="seats.commands", key="booking_id"):
    booking_id: UUID


class SeatHeld(Event, topic="seats.events", key="booking_id"):
    booking_id: UUID
    seat: int


def ask_for_seat(state: Book) -> HoldSeat:
    return HoldSeat(booking_id=state.booking_id)


async def note_seat(state: Book, event: SeatHeld) -> Mapping[str, Any]:
    return {"seat": event.seat}


waiting_saga = Saga(
    "book-by-transfer",
    Book,
    [
        compensatable(open_booking, undo=cancel_booking),
        compensatable(request(ask_for_seat, reply=SeatHeld, then=note_seat, timeout=60), undo=NO_EFFECT),
        pivot(await_event(MoneyCame, by="booking_id", timeout=86_400), name="await_money"),
        retriable(confirm),
    ],
)


def transfer() -> Scenario[Book]:
    return scenario(waiting_saga, tables=Base.metadata).having(Booking(id=ID)).when(Book(booking_id=ID))


def test_events_that_are_waited_for_arrive() -> None:
    (
        transfer()
        .expect(waiting("ask_for_seat"), published(HoldSeat(booking_id=ID)))
        .when(SeatHeld(booking_id=ID, seat=4))
        .expect(waiting("await_money"), state(seat=4))
        .after(hours=23)
        .when(MoneyCame(booking_id=ID, cents=900))
        .expect(completed(), published(HoldSeat, BookingMade(booking_id=ID, seat=4)))
    )


def test_an_event_that_does_not_come_in_a_day_turns_the_saga_back() -> None:
    (
        transfer()
        .when(SeatHeld(booking_id=ID, seat=4))
        .after(hours=24, minutes=1)
        .expect(compensated(), took(at_least=timedelta(hours=24)))
    )


def test_an_event_that_is_not_waited_for_is_refused() -> None:
    with pytest.raises(DefinitionError, match="never waits for BookingMade"):
        transfer().when(BookingMade(booking_id=ID, seat=1))
