"""Parallel groups and conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.saga import (
    NO_EFFECT,
    Retry,
    Saga,
    StepContext,
    StepNotYet,
    StepRefused,
    compensatable,
    parallel,
    request,
    retriable,
)
from microkit.saga.operations import Operator, compensate, resume, skip_step
from tests.contract.saga.seats import CancelSeat, Hall, ReserveSeat, SeatCancelled, SeatReserved
from tests.contract.saga.trips import AT_ONCE, history

pytestmark = pytest.mark.anyio

OPERATOR = Operator("ada")


class Journey(BaseModel):
    person: str = "ada"
    flight: int | None = None
    hotel: int | None = None
    car: int | None = None
    coupon: str | None = None
    seen: dict[str, Any] = {}


@pytest.fixture
async def hall(database: Database) -> Hall:
    made = Hall(database)
    await made.prepare()
    return made


def remote(hall: Hall, name: str, leaves: str | None = None) -> Callable[..., Awaitable[Any]]:
    async def step(state: Journey, step: StepContext) -> dict[str, Any]:
        await hall._follow(name, step)
        return {leaves: step.attempt} if leaves else {}

    step.__name__ = name
    return step


def local(hall: Hall, name: str, leaves: str | None = None) -> Callable[..., Awaitable[Any]]:
    async def step(state: Journey, tx: Transaction, step: StepContext) -> dict[str, Any]:
        await hall._follow(name, step)
        return {leaves: step.attempt} if leaves else {}

    step.__name__ = name
    return step


def journey(hall: Hall) -> Saga[Journey]:
    """A step, three at once of which one is in this database, a step."""
    return Saga(
        "journey",
        Journey,
        [
            compensatable(local(hall, "plan"), undo=local(hall, "drop"), retry=AT_ONCE),
            parallel(
                _book(hall, "flight"),
                compensatable(
                    local(hall, "book_hotel", "hotel"),
                    undo=local(hall, "cancel_hotel"),
                    retry=AT_ONCE,
                    undo_retry=AT_ONCE,
                ),
                _book(hall, "car"),
                name="bookings",
            ),
            retriable(local(hall, "tell"), retry=AT_ONCE),
        ],
    )


def _book(hall: Hall, what: str) -> Any:
    return compensatable(
        remote(hall, f"book_{what}", what),
        undo=remote(hall, f"cancel_{what}"),
        timeout=5,
        retry=AT_ONCE,
        undo_retry=AT_ONCE,
    )


async def begin(hall: Hall, saga: Saga[Journey], **state: Any) -> UUID:
    return await hall.database.run(lambda tx: saga.start(tx, Journey(**state)))


async def test_branches_run_at_once_and_what_they_leave_is_put_together(hall: Hall) -> None:
    saga = journey(hall)
    here, there = asyncio.Event(), asyncio.Event()

    async def flight() -> None:
        here.set()
        await there.wait()

    async def car() -> None:
        there.set()
        await here.wait()

    hall.scripts = {"book_flight": [flight], "book_car": [car]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "completed"
    assert (story.state["flight"], story.state["hotel"], story.state["car"]) == (1, 1, 1)
    assert sorted(history(story)[1:4]) == [
        ("book_car", "action", 1, "done"),
        ("book_flight", "action", 1, "done"),
        ("book_hotel", "action", 1, "done"),
    ]
    assert history(story)[4:] == [("bookings", "action", 1, "done"), ("tell", "action", 1, "done")]


async def test_a_refusal_waits_for_the_others_and_undoes_what_happened_before_the_steps_before(hall: Hall) -> None:
    saga = journey(hall)
    refused = asyncio.Event()

    async def refuse() -> None:
        refused.set()
        raise StepRefused("No seat is left")

    hall.scripts = {"book_flight": [refuse], "book_car": [partial(_wait, refused)]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "compensated"
    assert story.failure is not None
    assert (story.failure.step, story.failure.reason) == ("book_flight", "No seat is left")
    called = hall.called()
    assert sorted(called[-3:-1]) == ["cancel_car", "cancel_hotel"]
    assert called[-1] == "drop"
    assert "cancel_flight" not in called


async def test_a_branch_of_unknown_outcome_is_undone_as_well(hall: Hall) -> None:
    saga = journey(hall)
    hall.scripts = {"book_flight": [OSError("gone")] * 4}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "compensated"
    assert story.failure is not None
    assert story.failure.reason.startswith("gave up after 4 attempts")
    assert sorted(hall.called()[-4:-1]) == ["cancel_car", "cancel_flight", "cancel_hotel"]


async def test_only_the_branch_that_failed_is_tried_again(hall: Hall) -> None:
    saga = journey(hall)
    hall.scripts = {"book_car": [OSError("gone"), StepNotYet(after=0.01)]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "completed"
    called = hall.called()
    assert (called.count("book_flight"), called.count("book_hotel"), called.count("book_car")) == (1, 1, 3)
    assert story.state["car"] == 2


async def test_after_a_crash_only_the_branches_that_had_not_ended_run_again(hall: Hall) -> None:
    saga = journey(hall)
    never = asyncio.Event()
    hall.scripts = {"book_car": [partial(_wait, never)]}
    async with hall.engine(saga) as engine:
        saga_id = await begin(hall, saga)

        async def two_are_done() -> bool:
            return len((await hall.story(saga_id)).steps) >= 4

        await hall.eventually(two_are_done)
        for task in engine._loops:  # the process is gone: nobody keeps the lease, nobody gives it back
            task.cancel()
        for run in engine._runs.values():
            run.task.cancel()
        engine._loops = []
    await hall.later()
    async with hall.engine(saga):
        story = await hall.until_rest(saga_id)

    assert story.status == "completed"
    called = hall.called()
    assert (called.count("book_flight"), called.count("book_hotel"), called.count("book_car")) == (1, 1, 2)
    assert story.state["car"] == 2  # it was told that an attempt had gone before


async def test_a_group_after_the_pivot_is_stuck_when_a_branch_is_and_goes_on_with_that_one(hall: Hall) -> None:
    saga = Saga(
        "news",
        Journey,
        [
            compensatable(local(hall, "plan"), undo=NO_EFFECT),
            parallel(
                retriable(remote(hall, "tell_airline", "flight"), timeout=5, retry=Retry(2, initial=0, maximum=0)),
                retriable(local(hall, "tell_hotel", "hotel")),
            ),
        ],
    )
    hall.scripts = {"tell_airline": [OSError("gone"), StepRefused("never")]}
    async with hall.engine(saga):
        saga_id = await begin(hall, saga)
        story = await hall.until_rest(saga_id)
        assert (story.status, story.step) == ("stuck", "tell_airline+tell_hotel")
        assert story.error is not None
        assert "tell_airline: never" in story.error
        await hall.database.run(lambda tx: resume(tx, saga_id, OPERATOR))
        story = await hall.until_rest(saga_id)

    assert story.status == "completed"
    assert hall.called().count("tell_hotel") == 1
    assert (story.state["flight"], story.state["hotel"]) == (2, 1)


async def test_a_step_after_the_group_that_refuses_has_all_branches_undone(hall: Hall) -> None:
    saga = Saga(
        "trip-home", Journey, [*journey(hall).steps[:2], compensatable(remote(hall, "pay"), undo=NO_EFFECT, timeout=5)]
    )
    hall.scripts = {"pay": [StepRefused("No money")], "cancel_car": [OSError("gone")]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "compensated"
    called = hall.called()
    assert (called.count("cancel_car"), called.count("cancel_flight"), called.count("cancel_hotel")) == (2, 1, 1)
    assert called[-1] == "drop"


async def test_two_branches_that_change_one_field_after_all_are_parked_and_not_guessed(hall: Hall) -> None:
    async def one(state: Journey) -> Journey:
        return state.model_copy(update={"seen": {"one": 1}})

    async def other(state: Journey) -> Journey:
        return state.model_copy(update={"seen": {"other": 1}})

    saga = Saga(
        "same-field",
        Journey,
        [parallel(compensatable(one, undo=NO_EFFECT, timeout=5), compensatable(other, undo=NO_EFFECT, timeout=5))],
    )
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "stuck"
    assert story.error is not None
    assert "one and other, branches of one group, have both changed 'seen'" in story.error


async def test_an_operator_may_skip_a_group_and_what_its_branches_did_is_kept(hall: Hall) -> None:
    saga = journey(hall)
    hall.scripts = {"book_car": [StepNotYet(after=60)]}
    async with hall.engine(saga):
        saga_id = await begin(hall, saga)
        await hall.eventually(lambda: _waits(hall, saga_id))
        await hall.database.run(lambda tx: skip_step(tx, saga_id, OPERATOR, step="bookings", sagas=[saga]))
        story = await hall.until_rest(saga_id)

    assert story.status == "completed"
    assert (story.state["flight"], story.state["hotel"], story.state["car"]) == (1, 1, None)


async def test_an_operator_may_compensate_in_the_middle_of_a_group(hall: Hall) -> None:
    saga = journey(hall)
    hall.scripts = {"book_car": [StepNotYet(after=60)]}
    async with hall.engine(saga):
        saga_id = await begin(hall, saga)
        await hall.eventually(lambda: _waits(hall, saga_id))
        await hall.database.run(lambda tx: compensate(tx, saga_id, OPERATOR, sagas=[saga]))
        story = await hall.until_rest(saga_id)

    assert story.status == "compensated"
    assert sorted(hall.called()[-3:]) == ["cancel_flight", "cancel_hotel", "drop"]


async def test_branches_may_wait_for_replies_and_the_group_holds_no_lease_meanwhile(hall: Hall) -> None:
    def reserve(state: Journey) -> ReserveSeat:
        return ReserveSeat(person=state.person)

    def cancel(state: Journey) -> CancelSeat:
        return CancelSeat(person=state.person)

    async def note_out(state: Journey, event: SeatReserved) -> dict[str, Any]:
        return {"flight": event.row}

    async def note_back(state: Journey, event: SeatReserved) -> dict[str, Any]:
        return {"car": event.row}

    def seat(name: str, note: Any) -> Any:
        return compensatable(request(reserve, reply=SeatReserved, then=note, timeout=60), undo=NO_EFFECT, name=name)

    saga = Saga(
        "both-ways",
        Journey,
        [parallel(seat("out", note_out), seat("back", note_back), name="seats"), retriable(local(hall, "tell"))],
    )
    assert SeatCancelled is not None
    assert cancel is not None
    async with hall.engine(saga) as engine:
        saga_id = await begin(hall, saga)

        async def both_wait() -> bool:
            return len(await hall.commands()) == 2 and engine.health().in_flight == 0

        await hall.eventually(both_wait)
        assert "delivered" in await hall.deliver(saga, SeatReserved(person="ada", row=1), answers=f"{saga_id}:out")
        assert "delivered" in await hall.deliver(saga, SeatReserved(person="ada", row=2), answers=f"{saga_id}:back")
        story = await hall.until_rest(saga_id)

    assert (story.status, story.state["flight"], story.state["car"]) == ("completed", 1, 2)


def has_coupon(state: Journey) -> bool:
    return state.coupon is not None


def conditional(hall: Hall, *, tx: bool) -> Saga[Journey]:
    make = local if tx else remote
    return Saga(
        "discount",
        Journey,
        [
            compensatable(make(hall, "redeem"), undo=make(hall, "give_back"), when=has_coupon, timeout=5),
            compensatable(make(hall, "pay"), undo=NO_EFFECT, timeout=5),
        ],
    )


@pytest.mark.parametrize("tx", [True, False], ids=["local", "remote"])
async def test_a_step_that_is_not_needed_is_skipped_and_never_undone(hall: Hall, tx: bool) -> None:
    saga = conditional(hall, tx=tx)
    hall.scripts = {"pay": [StepRefused("No"), StepRefused("No")]}
    async with hall.engine(saga):
        without = await hall.until_rest(await begin(hall, saga))
        assert hall.called() == ["pay"]
        await hall.until_rest(await begin(hall, saga, coupon="X"))

    assert history(without) == [("redeem", "action", 1, "skipped"), ("pay", "action", 1, "refused")]
    assert without.steps[0].error == "not needed: has_coupon"
    assert hall.called()[1:] == ["redeem", "pay", "give_back"]


async def test_a_condition_is_decided_once(hall: Hall) -> None:
    asked: list[bool] = []

    def first_yes(state: Journey) -> bool:
        asked.append(not asked)
        return asked[-1]

    saga = Saga(
        "discount",
        Journey,
        [compensatable(remote(hall, "redeem"), undo=NO_EFFECT, when=first_yes, timeout=5, retry=AT_ONCE)],
    )
    hall.scripts = {"redeem": [OSError("gone"), OSError("gone")]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "completed"
    assert asked == [True]


async def test_a_condition_that_fails_parks_the_saga_with_its_error(hall: Hall) -> None:
    def wrong(state: Journey) -> bool:
        raise KeyError("coupon")

    saga = Saga("discount", Journey, [compensatable(remote(hall, "redeem"), undo=NO_EFFECT, when=wrong, timeout=5)])
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert (story.status, story.error) == ("stuck", "the condition of 'redeem' failed: KeyError: 'coupon'")


async def test_a_branch_may_have_a_condition(hall: Hall) -> None:
    saga = Saga(
        "discount",
        Journey,
        [
            parallel(
                compensatable(
                    remote(hall, "redeem", "hotel"), undo=remote(hall, "give_back"), when=has_coupon, timeout=5
                ),
                compensatable(remote(hall, "pay", "flight"), undo=remote(hall, "pay_back"), timeout=5),
            ),
            compensatable(remote(hall, "ship"), undo=NO_EFFECT, timeout=5),
        ],
    )
    hall.scripts = {"ship": [StepRefused("No")]}
    async with hall.engine(saga):
        story = await hall.until_rest(await begin(hall, saga))

    assert story.status == "compensated"
    assert hall.called() == ["pay", "ship", "pay_back"]


async def _waits(hall: Hall, saga_id: UUID) -> bool:
    return (await hall.story(saga_id)).not_yet_since is not None


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
