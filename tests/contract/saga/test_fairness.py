"""Whose turn it is, and what it costs to find out that it is nobody's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.saga import Retry, Saga, StepContext, retriable
from microkit.saga.leases import Turn
from microkit.saga.turns import Turns
from tests.contract.saga.trips import Bench, Trip

pytestmark = pytest.mark.anyio


async def test_a_name_with_many_sagas_does_not_starve_one_with_few(bench: Bench) -> None:
    busy, quiet = (Saga(name, Trip, [retriable(bench.remote(name), timeout=5)]) for name in ("busy", "quiet"))
    for number in range(66):
        await bench.begin(busy if number < 60 else quiet)
    async with bench.engine(busy, quiet, concurrency=1):
        await bench.until_all_rest()

    called = bench.called()
    assert called.index("quiet") <= 2
    assert [place for place, name in enumerate(called) if name == "quiet"][-1] <= 14


async def test_sagas_that_take_long_leave_a_place_for_those_of_other_names(bench: Bench) -> None:
    go = asyncio.Event()

    async def wait() -> None:
        await go.wait()

    slow, quick = (Saga(name, Trip, [retriable(bench.remote(name), timeout=60)]) for name in ("slow", "quick"))
    bench.scripts["slow"] = [wait] * 20
    async with bench.engine(slow, quick, concurrency=4) as engine:
        for _ in range(20):
            await bench.begin(slow)
        async with asyncio.timeout(60):
            while engine.health().in_flight < 3:
                await asyncio.sleep(0.01)
        for _ in range(5):
            await bench.until_rest(await bench.begin(quick))
        assert bench.called().count("slow") == 3
        go.set()
        await bench.until_all_rest()
    assert bench.called().count("slow") == 20


async def test_one_that_fails_again_and_again_keeps_no_other_waiting(bench: Bench) -> None:
    """It is due again behind those that were due meanwhile."""
    over = asyncio.Event()

    async def serve(step: StepContext) -> None:
        if step.saga_id == first and not over.is_set():
            raise OSError("no")

    saga = Saga("queue", Trip, [retriable(serve, timeout=5, retry=Retry(100_000, initial=0.001, maximum=0.001))])
    first = await bench.begin(saga)
    others = [await bench.begin(saga) for _ in range(10)]
    async with bench.engine(saga, concurrency=1):
        for each in others:
            assert (await bench.until_rest(each)).status == "completed"
        over.set()
        assert (await bench.until_rest(first)).status == "completed"


def test_nobody_pays_for_the_time_in_which_there_was_nothing_to_do() -> None:
    turns = Turns({"a1": "a", "b1": "b", "b2": "b"}, places=8)
    for _ in range(100):
        turns.given([_held("a")])

    served = {turn.fingerprint: turn.served for turn in turns.of([])}
    assert served == {"a1": 100, "b1": 92, "b2": 92}
    assert turns.of(["a"] * 7) == [Turn("b1", 92, 7, "b"), Turn("b2", 92, 7, "b")]
    assert [turn.room for turn in Turns({"a1": "a"}, places=8).of(["a"] * 3)] == [5]


def _held(name: str) -> Any:
    return SimpleNamespace(name=name)  # the one thing that is asked for


async def test_a_limit_holds_for_all_engines_together(bench: Bench) -> None:
    under_way = most = 0

    async def serve() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1

    saga = Saga("few", Trip, [retriable(serve, timeout=5), retriable(serve, timeout=5, name="again")], concurrency=2)
    for _ in range(20):
        await bench.begin(saga)
    async with bench.engine(saga), bench.engine(saga):
        stories = await bench.until_all_rest()
    assert {str(story.status) for story in stories} == {"completed"}
    assert most == 2


async def test_an_idle_engine_asks_the_database_once_a_poll(bench: Bench) -> None:
    trip = bench.trip()
    asked: list[str] = []

    def counted(statement: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(statement._query)
        return sent(statement, *arguments, **options)

    def told(_: Any, __: Any, statement: str, *___: Any) -> None:
        asked.append(statement)

    poll = 0.1
    async with bench.engine(trip, poll=poll):
        await bench.until_rest(await bench.begin(trip))
        await asyncio.sleep(0.3)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.MonkeyPatch.context() as patched:
            if bench.database.dialect == "postgresql":  # every statement goes through here, but BEGIN and COMMIT
                from asyncpg.prepared_stmt import PreparedStatement  # type: ignore[import-untyped]  # noqa: PLC0415  an extra

                sent = PreparedStatement._PreparedStatement__do_execute
                patched.setattr(PreparedStatement, "_PreparedStatement__do_execute", counted)
            else:
                sa.event.listen(sa.Engine, "before_cursor_execute", told)
            await asyncio.sleep(20 * poll)
            if bench.database.dialect == "sqlite":
                sa.event.remove(sa.Engine, "before_cursor_execute", told)
        polls = (loop.time() - began) / poll
        asked = [statement for statement in asked if not statement.startswith("BEGIN")]
    assert 0 < len(asked) <= polls + 1
