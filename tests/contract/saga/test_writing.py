"""Transitions of many sagas that are written together: each keeps its own fate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.db import CommitUnknown, Database, DatabaseUnavailable, Transaction
from microkit.saga import Saga, SagaEngine, StepRefused, leases, retriable
from microkit.saga import writer as writer_module
from microkit.saga.leases import Turn
from microkit.saga.progress import DONE, Ended, Outcome
from microkit.saga.store import Held, LeaseLost, record_all
from microkit.saga.tables import saga as saga_table
from microkit.saga.work import Work
from microkit.saga.writer import TransitionWriter
from tests.contract.saga.trips import Bench, Trip, history

pytestmark = pytest.mark.anyio

NEXT = {"done": ["seat"]}
Unit = Callable[[Transaction], Awaitable[Any]]


class Counting:
    """A database that counts what runs on it, and does before and after each of them what it is told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.runs = 0
        self.before: list[Exception | None] = []
        self.after: list[Exception | None] = []

    async def run(self, work: Unit, **options: Any) -> Any:
        self.runs += 1
        if self.before and (error := self.before.pop(0)) is not None:
            raise error
        result = await self.database.run(work, **options)
        if self.after and (error := self.after.pop(0)) is not None:
            raise error
        return result


class Shop:
    """A writer, and sagas that were claimed for it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.saga = bench.trip()
        self.database = Counting(bench.database)
        self.writer = TransitionWriter(self.database)  # type: ignore[arg-type]  # all that it uses of one
        self._bound = SagaEngine(bench.database, bench.telemetry, [self.saga], {})._bound[self.saga.fingerprint]

    async def claim(self) -> list[Work]:
        turns = [Turn(self.saga.fingerprint, 0, 99)]
        held = await self.bench.database.run(lambda tx: leases.claim(tx, owner="me", lease=60.0, turns=turns, limit=99))
        return [Work(self._bound, each) for each in held]

    async def begin(self, count: int) -> list[Work]:
        for _ in range(count):
            await self.bench.begin(self.saga)
        return await self.claim()

    async def write(self, *works: Work, outcome: Outcome = DONE, state: Any = NEXT) -> list[Any]:
        transitions = [work.transition(outcome, state) for work in works]
        async with asyncio.timeout(60):
            return await asyncio.gather(*map(self.writer.write, transitions), return_exceptions=True)

    async def history(self, work: Work) -> list[tuple[str, str, int, str]]:
        return history(await self.bench.story(work.held.id))


@pytest.fixture
def shop(bench: Bench) -> Shop:
    return Shop(bench)


SEATED = [("seat", "action", 1, "done"), ("room", "action", 1, "under-way")]
AT_SEAT = [("seat", "action", 1, "under-way")]


async def test_what_comes_together_is_one_transaction_and_what_comes_meanwhile_is_the_next(shop: Shop) -> None:
    works = await shop.begin(12)
    written = await shop.write(*works)

    assert shop.database.runs == 1
    assert [held.step for held in written] == ["room"] * 12
    assert [held.id for held in written] == [work.held.id for work in works]
    for work in works:
        assert await shop.history(work) == SEATED


async def test_one_that_lost_its_lease_is_told_so_and_the_others_go_on(shop: Shop) -> None:
    lost, *kept = await shop.begin(5)
    await shop.bench.database.run(lambda tx: _take(tx, lost))
    first, *others = await shop.write(lost, *kept)

    assert isinstance(first, LeaseLost)
    assert all(isinstance(each, Held) for each in others)
    assert await shop.history(lost) == []
    for work in kept:
        assert await shop.history(work) == SEATED
    assert shop.database.runs == 1


async def _take(tx: Transaction, work: Work) -> None:
    """What a claim by another engine does to a saga."""
    of = saga_table.c.id == work.held.id
    await tx.execute(sa.update(saga_table).where(of).values(epoch=saga_table.c.epoch + 1, lease_owner=None))


async def test_one_that_cannot_be_written_fails_alone(shop: Shop) -> None:
    bad, *good = await shop.begin(5)
    transitions = [
        bad.transition(DONE, {"done": {"a set is no JSON"}}),
        *(each.transition(DONE, NEXT) for each in good),
    ]
    first, *others = await asyncio.gather(*map(shop.writer.write, transitions), return_exceptions=True)

    assert isinstance(first, Exception)
    assert not isinstance(first, LeaseLost)
    assert all(isinstance(each, Held) for each in others)
    assert await shop.history(bad) == AT_SEAT
    for work in good:
        assert await shop.history(work) == SEATED


async def test_one_that_is_refused_turns_back_and_takes_no_other_along(shop: Shop) -> None:
    refused, late, *done = await shop.begin(4)
    transitions = [
        refused.transition(Outcome(Ended.REFUSED, "no seats"), {"done": []}),
        late.transition(Outcome(Ended.NOT_YET, "soon", again_after=60.0), {"done": []}),
        *(each.transition(DONE, NEXT) for each in done),
    ]
    first, second, *others = await asyncio.gather(*map(shop.writer.write, transitions))

    assert (first, second) == (None, None)
    assert (await shop.bench.story(refused.held.id)).status == "compensated"
    assert await shop.history(refused) == [("seat", "action", 1, "refused")]
    waiting = await shop.bench.story(late.held.id)
    assert (waiting.status, waiting.attempts, waiting.error, history(waiting)) == ("running", 0, "soon", [])
    assert [each.step for each in others if each] == ["room", "room"]
    assert shop.database.runs == 1


async def test_one_that_is_cancelled_while_it_is_written_is_written_whole_or_not_at_all(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def slowly(tx: Transaction, transitions: Any, **options: Any) -> Any:
        inside.set()
        await go.wait()
        return await record_all(tx, transitions, **options)

    monkeypatch.setattr(writer_module, "record_all", slowly)
    gone, *kept = await shop.begin(3)
    writes = [asyncio.create_task(shop.writer.write(work.transition(DONE, NEXT))) for work in (gone, *kept)]
    await inside.wait()
    writes[0].cancel()
    await asyncio.wait(writes[:1])
    go.set()
    others = await asyncio.gather(*writes[1:])

    assert writes[0].cancelled()
    assert [held.step for held in others if held] == ["room", "room"]
    assert await shop.history(gone) == SEATED
    assert shop.writer.lag == 0.0


async def test_one_that_is_cancelled_before_its_turn_is_not_written(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def slowly(tx: Transaction, transitions: Any, **options: Any) -> Any:
        await go.wait()
        return await record_all(tx, transitions, **options)

    monkeypatch.setattr(writer_module, "record_all", slowly)
    monkeypatch.setattr(writer_module, "_HELD_UP", 60.0)
    first, second = await shop.begin(2)
    writing = asyncio.create_task(shop.writer.write(first.transition(DONE, NEXT)))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(shop.writer.write(second.transition(DONE, NEXT)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    go.set()
    await writing

    assert await shop.history(first) == SEATED
    assert await shop.history(second) == AT_SEAT


async def test_a_database_that_is_away_is_asked_until_it_is_back(shop: Shop) -> None:
    works = await shop.begin(4)
    shop.database.before = [DatabaseUnavailable("away")] * 3
    assert all(isinstance(each, Held) for each in await shop.write(*works))
    assert shop.database.runs == 4


async def test_of_a_commit_whose_outcome_is_unknown_everybody_is_told(shop: Shop) -> None:
    works = await shop.begin(3)
    shop.database.after = [CommitUnknown()]
    assert [type(each) for each in await shop.write(*works)] == [CommitUnknown] * 3
    # Sent again it changes nothing: that transition has been made.
    assert [type(each) for each in await shop.write(*works)] == [LeaseLost] * 3


async def test_commits_of_unknown_outcome_repeat_no_step_and_lose_none(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepRefused("no")] * 5
    async with bench.engine(trip) as engine:
        unsure = Counting(bench.database)
        unsure.before = [None, CommitUnknown(), None, CommitUnknown(), None, None, CommitUnknown()]
        unsure.after = [CommitUnknown(), None, CommitUnknown(), None, CommitUnknown()]
        engine._writer._database = unsure  # type: ignore[assignment]  # all that it uses of one
        for _ in range(20):
            await bench.begin(trip)
        stories = await bench.until_all_rest()

    assert unsure.before == unsure.after == []
    assert sorted(story.status for story in stories) == ["compensated"] * 5 + ["completed"] * 15
    assert len({(name, step.saga_id) for name, step in bench.calls}) == len(bench.calls)
    for story in stories:
        expected = ["seat", "tell"] if story.status == "completed" else ["seat", "free_seat"]
        assert await bench.effects(story.id) == expected


async def test_a_row_that_somebody_keeps_locked_holds_up_nobody_else(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shop.bench.database.dialect != "postgresql":
        pytest.skip("SQLite has one writer, and no locks on rows")
    monkeypatch.setattr(writer_module, "_LONGEST", 0.3)
    locked, *free = await shop.begin(4)
    async with shop.bench.database.transaction() as tx:
        await tx.execute(sa.select(saga_table.c.id).where(saga_table.c.id == locked.held.id).with_for_update())
        waiting = asyncio.create_task(shop.writer.write(locked.transition(DONE, NEXT)))
        others = await shop.write(*free)
        assert all(isinstance(each, Held) for each in others)
        more = await shop.begin(2)
        assert all(isinstance(each, Held) for each in await shop.write(*more))
        assert not waiting.done()
    async with asyncio.timeout(60):
        assert isinstance(await waiting, Held)


async def test_no_more_sagas_are_begun_while_the_database_takes_long_to_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    claiming = leases.claim
    claims = 0

    async def slowly(tx: Transaction, transitions: Any, **options: Any) -> Any:
        await go.wait()
        return await record_all(tx, transitions, **options)

    async def counted(tx: Transaction, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claiming(tx, **options)

    if bench.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer: while that is busy, nothing can be claimed anyway")
    monkeypatch.setattr(writer_module, "record_all", slowly)
    monkeypatch.setattr(leases, "claim", counted)
    saga = Saga("room", Trip, [retriable(bench.remote("room"), timeout=5)])
    async with bench.engine(saga, lease=5.0, concurrency=32) as engine:
        for _ in range(4):
            await bench.begin(saga)
        async with asyncio.timeout(60):
            while engine._writer.lag <= engine._slow:
                await asyncio.sleep(0.01)
        before = claims
        for _ in range(10):
            await bench.begin(saga)
        await asyncio.sleep(0.3)
        assert claims <= before + 1  # one may have been on its way
        assert len(engine._runs) == 4 or claims == before + 1
        go.set()
        stories = await bench.until_all_rest()
    assert {story.status for story in stories} == {"completed"}
    assert len(stories) == 14


@pytest.mark.parametrize("patience", [30.0, 0.01])
async def test_an_engine_that_is_stopped_in_the_middle_of_a_batch_leaves_nothing_half_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def slowly(tx: Transaction, transitions: Any, **options: Any) -> Any:
        recorded = await record_all(tx, transitions, **options)
        inside.set()
        await go.wait()
        return recorded

    saga = Saga("two", Trip, [retriable(bench.remote(name), timeout=60) for name in ("room", "pay")])
    for _ in range(8):
        await bench.begin(saga)
    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "record_all", slowly)
        engine = SagaEngine(bench.database, bench.telemetry, [saga], {}, lease=3600)
        await engine.start()
        await inside.wait()
        stopping = asyncio.create_task(engine.stop(patience))
        if patience > 1:
            go.set()
        await stopping
    assert engine.health().in_flight == 0
    async with bench.engine(saga):
        stories = await bench.until_all_rest()

    assert len(stories) == 8
    for story in stories:
        assert story.status == "completed"
        assert [(step.step, step.status) for step in story.steps] == [("room", "done"), ("pay", "done")]
    if patience > 1:  # else the outcomes were not on disk, and the steps were asked again, by the same keys
        assert sorted(bench.called()) == sorted(["room", "pay"] * 8)
