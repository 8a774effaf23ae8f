"""What the engine does with sagas while processes live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import pytest

from microkit import context
from microkit.context import WorkContext, working
from microkit.db import Database, Transaction
from microkit.db.transaction import Published
from microkit.errors import Conflict, DefinitionError, NotFound
from microkit.message import Event
from microkit.page import PageRequest
from microkit.saga import Saga, SagaEngine, StepRefused, pivot, retriable
from microkit.saga.tables import Status
from microkit.saga.view import list_sagas
from microkit.telemetry import Telemetry
from tests.contract.saga.trips import AT_ONCE, Bench, Trip, history

pytestmark = pytest.mark.anyio


async def test_steps_happen_in_order_and_their_state_travels(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip):
        story = await bench.until_rest(await bench.begin(trip))

    assert (story.status, story.step, story.failure) == ("completed", None, None)
    assert story.state == {"done": ["seat", "room", "pay", "tell"]}
    assert history(story) == [
        ("seat", "action", 1, "done"),
        ("room", "action", 1, "done"),
        ("pay", "action", 1, "done"),
        ("tell", "action", 1, "done"),
    ]
    assert await bench.effects() == ["seat", "tell"]


async def test_a_saga_of_a_rolled_back_transaction_never_runs(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip):
        with pytest.raises(OSError, match="changed my mind"):
            async with bench.database.transaction() as tx:
                lost = await trip.start(tx, Trip())
                raise OSError("changed my mind")
        await bench.until_rest(await bench.begin(trip))
        with pytest.raises(NotFound):
            await bench.story(lost)

    assert bench.called() == ["seat", "room", "pay", "tell"]


async def test_an_id_starts_one_saga_however_often_it_is_given(bench: Bench) -> None:
    trip, saga_id = bench.trip(), uuid4()
    other = Saga("other", Trip, [retriable(bench.local("tell"))])
    async with bench.engine(trip):
        for _ in range(3):
            assert await bench.begin(trip, saga_id=saga_id) == saga_id
        await bench.until_rest(saga_id)
        await bench.begin(trip, saga_id=saga_id)

    assert bench.called() == ["seat", "room", "pay", "tell"]
    with pytest.raises(Conflict, match="the id of a saga 'trip' already"):
        await bench.begin(other, saga_id=saga_id)


async def test_an_event_is_published_with_the_step_that_holds_and_with_no_other(bench: Bench) -> None:
    class SeatTaken(Event, topic="trips.seats", key="saga_id"):
        saga_id: str

    published: list[Event] = []

    async def write(tx: Transaction, events: Sequence[Published]) -> None:
        tx.after_commit(lambda: published.extend(event for event, _ in events))

    refused = [OSError("after publishing")]

    async def seat(tx: Transaction) -> None:
        tx.publish(SeatTaken(saga_id="1"))
        if refused:
            raise refused.pop()

    bench.database.outbox_writer = write
    saga = Saga("seat", Trip, [retriable(seat, retry=AT_ONCE)])
    async with bench.engine(saga):
        await bench.until_rest(await bench.begin(saga))

    assert published == [SeatTaken(saga_id="1")]


async def test_a_step_may_change_the_state_in_place_or_return_what_changed(bench: Bench) -> None:
    async def in_place(state: Trip) -> None:
        state.done.append("in place")

    async def changes(state: Trip) -> dict[str, list[str]]:
        return {"done": [*state.done, "changes"]}

    saga = Saga("ways", Trip, [retriable(in_place, timeout=1), retriable(changes, timeout=1)])
    async with bench.engine(saga):
        story = await bench.until_rest(await bench.begin(saga))

    assert story.state == {"done": ["in place", "changes"]}


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({"doen": []}, "TypeError: Trip has no field 'doen'"),
        ({"done": 7}, "ValueError: bad: a field of Trip holds a value of another type"),
        (["done"], "TypeError: a step returns Trip, a dictionary of changed fields or None, not list"),
        (Telemetry("x"), "TypeError: a step returns Trip, a dictionary of changed fields or None, not Telemetry"),
    ],
)
async def test_a_step_that_returns_something_else_fails_and_says_so(bench: Bench, result: object, error: str) -> None:
    async def bad(state: Trip) -> object:
        return result

    saga = Saga("bad", Trip, [pivot(bad, timeout=1, retry=AT_ONCE)])  # type: ignore[arg-type]  # the wrong one is the test
    async with bench.engine(saga):
        story = await bench.until_rest(await bench.begin(saga))

    assert (story.status, story.error) == ("stuck", error)


async def test_steps_are_given_resources_by_type(bench: Bench) -> None:
    class Printer:
        printed = 0

    async def print_ticket(printer: Printer, database: Database, telemetry: Telemetry) -> None:
        assert database is bench.database
        assert telemetry is bench.telemetry
        printer.printed += 1

    print_ticket.__annotations__ |= {"printer": Printer}
    printer = Printer()
    saga = Saga("print", Trip, [retriable(print_ticket, timeout=1)])
    async with bench.engine(saga, resources={Printer: printer}):
        await bench.until_rest(await bench.begin(saga))
    assert printer.printed == 1

    with pytest.raises(DefinitionError, match="nothing fits the parameter 'printer'"):
        SagaEngine(bench.database, bench.telemetry, [saga], {})


async def test_the_steps_belong_to_the_trace_and_request_that_started_the_saga(bench: Bench) -> None:
    seen: list[WorkContext] = []

    async def look() -> None:
        seen.append(context.current())

    trip = bench.trip()
    bench.scripts["pay"] = [look]
    starting = WorkContext(request_id="r-1", tenant="acme", bearer="the caller's token")
    async with bench.engine(trip):
        with bench.telemetry.span("POST /trips") as span, working(starting):
            saga_id = await bench.begin(trip)
        story = await bench.until_rest(saga_id)

    trace_id = f"{span.get_span_context().trace_id:032x}"
    assert story.trace_id == trace_id
    assert bench.telemetry.ring is not None
    spans = {recorded.name for recorded in bench.telemetry.ring.trace(trace_id)}
    assert {"POST /trips", "saga trip seat", "saga trip room", "saga trip pay", "saga trip tell"} <= spans
    assert (seen[0].request_id, seen[0].tenant, seen[0].bearer) == ("r-1", "acme", None)


async def test_many_sagas_run_side_by_side_and_none_is_forgotten(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip, concurrency=8):
        async with bench.database.transaction() as tx:
            ids = [await trip.start(tx, Trip()) for _ in range(60)]
        stories = await bench.until_all_rest()

    assert {story.id for story in stories} == set(ids)
    assert {story.status for story in stories} == {"completed"}
    assert sorted(bench.called()) == sorted(["seat", "room", "pay", "tell"] * 60)


async def test_of_one_name_the_longest_due_is_claimed_first(bench: Bench) -> None:
    saga = Saga("queue", Trip, [retriable(bench.local("serve"))])
    ids = []
    for _ in range(6):
        ids.append(await bench.begin(saga))
        await asyncio.sleep(0.002)
    async with bench.engine(saga, concurrency=1):
        await bench.until_all_rest()

    assert [step.saga_id for _, step in bench.calls] == ids


async def test_a_list_shows_the_newest_first_a_page_at_a_time(bench: Bench) -> None:
    trip = bench.trip()
    ids = []
    for _ in range(5):
        ids.append(await bench.begin(trip))
        await asyncio.sleep(0.002)

    async with bench.database.transaction(read_only=True) as tx:
        first = await list_sagas(tx, PageRequest(limit=3))
        second = await list_sagas(tx, PageRequest(limit=3, cursor=first.next_cursor))
        running = await list_sagas(tx, PageRequest(), name="trip", status=Status.RUNNING)
        stuck = await list_sagas(tx, PageRequest(), status=Status.STUCK)

    assert [found.id for found in first.items] == ids[:1:-1]
    assert [found.id for found in second.items] == ids[1::-1]
    assert second.next_cursor is None
    assert len(running.items) == 5
    assert stuck.items == []


async def test_an_attempt_under_way_is_shown(bench: Bench) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        began.set()
        await go.wait()

    trip = bench.trip()
    bench.scripts["room"] = [pause]
    async with bench.engine(trip):
        saga_id = await bench.begin(trip)
        await began.wait()
        story = await bench.story(saga_id)
        go.set()
        await bench.until_rest(saga_id)

    assert history(story) == [("seat", "action", 1, "done"), ("room", "action", 1, "under-way")]
    assert story.steps[-1].ended_at is None


async def test_metrics_tell_how_sagas_end_from_zero_on(bench: Bench) -> None:
    trip = bench.trip()
    async with bench.engine(trip):
        shown = bench.telemetry.exposition().decode()
        for status in ("completed", "compensated", "stuck"):
            assert f'microkit_saga_ended_total{{saga="trip",status="{status}"}} 0.0' in shown
        for status in ("running", "compensating", "stuck"):
            assert f'microkit_saga_open{{saga="trip",status="{status}"}} 0.0' in shown
            assert f'microkit_saga_oldest_seconds{{saga="trip",status="{status}"}} 0.0' in shown
        bench.scripts["pay"] = [StepRefused("no"), None]
        first = await bench.until_rest(await bench.begin(trip))
        second = await bench.until_rest(await bench.begin(trip))
    shown = bench.telemetry.exposition().decode()

    assert (first.status, second.status) == ("compensated", "completed")
    assert 'microkit_saga_compensations_total{saga="trip",saga_step="pay"} 1.0' in shown
    assert 'microkit_saga_ended_total{saga="trip",status="compensated"} 1.0' in shown
    assert 'microkit_saga_ended_total{saga="trip",status="completed"} 1.0' in shown
    labels = 'outcome="refused",saga="trip",saga_direction="action",saga_step="pay"'
    assert f"microkit_saga_step_duration_seconds_count{{{labels}}} 1.0" in shown
