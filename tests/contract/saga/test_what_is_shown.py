"""What an operator sees of sagas that wait, for events, for each other, or for their branches."""

from __future__ import annotations

from uuid import UUID

import pytest
import sqlalchemy as sa

from microkit.db import database_now
from microkit.errors import Conflict
from microkit.saga import Saga, compensatable, pivot, retriable
from microkit.saga.operations import Operator, compensate, resume, retry_step, skip_step
from microkit.saga.tables import saga, saga_branch, saga_wait
from tests.contract.saga.trips import AT_ONCE, Bench, Trip

pytestmark = pytest.mark.anyio

ADA = Operator("ada")


def one_at_a_time(bench: Bench) -> Saga[Trip]:
    steps = [
        compensatable(bench.local("seat"), undo=bench.local("free_seat")),
        pivot(bench.remote("pay"), timeout=5, retry=AT_ONCE),
        retriable(bench.local("tell"), retry=AT_ONCE),
    ]
    return Saga("trip", Trip, steps, key=lambda _: "bus:7")


async def two(bench: Bench, trip: Saga[Trip]) -> tuple[UUID, UUID]:
    """One that is stuck at its last step, and one that waits for it."""
    bench.scripts["tell"] = [OSError()] * 4
    async with bench.engine(trip):
        first = await bench.begin(trip)
        await bench.until(first, "stuck")
    return first, await bench.begin(trip)


async def test_one_that_waits_for_another_says_for_which_and_is_moved_on_by_nobody(bench: Bench) -> None:
    trip = one_at_a_time(bench)
    first, second = await two(bench, trip)

    story = await bench.story(second)
    assert (story.status, story.key, story.behind, story.steps) == ("queued", "bus:7", first, [])
    assert (await bench.story(first)).behind is None
    told = rf"has not begun: saga {first} is at work on 'bus:7', and one at a time can be; nothing was changed"
    with pytest.raises(Conflict, match=told):
        await bench.database.run(lambda tx: resume(tx, second, ADA))
    with pytest.raises(Conflict, match=told):
        await bench.database.run(lambda tx: retry_step(tx, second, ADA))
    with pytest.raises(Conflict, match=told):
        await bench.database.run(lambda tx: skip_step(tx, second, ADA, step="seat", sagas=[trip]))
    assert await bench.story(second) == story


async def test_when_an_operator_ends_a_saga_the_next_one_of_its_key_goes_on(bench: Bench) -> None:
    trip = one_at_a_time(bench)
    first, second = await two(bench, trip)
    await bench.database.run(lambda tx: skip_step(tx, first, ADA, step="tell", sagas=[trip]))
    async with bench.engine(trip):
        story = await bench.until_rest(second)

    assert (story.status, story.behind) == ("completed", None)
    assert (await bench.story(first)).status == "completed"


async def test_one_that_waits_for_another_can_be_called_off(bench: Bench) -> None:
    trip = one_at_a_time(bench)
    first, second = await two(bench, trip)
    third = await bench.begin(trip)
    await bench.database.run(lambda tx: compensate(tx, second, ADA, sagas=[trip]))
    assert (await bench.story(second)).status == "compensated"
    await bench.database.run(lambda tx: skip_step(tx, first, ADA, step="tell", sagas=[trip]))
    async with bench.engine(trip):
        assert (await bench.until_rest(third)).status == "completed"

    assert await bench.effects(second) == []


async def test_waits_branches_and_conditions_are_shown(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await bench.begin(trip)
    wait = {
        "saga_id": saga_id,
        "place": "pay",
        "name": "trip",
        "events": "bank.Paid|bank.Refused",
        "value": "17",
        "status": "waiting",
        "since": database_now(),
        "due": database_now(60.0),
    }
    branch = {
        "saga_id": saga_id,
        "place": "room",
        "status": "failed",
        "attempts": 2,
        "happened": True,
        "reason": "no answer",
        "updated_at": database_now(),
    }
    async with bench.database.transaction() as tx:
        known = {name: value for name, value in {**wait, "step": "pay"}.items() if name in saga_wait.c}
        await tx.execute(sa.insert(saga_wait).values(known))
        await tx.execute(sa.insert(saga_branch).values(branch))
        decided = {"decisions": {"room": False, "pay": True}}
        await tx.execute(sa.update(saga).where(saga.c.id == saga_id).values(decided))

    story = await bench.story(saga_id)
    [waits], [branches] = story.waits, story.branches
    assert (waits.place, waits.events, waits.value, waits.status) == (
        "pay",
        ["bank.Paid", "bank.Refused"],
        "17",
        "waiting",
    )
    assert (branches.place, branches.status, branches.attempts, branches.happened) == ("room", "failed", 2, True)
    assert story.left_out == ["room"]
