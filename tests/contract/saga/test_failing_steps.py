"""Steps that fail, refuse or hang: tried again, undone, or stuck until somebody resumes them."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from microkit import context
from microkit.errors import Conflict, NotFound, Unavailable
from microkit.saga import Failure, StepRefused
from microkit.saga.operations import Operator, resume
from microkit.saga.view import show_saga
from tests.contract.saga.trips import Bench, history

pytestmark = pytest.mark.anyio

OPERATOR = Operator("ada")


async def test_a_refused_pivot_compensates_in_reverse_and_tells_each_compensation_why(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepRefused("The card has expired", type="expired")]
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    why = Failure("pay", "The card has expired", "expired")
    assert story.status == "compensated"
    assert story.failure is not None
    assert (story.failure.step, story.failure.reason, story.failure.type) == ("pay", "The card has expired", "expired")
    assert history(story)[2:] == [
        ("pay", "action", 1, "refused"),
        ("room", "undo", 1, "done"),
        ("seat", "undo", 1, "done"),
    ]
    assert [(name, step.failure) for name, step in bench.calls[3:]] == [("free_room", why), ("free_seat", why)]
    assert await bench.effects() == ["seat", "free_seat"]


async def test_a_local_step_that_raises_leaves_nothing_and_is_tried_again(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["seat"] = [OSError("first"), OSError("second")]
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "completed"
    assert history(story)[:3] == [
        ("seat", "action", 1, "failed"),
        ("seat", "action", 2, "failed"),
        ("seat", "action", 3, "done"),
    ]
    assert story.steps[0].error == "OSError: first"
    assert await bench.effects() == ["seat", "tell"]


async def test_every_attempt_of_a_step_has_one_idempotency_key_and_its_undo_another(bench: Bench) -> None:
    keys: list[str | None] = []

    async def look() -> None:
        keys.append(context.current().idempotency_key)

    trip = bench.trip()
    bench.scripts = {"room": [Unavailable(), look], "pay": [StepRefused("no")], "free_room": [OSError(), look]}
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until_rest(saga_id)

    told = [step.idempotency_key for name, step in bench.calls if name in ("room", "free_room")]
    assert told == [f"{saga_id}:room"] * 2 + [f"{saga_id}:room:undo"] * 2
    assert keys == [f"{saga_id}:room", f"{saga_id}:room:undo"]


async def test_a_step_that_keeps_failing_is_undone_with_those_before_it(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["room"] = [Unavailable("away")] * 4
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "compensated"
    assert story.failure is not None
    assert story.failure.reason == "gave up after 4 attempts: away"
    assert bench.called() == ["seat", "room", "room", "room", "room", "free_room", "free_seat"]


async def test_a_compensation_that_fails_is_tried_again_until_it_holds(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts = {"pay": [StepRefused("no")], "free_seat": [OSError(), OSError(), OSError()]}
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "compensated"
    assert bench.called()[3:] == ["free_room", *["free_seat"] * 4]
    assert await bench.effects() == ["seat", "free_seat"]


async def test_a_compensation_that_never_holds_is_stuck_until_somebody_resumes_it(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts = {"pay": [StepRefused("no")], "free_room": [OSError("door")] * 5}
    async with bench.engine(trip) as engine:
        saga_id = await bench.begin(trip)
        story = await bench.until_rest(saga_id)

        assert (story.status, story.direction, story.step) == ("stuck", "undo", "room")
        assert story.error == "OSError: door"
        assert b'microkit_saga_ended_total{saga="trip",status="stuck"} 1.0' in bench.telemetry.exposition()
        assert engine.health().ok

        await bench.database.run(lambda tx: resume(tx, saga_id, OPERATOR))
        story = await bench.until(saga_id, "compensated")

    assert bench.called().count("free_room") == 6
    assert await bench.effects() == ["seat", "free_seat"]


async def test_a_pivot_elsewhere_that_never_answers_is_stuck_and_undoes_nothing(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [TimeoutError()] * 4
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert (story.status, story.direction, story.step) == ("stuck", "action", "pay")
    assert await bench.effects() == ["seat"]


async def test_an_attempt_is_cut_off_at_its_timeout(bench: Bench) -> None:
    deadlines: list[float | None] = []

    async def hang() -> None:
        deadlines.append(context.remaining())
        await asyncio.Event().wait()

    trip = bench.trip(timeout=0.05)
    bench.scripts["room"] = [hang]
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert history(story)[1:3] == [("room", "action", 1, "timed-out"), ("room", "action", 2, "done")]
    assert deadlines[0] is not None
    assert deadlines[0] <= 0.05  # what the step calls is given no longer than the step itself


async def test_a_step_that_cancels_itself_has_failed_and_the_engine_goes_on(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["room"] = [asyncio.CancelledError()]
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert history(story)[1:3] == [("room", "action", 1, "failed"), ("room", "action", 2, "done")]


async def test_only_a_stuck_saga_can_be_resumed(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until_rest(saga_id)

    with pytest.raises(Conflict, match="has ended: it is completed"):
        await bench.database.run(lambda tx: resume(tx, saga_id, OPERATOR))
    with pytest.raises(NotFound):
        await bench.database.run(lambda tx: resume(tx, uuid4(), OPERATOR))
    with pytest.raises(NotFound):
        await bench.database.run(lambda tx: show_saga(tx, uuid4()))
