"""Steps that say not yet: called again without using up an attempt or a place."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest

from microkit.errors import Unavailable
from microkit.saga import Saga, StepNotYet, StepRefused, retriable
from tests.contract.saga.trips import Bench, Deed, Trip, history

pytestmark = pytest.mark.anyio


async def test_a_saga_that_waits_holds_no_place(bench: Bench) -> None:
    """A retry lies in the table until it is due; the engine's one place is free for others meanwhile."""
    went_on = asyncio.Event()

    async def go_on() -> None:
        went_on.set()

    async def not_yet() -> None:
        if not went_on.is_set():
            raise OSError("not yet")

    waiting = Saga("waiting", Trip, [retriable(bench.remote("wait"), timeout=5)])
    quick = Saga("quick", Trip, [retriable(bench.remote("quick"), timeout=5)])
    bench.scripts = {"wait": [not_yet] * 19, "quick": [go_on]}
    async with bench.engine(waiting, quick, concurrency=1):
        first = await bench.begin(waiting)
        await bench.until_rest(await bench.begin(quick))
        story = await bench.until_rest(first)

    assert story.status == "completed"


def not_yet(times: int) -> list[Deed]:
    return [StepNotYet("others are before it", after=0.01) for _ in range(times)]


async def test_a_step_whose_turn_has_not_come_is_called_again_and_uses_up_no_attempt(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trip = bench.trip()
    bench.scripts = {"seat": not_yet(6), "pay": [*not_yet(3), Unavailable("away"), *not_yet(6)], "tell": not_yet(6)}
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "completed"
    assert history(story) == [
        ("seat", "action", 1, "done"),
        ("room", "action", 1, "done"),
        ("pay", "action", 1, "failed"),
        ("pay", "action", 2, "done"),
        ("tell", "action", 1, "done"),
    ]
    assert [step.attempt for name, step in bench.calls if name == "pay"] == [1] * 4 + [2] * 7
    assert await bench.effects() == ["seat", "tell"]
    warned = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert warned == ["saga step failed: away"]


async def test_while_it_waits_people_see_for_what_and_since_when(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepNotYet("others are before it", after=3600)]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        async with asyncio.timeout(120):
            while (story := await bench.story(saga_id)).not_yet_since is None:
                await asyncio.sleep(0.01)

    assert (story.status, story.step, story.attempts, story.error) == ("running", "pay", 0, "others are before it")
    assert story.next_at is not None
    assert story.next_at >= story.not_yet_since + timedelta(seconds=3600)


async def test_a_compensation_may_wait_for_its_turn_too(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts = {"pay": [StepRefused("no")], "free_room": not_yet(6), "free_seat": not_yet(6)}
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "compensated"
    assert story.not_yet_since is None
    assert history(story)[3:] == [("room", "undo", 1, "done"), ("seat", "undo", 1, "done")]


async def test_a_step_that_says_not_yet_beyond_its_patience_has_failed(bench: Bench) -> None:
    trip = bench.trip(patience=0.001)
    bench.scripts["room"] = not_yet(20)
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert story.status == "compensated"
    assert story.failure is not None
    assert re.match(r"gave up after 4 attempts: still not yet after \d+ s: others are before it", story.failure.reason)
    assert bench.called() == ["seat", *["room"] * 5, "free_room", "free_seat"]


async def test_the_wait_for_its_turn_outlives_the_process(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepNotYet(after=0.2)]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        async with asyncio.timeout(120):
            while bench.scripts["pay"]:
                await asyncio.sleep(0.005)
    async with bench.engine(trip):
        story = await bench.until_rest(saga_id)

    assert story.status == "completed"
    assert [step.attempt for name, step in bench.calls if name == "pay"] == [1, 1]


def test_a_wait_is_between_a_hundredth_of_a_second_and_an_hour() -> None:
    for nonsense in (0, -1, 3601, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"from 0\.01 to 3,600 seconds"):
            StepNotYet(after=nonsense)
