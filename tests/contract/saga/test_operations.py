"""What operators do to sagas: each command moves one saga, once, and is on record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from microkit.db import Transaction
from microkit.errors import BadRequest, Conflict, NotFound
from microkit.saga import Retry, Saga, StepNotYet, StepRefused, compensatable, pivot, retriable
from microkit.saga.operations import Operator, compensate, resume, retry_step, skip_step
from microkit.saga.view import SagaStory
from tests.contract.saga.trips import AT_ONCE, Bench, Trip, history

pytestmark = pytest.mark.anyio

ADA = Operator("ada", "the hotel has called")
Command = Callable[[Transaction, UUID, Operator, Saga[Trip]], Awaitable[None]]


async def do_resume(tx: Transaction, saga_id: UUID, operator: Operator, saga: Saga[Trip]) -> None:
    await resume(tx, saga_id, operator, sagas=[saga])


async def do_retry(tx: Transaction, saga_id: UUID, operator: Operator, saga: Saga[Trip]) -> None:
    await retry_step(tx, saga_id, operator, sagas=[saga])


async def do_skip(tx: Transaction, saga_id: UUID, operator: Operator, saga: Saga[Trip]) -> None:
    await skip_step(tx, saga_id, operator, step="pay", sagas=[saga])


async def do_compensate(tx: Transaction, saga_id: UUID, operator: Operator, saga: Saga[Trip]) -> None:
    await compensate(tx, saga_id, operator, sagas=[saga], pivot_did_not_happen=True)


COMMANDS: list[Command] = [do_resume, do_retry, do_skip, do_compensate]


async def stuck_at_the_pivot(bench: Bench, trip: Saga[Trip]) -> UUID:
    bench.scripts["pay"] = [TimeoutError()] * 4
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        assert (await bench.until_rest(saga_id)).status == "stuck"
    return saga_id


async def act(bench: Bench, command: Command, saga_id: UUID, operator: Operator, trip: Saga[Trip]) -> None:
    await bench.database.run(lambda tx: command(tx, saga_id, operator, trip))


def done(story: SagaStory) -> list[tuple[str, str, str | None, str, str, str]]:
    return [
        (each.operation, each.operator, each.reason, each.status, each.direction, each.step)
        for each in story.operations
    ]


@pytest.mark.parametrize(
    ("command", "name", "ends", "steps"),
    [
        (do_resume, "resume", "completed", [("pay", "action", 2, "done"), ("tell", "action", 1, "done")]),
        (do_retry, "retry-step", "completed", [("pay", "action", 2, "done"), ("tell", "action", 1, "done")]),
        (do_skip, "skip-step", "completed", [("pay", "action", 4, "skipped"), ("tell", "action", 1, "done")]),
        (do_compensate, "compensate", "compensated", [("room", "undo", 1, "done"), ("seat", "undo", 1, "done")]),
    ],
)
async def test_a_stuck_saga_goes_on_as_the_operator_says_and_the_audit_trail_says_who(
    bench: Bench, command: Command, name: str, ends: str, steps: list[tuple[str, str, int, str]]
) -> None:
    trip = bench.trip()
    saga_id = await stuck_at_the_pivot(bench, trip)
    await act(bench, command, saga_id, ADA, trip)
    async with bench.engine(trip):
        story = await bench.until_rest(saga_id)

    assert story.status == ends
    assert history(story)[6:] == steps
    assert done(story) == [(name, "ada", "the hotel has called", "stuck", "action", "pay")]
    assert bench.called().count("pay") == (5 if name in ("resume", "retry-step") else 4)


async def test_compensations_are_told_the_operators_reason(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await stuck_at_the_pivot(bench, trip)
    await act(bench, do_compensate, saga_id, ADA, trip)
    async with bench.engine(trip):
        story = await bench.until_rest(saga_id)

    assert story.failure is not None
    assert story.failure.model_dump() == {"step": "pay", "reason": "the hotel has called", "type": "operator"}


@pytest.mark.parametrize("command", COMMANDS)
async def test_of_two_operators_at_once_one_is_first_and_the_other_is_told_who(bench: Bench, command: Command) -> None:
    trip = bench.trip()
    saga_id = await stuck_at_the_pivot(bench, trip)
    seen = (await bench.story(saga_id)).epoch

    both = [act(bench, command, saga_id, Operator(name, epoch=seen), trip) for name in ("ada", "bob")]
    outcomes = await asyncio.gather(*both, return_exceptions=True)

    [lost] = [each for each in outcomes if each is not None]
    story = await bench.story(saga_id)
    assert len(story.operations) == 1
    first = story.operations[0]
    assert isinstance(lost, Conflict)
    assert f"Another operator was faster: {first.operator} did {first.operation} to saga {saga_id}" in str(lost)
    assert "nothing of yours was done" in str(lost)
    assert story.epoch == seen + 1


async def test_who_looked_before_an_engine_moved_it_on_changes_nothing(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await stuck_at_the_pivot(bench, trip)
    seen = (await bench.story(saga_id)).epoch
    await act(bench, do_resume, saga_id, ADA, trip)
    bench.scripts["pay"] = [TimeoutError()] * 4
    async with bench.engine(trip):
        story = await bench.until(saga_id, "stuck")

    for command in COMMANDS:
        with pytest.raises(Conflict, match="Another operator was faster: ada did resume"):
            await act(bench, command, saga_id, Operator("bob", epoch=seen), trip)
    assert await bench.story(saga_id) == story


@pytest.mark.parametrize("end", ["completed", "compensated"])
async def test_an_ended_saga_is_left_alone(bench: Bench, end: str) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepRefused("no")] if end == "compensated" else []
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        story = await bench.until_rest(saga_id)

    for command in COMMANDS:
        with pytest.raises(Conflict, match=rf"has ended: it is {end} since .* UTC; nothing was changed"):
            await act(bench, command, saga_id, ADA, trip)
        with pytest.raises(NotFound, match="There is no saga"):
            await act(bench, command, uuid4(), ADA, trip)
    assert await bench.story(saga_id) == story


async def test_the_late_write_of_an_attempt_that_was_cut_off_changes_nothing(bench: Bench) -> None:
    trip = bench.trip(timeout=60)
    go, begun = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await go.wait()

    bench.scripts["room"] = [hang]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await asyncio.wait_for(begun.wait(), 30)
        await bench.database.run(lambda tx: skip_step(tx, saga_id, ADA, step="room", sagas=[trip]))
        async with bench.engine(trip):  # another instance takes it up while the first one still hangs
            story = await bench.until_rest(saga_id)
        go.set()
        await asyncio.sleep(0.1)
        later = await bench.story(saga_id)

    assert story.status == "completed"
    assert story.state == {"done": ["seat", "pay", "tell"]}
    assert history(story)[1] == ("room", "action", 1, "skipped")
    assert later == story


async def test_a_local_step_that_is_under_way_is_rolled_back_when_an_operator_retries_it(bench: Bench) -> None:
    if bench.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer: an operator's command waits for the step's transaction")
    trip = bench.trip()
    go, begun = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        await go.wait()

    bench.scripts["seat"] = [hang]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await asyncio.wait_for(begun.wait(), 30)
        await bench.database.run(lambda tx: retry_step(tx, saga_id, ADA, step="seat"))
        go.set()
        story = await bench.until_rest(saga_id)

    assert story.status == "completed"
    assert history(story)[:2] == [("seat", "action", 1, "lost"), ("seat", "action", 2, "done")]
    assert story.steps[0].error == "retry-step by ada"
    assert await bench.effects(saga_id) == ["seat", "tell"]


async def test_a_saga_that_waits_is_compensated_with_the_step_that_may_have_happened(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["room"] = [StepNotYet("full", after=3600)]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        async with asyncio.timeout(30):
            while (await bench.story(saga_id)).not_yet_since is None:
                await asyncio.sleep(0.01)
        await act(bench, do_compensate, saga_id, Operator("ada"), trip)
        story = await bench.until_rest(saga_id)

    assert (story.status, story.not_yet_since) == ("compensated", None)
    assert history(story)[1:] == [("seat", "undo", 1, "done")]  # the room said itself that it did nothing
    assert story.failure is not None
    assert story.failure.reason == "It was cancelled by an operator."


async def test_a_pivot_that_may_have_happened_is_turned_back_only_by_who_says_that_it_did_not(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await stuck_at_the_pivot(bench, trip)
    before = await bench.story(saga_id)

    with pytest.raises(Conflict, match=r"may have happened: nothing was changed; make sure that it did not"):
        await bench.database.run(lambda tx: compensate(tx, saga_id, ADA, sagas=[trip]))
    assert await bench.story(saga_id) == before


async def test_past_its_pivot_a_saga_is_not_turned_back(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["tell"] = [OSError()] * 4
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until(saga_id, "stuck")
    before = await bench.story(saga_id)

    with pytest.raises(Conflict, match="'tell', past its point of no return: nothing was changed"):
        await act(bench, do_compensate, saga_id, ADA, trip)
    assert await bench.story(saga_id) == before


async def test_a_compensation_that_is_stuck_can_be_skipped_and_not_begun_again(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts = {"pay": [StepRefused("no")], "free_room": [OSError()] * 4}
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until_rest(saga_id)
        with pytest.raises(Conflict, match="is being compensated already"):
            await act(bench, do_compensate, saga_id, ADA, trip)
        with pytest.raises(Conflict, match="is at step 'room', not at 'seat': nothing was changed"):
            await bench.database.run(lambda tx: skip_step(tx, saga_id, ADA, step="seat", sagas=[trip]))
        await bench.database.run(lambda tx: skip_step(tx, saga_id, ADA, step="room", sagas=[trip]))
        story = await bench.until_rest(saga_id)

    assert story.status == "compensated"
    assert history(story)[-2:] == [("room", "undo", 4, "skipped"), ("seat", "undo", 1, "done")]


async def test_skipping_the_last_step_ends_the_saga(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["tell"] = [OSError()] * 4
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until(saga_id, "stuck")
    await bench.database.run(lambda tx: skip_step(tx, saga_id, ADA, step="tell", sagas=[trip]))

    story = await bench.story(saga_id)
    assert (story.status, story.step, story.error, story.next_at) == ("completed", None, None, None)


async def test_only_a_stuck_saga_is_resumed_and_one_whose_definition_is_gone_is_not_skipped(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await bench.begin(trip)

    with pytest.raises(Conflict, match="is running, not stuck: nothing was changed"):
        await act(bench, do_resume, saga_id, ADA, trip)
    with pytest.raises(Conflict, match="'trip', version 1, that is not here: nothing was changed"):
        await bench.database.run(lambda tx: skip_step(tx, saga_id, ADA, step="seat", sagas=[bench.trip(version=2)]))
    assert (await bench.story(saga_id)).operations == []


async def test_a_step_of_one_attempt_has_another_when_an_operator_says_so(bench: Bench) -> None:
    once = Retry(attempts=1)
    steps = [compensatable(bench.remote("room"), undo=bench.remote("free"), timeout=5, retry=once), *pay_once(bench)]
    saga = Saga("trip", Trip, steps)
    bench.scripts["pay"] = [TimeoutError()]
    async with bench.engine(saga):
        saga_id = await bench.begin(saga)
        assert (await bench.until_rest(saga_id)).status == "stuck"
        await act(bench, do_resume, saga_id, ADA, saga)
        assert (await bench.until_rest(saga_id)).status == "completed"

    assert bench.called() == ["room", "pay", "pay", "tell"]


def pay_once(bench: Bench) -> list[Any]:
    once = Retry(attempts=1)
    return [pivot(bench.remote("pay"), timeout=5, retry=once), retriable(bench.local("tell"), retry=AT_ONCE)]


@pytest.mark.parametrize(
    ("name", "reason"), [("", None), (" ", None), ("a" * 201, None), ("a\x00", None), ("a", "b" * 1001)]
)
def test_an_operator_has_a_name(name: str, reason: str | None) -> None:
    with pytest.raises(BadRequest):
        Operator(name, reason)
