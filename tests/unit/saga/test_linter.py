"""What a definition refuses: each sentence says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.saga import NO_EFFECT, Retry, Saga, compensatable, pivot, retriable
from microkit.saga.step import Step


class Trip(BaseModel):
    """``person`` is there from the start, ``notes`` has a value to begin with, the others are not known yet."""

    person: str
    notes: str = ""
    room: UUID | None = None
    ticket: UUID | None = None


class Hotel:
    async def cancel(self, room: UUID | None) -> None: ...


async def reserve(state: Trip) -> dict[str, UUID]:
    return {"room": uuid4()}


async def reserve_and_forget(state: Trip) -> None: ...


async def reserve_by_assignment(state: Trip) -> None:
    state.room = uuid4()


async def reserve_somehow(state: Trip) -> Trip:
    return state.model_copy(update={"room": uuid4()})


async def reserve_by_help(state: Trip) -> None:
    remember(state)


def remember(state: Trip) -> None:
    state.room = uuid4()


async def buy(state: Trip) -> dict[str, UUID]:
    return {"ticket": uuid4(), "room": uuid4()}


async def note(state: Trip, tx: Transaction) -> None: ...


async def cancel(state: Trip, hotel: Hotel) -> None:
    await hotel.cancel(state.room)


async def cancel_by_type(trip: Trip, hotel: Hotel) -> None:
    await hotel.cancel(trip.room)


async def cancel_if_there(state: Trip, hotel: Hotel) -> None:
    if state.room is not None:
        await hotel.cancel(state.room)


async def cancel_by_variable(state: Trip, hotel: Hotel) -> None:
    room = state.room
    if room:
        await hotel.cancel(room)


async def say(state: Trip) -> None:
    print(state.person, state.notes)  # noqa: T201  something that reads them


ONCE = Retry(attempts=1)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (
            lambda: [pivot(buy, timeout=1), pivot(note)],
            r"^saga 'trip' has 2 pivots \(buy, note\): there is one point of no return; make those before it "
            r"compensatable and those after it retriable$",
        ),
        (
            lambda: [compensatable(reserve, undo=None, timeout=1), pivot(note)],  # type: ignore[call-overload]  # the wrong one is the test
            r"^step 'reserve' has no compensation: give it undo=.*or undo=NO_EFFECT where it only reads$",
        ),
        (
            lambda: [compensatable(reserve, timeout=1), pivot(note)],  # type: ignore[call-overload]  # the wrong one is the test
            r"^step 'reserve' has no compensation: give it undo=.*or undo=NO_EFFECT where it only reads$",
        ),
        (
            lambda: [retriable(note), pivot(buy, timeout=1)],
            r"'buy' is pivot and follows a retriable step: move it before 'note', or make 'note' compensatable by "
            r"giving it an undo$",
        ),
        (
            lambda: [pivot(note), compensatable(reserve, undo=cancel, timeout=1)],
            r"'reserve' is compensatable and follows a pivot step: make it retriable, or move it before 'note'$",
        ),
        (
            lambda: [pivot(note), retriable(buy, timeout=1, retry=ONCE)],
            r"^step 'buy' is retriable and has one attempt: there is no way back from it.*give it a retry= of more "
            r"attempts, or move it before the pivot and give it an undo$",
        ),
        (
            lambda: [pivot(buy)],
            r"^step 'buy' acts outside this service's transaction and has no time-out: give it timeout=, in seconds, "
            r"or have it take a Transaction",
        ),
        (
            lambda: [compensatable(note, undo=cancel)],
            r"^step 'note' acts outside this service's transaction and has no time-out: give it timeout=",
        ),
        (
            lambda: [compensatable(reserve_and_forget, undo=cancel, timeout=1)],
            r"^saga 'trip', step 'reserve_and_forget': its compensation cancel needs state.room, which neither "
            r"'reserve_and_forget' nor a step before it leaves \(no step does\): have 'reserve_and_forget' return "
            r"\{'room': ...\}, make the field required if the saga starts with it, or have cancel ask whether it is "
            r"None$",
        ),
        (
            lambda: [compensatable(reserve_and_forget, undo=cancel_by_type, timeout=1)],
            r"its compensation cancel_by_type needs state.room",
        ),
        (
            lambda: [compensatable(note, undo=cancel, timeout=1), pivot(buy, timeout=1)],
            r"needs state.room, which neither 'note' nor a step before it leaves \(only 'buy' does, which comes after",
        ),
    ],
)
def test_what_may_not_end_is_refused_with_what_to_do(steps: Callable[[], list[Step]], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        Saga("trip", Trip, steps())


@pytest.mark.parametrize(
    ("action", "undo"),
    [
        (reserve, cancel),
        (reserve, cancel_by_type),
        (reserve_by_assignment, cancel),
        (reserve_somehow, cancel),
        (reserve_by_help, cancel),
        (reserve_and_forget, cancel_if_there),
        (reserve_and_forget, cancel_by_variable),
        (reserve_and_forget, say),
        (reserve_and_forget, NO_EFFECT),
    ],
)
def test_a_compensation_that_has_what_it_needs_is_taken(action: Any, undo: Any) -> None:
    Saga("trip", Trip, [compensatable(action, undo=undo, timeout=1)])


def test_a_compensation_may_need_what_a_step_before_its_own_has_left() -> None:
    Saga("trip", Trip, [compensatable(reserve, undo=NO_EFFECT, timeout=1), compensatable(note, undo=cancel, timeout=1)])


def test_functions_without_a_source_are_taken_at_their_word() -> None:
    written: dict[str, Any] = {"Trip": Trip}
    exec("async def action(state: Trip): ...\nasync def undo(state: Trip): print(state.room)", written)
    Saga("trip", Trip, [compensatable(written["action"], undo=written["undo"], timeout=1)])
