"""Who may carry a saga on: one engine at a time, and another when that is gone, paused, stopped or too old."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.db.failure import DatabaseUnavailable
from microkit.saga import Saga, SagaEngine, StepContext, StepRefused, leases, retriable
from microkit.saga.leases import Turn
from microkit.saga.operations import Operator, resume
from microkit.saga.progress import DONE
from microkit.saga.store import LeaseLost, record
from microkit.saga.tables import saga as saga_table
from microkit.saga.work import Work
from tests.contract.saga.trips import Bench, Trip, effect, history

pytestmark = pytest.mark.anyio

OPERATOR = Operator("ada")


def paused(engine: SagaEngine) -> None:
    """Does to an engine what SIGSTOP does: it claims nothing, its leases are kept no longer, and it does not know."""
    for loop in engine._loops:
        loop.cancel()


async def test_a_saga_of_a_paused_engine_is_taken_over_and_what_it_writes_later_is_refused(bench: Bench) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        began.set()
        await go.wait()

    trip = bench.trip()
    bench.scripts["room"] = [pause]
    async with bench.engine(trip) as first:
        saga_id = await bench.begin(trip)
        await began.wait()
        paused(first)
        await bench.later()
        async with bench.engine(trip):
            story = await bench.until_rest(saga_id)
            go.set()
            await asyncio.wait([run.task for run in first._runs.values()], timeout=30)
            assert first.health().in_flight == 0

    again = await bench.story(saga_id)
    assert again == story
    assert story.status == "completed"
    assert history(story)[1:3] == [("room", "action", 2, "done"), ("pay", "action", 1, "done")]
    keys = [step.idempotency_key for name, step in bench.calls if name == "room"]
    assert keys == [f"{saga_id}:room"] * 2  # the other side is asked twice, by one key


async def test_the_local_effect_of_an_engine_that_lost_its_lease_is_rolled_back(bench: Bench) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def seat(tx: Transaction, step: StepContext) -> None:
        if step.attempt == 1:
            began.set()
            await go.wait()
        await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": f"attempt {step.attempt}"})

    saga = Saga("seat", Trip, [retriable(seat)])
    async with bench.engine(saga) as first:
        saga_id = await bench.begin(saga)
        await began.wait()
        paused(first)
        await bench.later()
        async with bench.engine(saga):
            await bench.until_rest(saga_id)
            go.set()
            await asyncio.wait([run.task for run in first._runs.values()], timeout=30)

    assert await bench.effects() == ["attempt 2"]


async def test_a_write_under_an_old_epoch_changes_nothing(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await bench.begin(trip)
    engine = SagaEngine(bench.database, bench.telemetry, [trip], {})

    async def claim(owner: str) -> Work:
        found = await bench.database.run(
            lambda tx: leases.claim(tx, owner=owner, lease=0.0, turns=[Turn(trip.fingerprint, 0, 1)], limit=1)
        )
        return Work(engine._bound[trip.fingerprint], found[0])

    old, new = await claim("old"), await claim("new")
    before = await bench.story(saga_id)
    with pytest.raises(LeaseLost):
        await bench.database.run(old.effect_and_progress)
    assert await bench.database.run(lambda tx: leases.reload(tx, owner="old", held=old.held)) is None
    assert await bench.database.run(lambda tx: leases.heartbeat(tx, owner="old", lease=9.0, ids=[saga_id])) == set()
    await bench.database.run(lambda tx: leases.park(tx, held=old.held, reason="stale"))
    await bench.database.run(lambda tx: leases.release(tx, owner="old", unbegun=[saga_id]))

    assert await bench.story(saga_id) == before
    assert await bench.effects() == []
    assert (await bench.database.run(new.effect_and_progress)) is not None
    assert await bench.effects() == ["seat"]


async def test_a_long_step_keeps_its_lease_by_heartbeats(bench: Bench) -> None:
    lease = 3.0  # a machine that stands still for two seconds takes none away

    async def long() -> None:
        await asyncio.sleep(1.2 * lease)

    trip = bench.trip()
    bench.scripts["room"] = [long]
    async with bench.engine(trip, lease=lease), bench.engine(trip, lease=lease):
        story = await bench.until_rest(await bench.begin(trip))

    assert bench.called() == ["seat", "room", "pay", "tell"]
    assert history(story)[1] == ("room", "action", 1, "done")


async def test_two_engines_on_one_table_share_the_sagas_and_repeat_nothing(bench: Bench) -> None:
    trip = bench.trip()
    bench.scripts["pay"] = [StepRefused("no")] * 20
    async with bench.engine(trip, concurrency=4), bench.engine(trip, concurrency=4):
        ids = [await bench.begin(trip) for _ in range(60)]
        stories = await bench.until_all_rest()

    assert len({(name, step.saga_id) for name, step in bench.calls}) == len(bench.calls)
    assert [str(story.status) for story in stories].count("compensated") == 20
    assert [str(story.status) for story in stories].count("completed") == 40
    for saga_id in ids:
        assert await bench.effects(saga_id) in (["seat", "tell"], ["seat", "free_seat"])


async def test_a_stopped_engine_finishes_its_step_and_leaves_the_rest_to_others_at_once(bench: Bench) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        began.set()
        await go.wait()

    trip = bench.trip()
    bench.scripts["room"] = [pause]
    async with bench.engine(trip, lease=3600):
        saga_id = await bench.begin(trip)
        await began.wait()
        asyncio.get_running_loop().call_later(0.05, go.set)

    assert bench.called() == ["seat", "room"]
    async with bench.engine(trip, lease=3600):
        story = await bench.until_rest(saga_id)
    assert history(story) == [
        ("seat", "action", 1, "done"),
        ("room", "action", 1, "done"),
        ("pay", "action", 1, "done"),
        ("tell", "action", 1, "done"),
    ]


async def test_a_step_that_outlasts_the_stop_is_cut_off_and_counted_as_unknown(bench: Bench) -> None:
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    trip = bench.trip()
    bench.scripts["room"] = [hang]
    engine = SagaEngine(bench.database, bench.telemetry, [trip], {}, lease=3600)
    await engine.start()
    saga_id = await bench.begin(trip)
    await began.wait()
    await engine.stop(timeout=0.01)
    await engine.stop()  # a second time it does nothing

    bench.scripts["room"] = [StepRefused("full")]
    async with bench.engine(trip, lease=3600):
        story = await bench.until_rest(saga_id)
    assert history(story)[1:3] == [("room", "action", 2, "refused"), ("room", "undo", 1, "done")]


async def test_a_step_that_ends_its_process_each_time_is_given_up(bench: Bench) -> None:
    trip = bench.trip()
    saga_id = await bench.begin(trip)
    for _ in range(4):  # four processes that claim it, begin the first step, and are gone
        await bench.database.run(
            lambda tx: leases.claim(tx, owner=uuid4().hex, lease=0.0, turns=[Turn(trip.fingerprint, 0, 1)], limit=1)
        )
    async with bench.engine(trip):
        story = await bench.until_rest(saga_id)

    assert bench.calls == []
    assert story.status == "compensated"
    assert history(story) == [("seat", "action", 5, "lost")]


async def test_each_saga_goes_on_with_the_version_it_began_with(bench: Bench) -> None:
    old = bench.trip(version=1)
    new = Saga("trip", Trip, [retriable(bench.local("walk"))], version=2)
    first, second = await bench.begin(old), await bench.begin(new)
    async with bench.engine(new, old):
        await bench.until_all_rest()

    assert await bench.effects(first) == ["seat", "tell"]
    assert await bench.effects(second) == ["walk"]


@pytest.mark.parametrize("change", ["version gone", "steps changed"])
async def test_a_saga_whose_definition_is_gone_is_parked_and_goes_on_when_it_is_back(bench: Bench, change: str) -> None:
    began_with = bench.trip()
    version = 2 if change == "version gone" else 1
    now = Saga("trip", Trip, [retriable(bench.local("walk"))], version=version)
    saga_id = await bench.begin(began_with)
    async with bench.engine(now, lease=0.3, stranger_after=0.1):  # it looks three times a lease
        story = await bench.until_rest(saga_id)

    assert (story.status, story.step, bench.calls) == ("stuck", "seat", [])
    assert story.error is not None
    assert "definition is gone or was changed" in story.error

    await bench.database.run(lambda tx: resume(tx, saga_id, OPERATOR))
    async with bench.engine(began_with):
        assert (await bench.until_rest(saga_id)).status == "completed"


async def test_an_engine_that_has_just_come_parks_nothing_it_does_not_know(bench: Bench) -> None:
    """In a rolling deployment the old version meets sagas of the new one before it ends itself."""
    new, old = bench.trip(version=2), bench.trip(version=1)
    saga_id = await bench.begin(new)
    async with bench.engine(old):
        await bench.until_rest(await bench.begin(old))
        assert (await bench.story(saga_id)).status == "running"


async def test_a_state_that_no_longer_fits_its_model_parks_the_saga(bench: Bench) -> None:
    class Wider(BaseModel):
        passport: str

    async def seat(tx: Transaction) -> None:
        raise AssertionError("not reached")

    before = Saga("trip", Trip, [retriable(bench.local("seat"))])
    after = Saga("trip", Wider, [retriable(seat)])
    assert after.fingerprint == before.fingerprint
    saga_id = await bench.begin(before)
    async with bench.engine(after):
        story = await bench.until_rest(saga_id)

    assert (story.status, bench.calls) == ("stuck", [])
    assert story.error == "the stored state does not fit Wider: passport: Field required"


async def test_finished_sagas_are_outside_of_the_index_that_is_claimed_from(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await bench.until_rest(saga_id)

    row = sa.select(saga_table.c.next_at, saga_table.c.lease_owner).where(saga_table.c.id == saga_id)
    async with bench.database.transaction(read_only=True) as tx:
        assert tuple((await tx.execute(row)).one()) == (None, None)


async def test_a_transition_is_written_once_even_if_it_is_sent_twice(bench: Bench) -> None:
    """As after a COMMIT whose answer was lost."""
    saga = Saga("room", Trip, [retriable(bench.remote("room"), timeout=1), retriable(bench.local("tell"))])
    saga_id = await bench.begin(saga)
    engine = SagaEngine(bench.database, bench.telemetry, [saga], {})
    [held] = await bench.database.run(
        lambda tx: leases.claim(tx, owner="me", lease=9.0, turns=[Turn(saga.fingerprint, 0, 1)], limit=1)
    )
    work = Work(engine._bound[saga.fingerprint], held)
    transition = work.transition(DONE, {"done": ["room"]})
    await bench.database.run(lambda tx: record(tx, transition))
    with pytest.raises(LeaseLost):
        await bench.database.run(lambda tx: record(tx, transition))
    assert history(await bench.story(saga_id)) == [("room", "action", 1, "done"), ("tell", "action", 1, "under-way")]


async def test_a_database_that_is_away_is_told_once_and_without_a_stack(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trip, tried = bench.trip(), 0

    async def away(*_: object, **__: object) -> list[object]:
        nonlocal tried
        tried += 1
        raise DatabaseUnavailable("The database cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(leases, "claim", away)
        async with bench.engine(trip), asyncio.timeout(30):
            while tried < 3:
                await asyncio.sleep(0.01)
    failed = [each for each in caplog.records if each.getMessage().startswith("saga engine:")]
    assert [each.getMessage() for each in failed] == ["saga engine: claim failed: The database cannot be reached"]
    assert failed[0].exc_info is None


async def test_moving_on_touches_no_index(bench: Bench) -> None:
    """PostgreSQL's heap-only update: what makes a step cheap however many sagas there are."""
    if bench.database.dialect != "postgresql":
        pytest.skip("a heap-only update is PostgreSQL's")
    trip = bench.trip()
    await bench.begin(trip)
    engine = SagaEngine(bench.database, bench.telemetry, [trip], {})
    [held] = await bench.database.run(
        lambda tx: leases.claim(tx, owner="me", lease=9.0, turns=[Turn(trip.fingerprint, 0, 1)], limit=1)
    )
    work = Work(engine._bound[trip.fingerprint], held)
    async with bench.database.transaction() as tx:
        assert await record(tx, work.transition(DONE, {"done": ["seat"]})) is not None
        hot = sa.text("SELECT pg_stat_get_xact_tuples_hot_updated('saga'::regclass)")
        assert (await tx.execute(hot)).scalar() == 1


async def test_one_heartbeat_is_one_statement_however_many_sagas_it_keeps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    beats: list[int] = []
    beating = leases.heartbeat

    async def noted(tx: Transaction, **options: Any) -> Any:
        kept = await beating(tx, **options)
        beats.append(len(kept))
        return kept

    async def wait() -> None:
        await go.wait()

    monkeypatch.setattr(leases, "heartbeat", noted)
    saga = Saga("room", Trip, [retriable(bench.remote("room"), timeout=60)])
    bench.scripts["room"] = [wait] * 12
    async with bench.engine(saga) as engine:
        async with bench.database.transaction() as tx:
            for _ in range(12):
                await saga.start(tx, Trip())
        async with asyncio.timeout(60):
            while len(engine._runs) < 12:
                await asyncio.sleep(0.01)
        for _ in range(3):
            for run in engine._runs.values():
                run.until -= 15  # half of the lease is over
            await engine._beat()
        go.set()
        await bench.until_all_rest()
    assert beats == [12] * 3
    assert bench.called() == ["room"] * 12
