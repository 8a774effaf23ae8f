"""Local steps of several sagas in one transaction: none of them suffers for another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import CommitUnknown, Transaction
from microkit.saga import Saga, SagaEngine, StepContext, StepRefused, compensatable, together
from microkit.saga.tables import saga as saga_table
from tests.contract.saga.trips import AT_ONCE, Bench, effect

pytestmark = pytest.mark.anyio

SAGAS = 24


class Place(BaseModel):
    """The state: the odd one has a number of its own."""

    number: int
    kept: bool = False


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many shared each transaction, and the most that ever did."""
    found: list[int] = []
    sharing = together.LocalSteps._together

    async def noted(self: together.LocalSteps, batch: Any) -> None:
        found.append(len(batch))
        await sharing(self, batch)

    monkeypatch.setattr(together.LocalSteps, "_together", noted)
    monkeypatch.setattr(together, "QUICK", 10.0)  # on a busy machine too
    return found


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, unhurried: None) -> None:
    """What takes longer than this does not share a transaction, whose steps begin anew."""
    monkeypatch.setattr(together, "_LONGEST", 0.25)


class Seats:
    """Two local steps; ``odd`` is what happens to saga number 13 in the second."""

    def __init__(self, bench: Bench, odd: Any = None) -> None:
        self.bench = bench
        self.calls: Counter[int] = Counter()

        async def keep(state: Place, tx: Transaction, step: StepContext) -> dict[str, bool]:
            await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": "keep"})
            return {"kept": True}

        async def free(tx: Transaction, step: StepContext) -> None:
            await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": "free"})

        async def note(state: Place, tx: Transaction, step: StepContext) -> None:
            self.calls[state.number] += 1
            await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": "note"})
            if state.number == 13 and odd is not None:
                await odd(tx, step)

        self.saga = Saga(
            "seats",
            Place,
            [
                compensatable(keep, undo=free, retry=AT_ONCE),
                compensatable(note, undo=free, retry=AT_ONCE),
            ],
        )

    async def run(self, count: int = SAGAS) -> dict[int, Any]:
        """Runs one saga to have the steps known as quick, then many that are due at once; how these ended."""
        async with self.bench.engine(self.saga) as engine:
            return await self.run_with(engine, count)

    async def run_with(self, _: SagaEngine, count: int = SAGAS) -> dict[int, Any]:
        database = self.bench.database
        first = await database.run(lambda tx: self.saga.start(tx, Place(number=99)))
        await self.bench.until_rest(first)

        async def begin(tx: Transaction) -> list[Any]:
            return [await self.saga.start(tx, Place(number=number)) for number in range(count)]

        ids = await database.run(begin)
        return {number: await self.bench.until_rest(saga_id) for number, saga_id in enumerate(ids)}


async def _check(bench: Bench, stories: dict[int, Any], odd: list[str] | None = None) -> None:
    for number, story in stories.items():
        if number == 13 and odd is not None:
            assert await bench.effects(story.id) == odd
        else:
            assert story.status == "completed"
            assert await bench.effects(story.id) == ["keep", "note"]
            assert [step.attempt for step in story.steps] == [1, 1]


async def test_steps_that_are_due_together_share_a_transaction(bench: Bench, sizes: list[int]) -> None:
    seats = Seats(bench)
    stories = await seats.run()
    await _check(bench, stories)
    assert max(sizes) > 4
    assert set(seats.calls.values()) == {1}


async def test_a_refusal_turns_back_one_and_rolls_the_others_back_once(bench: Bench, sizes: list[int]) -> None:
    async def refuse(tx: Transaction, step: StepContext) -> None:
        raise StepRefused("number 13")

    seats = Seats(bench, refuse)
    stories = await seats.run()
    await _check(bench, stories, odd=["keep", "free"])
    assert stories[13].status == "compensated"
    assert max(sizes) > 4
    assert max(seats.calls.values()) <= 2


async def test_a_step_that_fails_in_the_database_fails_alone(bench: Bench) -> None:
    async def collide(tx: Transaction, step: StepContext) -> None:
        await tx.execute(sa.insert(effect), [{"number": -1, "saga_id": step.saga_id, "what": "x"}] * 2)

    seats = Seats(bench, collide)
    stories = await seats.run()
    await _check(bench, stories, odd=["keep", "free"])
    assert stories[13].failure.reason.startswith("gave up after 4 attempts")


async def test_a_step_that_hangs_holds_up_nobody(bench: Bench, hurried: None) -> None:
    """In SQLite it does, while it is alone: there one transaction writes at a time."""
    go = asyncio.Event()

    async def hang(tx: Transaction, step: StepContext) -> None:
        if bench.database.dialect == "postgresql":
            await go.wait()

    seats = Seats(bench, hang)
    async with bench.engine(seats.saga) as engine:
        running = asyncio.create_task(seats.run_with(engine))
        done = sa.select(sa.func.count()).select_from(saga_table).where(saga_table.c.status == "completed")
        async with asyncio.timeout(60):
            while await bench.scalar(done) < SAGAS:  # all but one, and the first of all
                await asyncio.sleep(0.02)
        go.set()
        stories = await running
    await _check(bench, stories)


async def test_one_that_lost_its_lease_takes_no_other_along(bench: Bench) -> None:
    """An operator, or another engine, has taken the saga away while its step was carried out."""
    if bench.database.dialect != "postgresql":
        pytest.skip("SQLite has one writer: nobody else can write while a step is carried out")
    taken: list[Any] = []

    async def lose(tx: Transaction, step: StepContext) -> None:
        if taken:
            return
        taken.append(step.saga_id)
        of = saga_table.c.id == step.saga_id
        raised = sa.update(saga_table).where(of).values(epoch=saga_table.c.epoch + 1, lease_owner=None)
        async with bench.database.transaction() as other:
            await other.execute(raised.values(next_at=saga_table.c.created_at))

    seats = Seats(bench, lose)
    stories = await seats.run()
    assert len(taken) == 1
    for story in stories.values():
        assert story.status == "completed"
        assert await bench.effects(story.id) == ["keep", "note"]


class Troubled:
    """The database of an engine's local steps, with ``trouble`` after each COMMIT that several of them share."""

    def __init__(self, engine: SagaEngine, trouble: Callable[[int], Awaitable[None]]) -> None:
        self.shared = 0
        self._trouble = trouble
        local = engine._runner._local
        self._database = local._database
        local._database = self  # type: ignore[assignment]  # ``run`` is all that it uses of one

    async def run(self, work: Any, **options: Any) -> Any:
        result = await self._database.run(work, **options)
        if isinstance(result, list) and len(result) > 1:
            self.shared += 1
            await self._trouble(self.shared)
        return result


async def test_a_commit_of_unknown_outcome_repeats_no_effect(bench: Bench, sizes: list[int]) -> None:
    async def unknown(number: int) -> None:
        if number <= 3:
            raise CommitUnknown

    seats = Seats(bench)
    async with bench.engine(seats.saga) as engine:
        troubled = Troubled(engine, unknown)
        stories = await seats.run_with(engine)
    await _check(bench, stories)
    assert troubled.shared > 0


async def test_a_slow_commit_is_not_taken_for_a_lock(bench: Bench, sizes: list[int], hurried: None) -> None:
    """Cut off it stands all the same, and then its sagas would wait until their leases run out."""

    async def slow(number: int) -> None:
        if number == 1:
            await asyncio.sleep(0.5)  # it is committed, and the answer is on its way

    seats = Seats(bench)
    async with bench.engine(seats.saga) as engine:
        troubled = Troubled(engine, slow)
        async with asyncio.timeout(25):  # a lease lasts for 30
            stories = await seats.run_with(engine)
    await _check(bench, stories)
    assert troubled.shared > 0
