"""Keys, concurrency and rates; definitions that are gone and come back."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from microkit.errors import Conflict, TooManyRequests
from microkit.saga import NO_EFFECT, Rate, Retry, Saga, StepRefused, compensatable
from microkit.saga.operations import Operator, compensate, skip_step
from microkit.saga.tables import saga as saga_table
from tests.contract.saga.trips import AT_ONCE, Bench, Trip

pytestmark = pytest.mark.anyio

OPERATOR = Operator("ada")


def bill(bench: Bench, **limits: Any) -> Saga[Trip]:
    return Saga(
        "bill", Trip, [compensatable(bench.remote("pay"), undo=NO_EFFECT, timeout=60, retry=Retry(1))], **limits
    )


def same(state: Trip) -> str:
    return f"bill:{','.join(state.done)}"


class Gate:
    """What steps wait at. ``most`` is how many were there at once."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.opened.wait()
        self.inside -= 1


async def test_a_second_saga_on_a_key_waits_and_goes_on_when_the_first_ends(bench: Bench) -> None:
    saga, gate = bill(bench, key=same), Gate()
    bench.scripts["pay"] = [gate, None, None]
    async with bench.engine(saga):
        ids = [await bench.begin(saga) for _ in range(3)]
        other = await bench.begin(saga, Trip(done=["other"]))
        assert (await bench.until_rest(other)).status == "completed"
        assert [(await bench.story(each)).status for each in ids] == ["running", "queued", "queued"]
        gate.opened.set()
        assert [(await bench.until_rest(each)).status for each in ids] == ["completed"] * 3

    order = [step.saga_id for _, step in bench.calls if step.saga_id != other]
    assert order == ids
    assert await _keys(bench) == 0


async def test_sagas_of_different_definitions_may_share_a_key(bench: Bench) -> None:
    refund = Saga("refund", Trip, [compensatable(bench.remote("refund"), undo=NO_EFFECT, timeout=60)], key=same)
    saga = bill(bench, key=same)
    first = await bench.begin(saga)
    second = await bench.begin(refund)

    assert (await bench.story(second)).status == "queued"
    async with bench.engine(saga, refund):
        assert (await bench.until_rest(second)).status == "completed"
    assert (await bench.story(first)).status == "completed"


async def test_the_start_of_a_second_saga_on_a_key_may_be_refused(bench: Bench) -> None:
    saga = bill(bench, key=same, on_busy="refuse")
    first = await bench.begin(saga)
    with pytest.raises(Conflict, match=f"Saga {first} is at work on 'bill:'"):
        await bench.begin(saga)
    assert await bench.begin(saga, saga_id=first) == first  # again, which is no second one
    async with bench.engine(saga):
        await bench.until_rest(first)
        assert (await bench.until_rest(await bench.begin(saga))).status == "completed"


async def test_a_start_that_is_rolled_back_takes_no_key(bench: Bench) -> None:
    saga = bill(bench, key=same, on_busy="refuse")

    async def start_and_fail(tx: Any) -> None:
        await saga.start(tx, Trip())
        raise LookupError

    with pytest.raises(LookupError):
        await bench.database.run(start_and_fail)
    assert await _keys(bench) == 0


async def test_a_compensated_saga_gives_its_key_back_and_a_stuck_one_keeps_it(bench: Bench) -> None:
    saga = Saga(
        "bill",
        Trip,
        [compensatable(bench.remote("pay"), undo=bench.remote("unpay"), timeout=5, retry=AT_ONCE, undo_retry=AT_ONCE)],
        key=same,
    )
    bench.scripts = {"pay": [StepRefused("no"), *[OSError()] * 4], "unpay": [OSError()] * 4}
    async with bench.engine(saga):
        assert (await bench.until_rest(await bench.begin(saga))).status == "compensated"
        stuck = await bench.begin(saga)
        assert (await bench.until_rest(stuck)).status == "stuck"
        waiting = await bench.begin(saga)
        assert (await bench.story(waiting)).status == "queued"
        await bench.database.run(lambda tx: skip_step(tx, stuck, OPERATOR, step="pay", sagas=[saga]))
        assert (await bench.until_rest(waiting)).status == "completed"


async def test_a_saga_that_is_cancelled_while_it_waits_for_its_key_is_passed_over(bench: Bench) -> None:
    saga = bill(bench, key=same)
    ids = [await bench.begin(saga) for _ in range(3)]
    await bench.database.run(lambda tx: compensate(tx, ids[1], OPERATOR, sagas=[saga]))
    async with bench.engine(saga):
        assert [(await bench.until_rest(each)).status for each in ids] == ["completed", "compensated", "completed"]


async def test_many_starts_and_ends_at_once_overlook_nobody(bench: Bench) -> None:
    saga = bill(bench, key=same)
    async with bench.engine(saga), bench.engine(saga):

        async def start(number: int) -> UUID:
            await asyncio.sleep(number % 7 / 100)
            return await bench.begin(saga, Trip(done=[str(number % 3)]))

        ids = await asyncio.gather(*(start(number) for number in range(45)))
        assert {(await bench.until_rest(each)).status for each in ids} == {"completed"}
    assert await _keys(bench) == 0


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb"])
async def test_a_key_that_is_none_is_refused_at_the_start(bench: Bench, key: str) -> None:
    saga = bill(bench, key=lambda state: key)
    with pytest.raises(ValueError, match="a key is text of 1 to 200 printable characters"):
        await bench.begin(saga)


async def test_all_engines_together_have_no_more_sagas_of_a_name_at_work_than_it_says(bench: Bench) -> None:
    saga, gate = bill(bench, concurrency=2), Gate()
    bench.scripts["pay"] = [gate] * 12
    ids = [await bench.begin(saga) for _ in range(12)]
    async with bench.engine(saga), bench.engine(saga):

        async def two() -> None:
            while gate.inside < 2:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(two(), 30)
        await asyncio.sleep(0.3)
        gate.opened.set()
        for each in ids:
            await bench.until_rest(each)

    assert gate.most == 2


async def test_sagas_above_the_rate_begin_later_and_in_order(bench: Bench) -> None:
    saga = bill(bench, rate=Rate(2, per=60, burst=2))
    ids = [await bench.begin(saga) for _ in range(4)]
    async with bench.database.transaction(read_only=True) as tx:
        rows = {row.id: row for row in await tx.execute(sa.select(saga_table))}
    waits = [(rows[each].next_at - rows[each].created_at).total_seconds() for each in ids]

    assert waits[0] == pytest.approx(0, abs=0.1)
    assert waits[1] == pytest.approx(0, abs=0.1)
    assert 20 < waits[2] <= 30.1
    assert 50 < waits[3] <= 60.1


async def test_a_rate_may_refuse_and_may_count_each_key(bench: Bench) -> None:
    saga = bill(bench, key=same, on_busy="refuse", rate=Rate(1, per=600, each="key"))
    async with bench.engine(saga):
        await bench.until_rest(await bench.begin(saga))
        with pytest.raises(TooManyRequests, match="1 sagas may begin in 600 s"):
            await bench.begin(saga)
        assert (await bench.until_rest(await bench.begin(saga, Trip(done=["other"])))).status == "completed"


async def test_a_saga_whose_version_is_gone_is_parked_and_goes_on_when_it_is_back(bench: Bench) -> None:
    old, new = bench.trip(version=1), bench.trip(version=2)
    parked, at_once = await bench.begin(old), uuid4()
    async with bench.engine(new, lease=3.0, stranger_after=0.2):  # it looks three times a lease
        await bench.begin(new, saga_id=at_once)
        story = await bench.until(parked, "stuck")
        assert (await bench.until_rest(at_once)).status == "completed"
    assert story.error is not None
    assert "its definition is gone" in story.error
    async with bench.engine(new, old, stranger_after=0.2):
        story = await bench.until(parked, "completed")

    assert story.state == {"done": ["seat", "room", "pay", "tell"]}


async def test_running_sagas_stay_on_their_version_while_old_and_new_engines_run_side_by_side(bench: Bench) -> None:
    old = bench.trip(version=1)
    new = Saga("trip", Trip, [compensatable(bench.local("cycle"), undo=NO_EFFECT)], version=2)
    async with bench.engine(old), bench.engine(old, new):
        ends = {each: await bench.begin(each) for each in (old, new)}
        stories = {each: await bench.until_rest(saga_id) for each, saga_id in ends.items()}

    assert stories[old].state["done"] == ["seat", "room", "pay", "tell"]
    assert stories[new].state["done"] == ["cycle"]
    # Rolled back: the old engine alone leaves sagas of the new version to whoever knows it.
    left = await bench.begin(new)
    async with bench.engine(old):
        await bench.until_rest(await bench.begin(old))
        assert (await bench.story(left)).status == "running"


async def _keys(bench: Bench) -> int:
    return int(await bench.scalar(sa.select(sa.func.count()).select_from(sa.text("saga_key"))))
