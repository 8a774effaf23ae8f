"""Sagas that are started in a transaction: with all else in it or not at all, alone in it or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.db import CommitUnknown
from microkit.db.gathered import Gatherer
from microkit.saga.tables import saga as saga_table
from tests.contract.saga.trips import Bench, Trip, effect

pytestmark = pytest.mark.anyio

_COUNT = sa.select(sa.func.count()).select_from(saga_table)


async def test_many_that_start_at_once_are_all_there_and_end(bench: Bench) -> None:
    trip = bench.trip()
    ids = await asyncio.gather(*(bench.begin(trip) for _ in range(50)))
    assert len(set(ids)) == 50
    assert await bench.scalar(_COUNT) == 50
    async with bench.engine(trip):
        stories = await bench.until_all_rest()
    assert {story.status for story in stories} == {"completed"}


async def test_a_start_can_be_read_in_its_transaction(bench: Bench) -> None:
    async with bench.database.transaction() as tx:
        saga_id = await bench.trip().start(tx, Trip())
        assert await tx.scalar(sa.select(saga_table.c.name).where(saga_table.c.id == saga_id)) == "trip"
    assert await bench.scalar(_COUNT) == 1


async def test_a_start_is_rolled_back_with_what_comes_after_it(bench: Bench) -> None:
    async def fails(*, late: bool) -> None:
        async with bench.database.transaction() as tx:
            saga_id = await bench.trip().start(tx, Trip())
            if late:
                await tx.execute(sa.insert(effect), {"saga_id": saga_id, "what": "paid"})
            raise RuntimeError

    for late in (False, True):
        with pytest.raises(RuntimeError):
            await fails(late=late)
    assert await bench.scalar(_COUNT) == 0
    assert await bench.effects() == []


async def test_two_starts_and_a_row_in_one_transaction_stand_together(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.database.transaction() as tx:
        first = await trip.start(tx, Trip())
        await trip.start(tx, Trip())
        await tx.execute(sa.insert(effect), {"saga_id": first, "what": "paid"})
    assert await bench.scalar(_COUNT) == 2
    assert await bench.effects() == ["paid"]


async def test_what_the_database_refuses_fails_alone(bench: Bench) -> None:
    """By a CHECK, say, that somebody gave the table."""
    if bench.database.dialect != "postgresql":
        pytest.skip("SQLite gathers nothing")
    await bench.database.run(
        lambda tx: tx.execute(
            sa.text("ALTER TABLE saga ADD CONSTRAINT refused CHECK (state->>'done' NOT LIKE '%bad%')")
        )
    )
    trip = bench.trip()
    states = [Trip(done=["bad"] if number == 3 else []) for number in range(8)]
    results = await asyncio.gather(*(bench.begin(trip, state) for state in states), return_exceptions=True)
    assert [isinstance(each, Exception) for each in results] == [number == 3 for number in range(8)]
    assert isinstance(results[3], sa.exc.IntegrityError)
    assert await bench.scalar(_COUNT) == 7


async def test_of_a_lost_connection_each_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.database.dialect != "postgresql":
        pytest.skip("SQLite gathers nothing")

    async def lost(*_: Any) -> None:
        raise CommitUnknown

    monkeypatch.setattr(bench.database, "_send_alone", lost)
    results = await asyncio.gather(*(bench.begin(bench.trip()) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in results] == [CommitUnknown] * 3


async def test_who_is_cancelled_takes_nobody_else_along(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.database.dialect != "postgresql":
        pytest.skip("SQLite gathers nothing")
    inside, go = asyncio.Event(), asyncio.Event()
    write = Gatherer._write

    async def slowly(self: Gatherer, rows: Any) -> bool | None:
        inside.set()
        await go.wait()
        return await write(self, rows)

    monkeypatch.setattr(Gatherer, "_write", slowly)
    first = asyncio.create_task(bench.begin(bench.trip()))
    await inside.wait()
    second = asyncio.create_task(bench.begin(bench.trip()))
    await asyncio.sleep(0.01)
    second.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    await asyncio.wait({first, second})
    assert first.exception() is None
    assert second.cancelled()
    assert await bench.scalar(_COUNT) in (1, 2)  # as a COMMIT under way, it may have been in time
