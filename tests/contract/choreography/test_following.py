"""Processes that are built from events alone: in any order, however often they come, on both databases."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from microkit.choreography import Process, ProcessKeeper, ProcessMetrics
from microkit.choreography.following import note
from microkit.choreography.keeper import prune, survey
from microkit.choreography.tables import metadata, process, process_event
from microkit.choreography.view import ProcessStory, list_processes, show_processes
from microkit.db import Database, database_now
from microkit.db.migration import create_tables
from microkit.errors import DeadLetter
from microkit.message import Event, Message
from microkit.page import PageRequest
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class BookingRequested(Event, topic="shop.bookings", key="number"):
    number: int = 1
    booking_id: str | None = None


class SeatHeld(Event, topic="bus.seats", key="seat"):
    booking_id: str
    seat: int = 7


class PaymentTaken(Event, topic="bank.payments", key="reference"):
    reference: str


class TicketIssued(Event, topic="desk.tickets", key="booking_id"):
    booking_id: str


class BookingExpired(Event, topic="shop.bookings", key="booking_id"):
    booking_id: str


HAPPY: list[type[Event]] = [BookingRequested, SeatHeld, PaymentTaken, TicketIssued]
FIELDS: dict[type[Event], str] = dict.fromkeys([*HAPPY, BookingExpired], "booking_id")
FIELDS[PaymentTaken] = "reference"
BOOKING = Process("booking", by=FIELDS, events=HAPPY, ends=[TicketIssued, BookingExpired], stuck_after=900)


class Follower:
    def __init__(self, database: Database, telemetry: Telemetry) -> None:
        self.database = database
        self.telemetry = telemetry
        self.metrics = ProcessMetrics(telemetry)

    async def hear(self, event: Event, *, minute: float | None = None, message_id: str | None = None) -> None:
        message = event.to_message("shop", message_id=message_id)
        if minute is not None:
            headers = {**message.headers, "ce_time": (NOON + timedelta(minutes=minute)).isoformat()}
            message = Message(message.topic, message.key, message.value, headers)
        await self.database.run(lambda tx: note(tx, BOOKING, event, message, self.metrics))

    async def story(self, id_: str) -> ProcessStory:
        [found] = await self.database.run(lambda tx: show_processes(tx, id_, [BOOKING]), read_only=True)
        return found

    async def grow_old(self, id_: str, seconds: float) -> None:
        """As if all that is known of it had come so many seconds before."""
        columns = {"heard_at": database_now(-seconds), "stuck_at": database_now(900.0 - seconds)}
        async with self.database.transaction() as tx:
            await tx.execute(sa.update(process).where(process.c.id == id_).values(columns))

    def metric(self, text: str) -> list[str]:
        return [line for line in self.telemetry.exposition().decode().splitlines() if line.startswith(text)]


@pytest.fixture
async def follower(database: Database, telemetry: Telemetry) -> Follower:
    await create_tables(database, metadata)
    return Follower(database, telemetry)


def all_of(id_: str) -> list[Event]:
    return [
        BookingRequested(booking_id=id_),
        SeatHeld(booking_id=id_),
        PaymentTaken(reference=id_),
        TicketIssued(booking_id=id_),
    ]


def names(types: Sequence[str]) -> list[str]:
    return [each.rpartition(".")[2] for each in types]


async def test_a_process_says_where_it_is_and_what_it_waits_for(follower: Follower) -> None:
    requested, held, *_ = all_of("BK-1")
    await follower.hear(requested, minute=0)
    await follower.hear(held, minute=1)

    story = await follower.story("BK-1")
    assert (story.name, story.id, story.status) == ("booking", "BK-1", "running")
    assert names([each.event for each in story.events]) == ["BookingRequested", "SeatHeld"]
    assert names(story.awaits) == ["PaymentTaken", "BookingExpired"]
    assert (story.missing, story.ended_at, story.ended_by) == ([], None, None)
    assert (story.began_at, story.last_at) == (NOON, NOON + timedelta(minutes=1))
    assert names([story.last_event]) == ["SeatHeld"]
    assert story.stuck_at is not None
    assert story.stuck_at - story.heard_at == pytest.approx(timedelta(seconds=900), abs=timedelta(seconds=1))


@pytest.mark.parametrize("order", [order for n, order in enumerate(itertools.permutations(range(4))) if n % 5 == 3])
async def test_in_whatever_order_its_events_come_it_is_the_same_process(
    follower: Follower, order: Sequence[int]
) -> None:
    events = all_of("BK-1")
    for position in order:
        await follower.hear(events[position], minute=position)

    story = await follower.story("BK-1")
    assert names([each.event for each in story.events]) == [event.__name__ for event in HAPPY]
    assert (story.status, story.stuck_at, names([story.ended_by or ""])) == ("ended", None, ["TicketIssued"])
    assert (story.began_at, story.last_at) == (NOON, NOON + timedelta(minutes=3))
    assert (story.ended_at, names([story.last_event])) == (NOON + timedelta(minutes=3), ["TicketIssued"])
    assert (story.missing, story.awaits) == ([], [])
    came = [order.index(position) for position in range(4)]
    assert [each.late for each in story.events] == [came[n] > min(came[n + 1 :], default=4) for n in range(4)]


async def test_an_expected_event_that_has_not_come_though_later_ones_have_is_missing(follower: Follower) -> None:
    requested, _, _, issued = all_of("BK-1")
    await follower.hear(requested, minute=0)
    await follower.hear(issued, minute=3)

    story = await follower.story("BK-1")
    assert (story.status, names(story.missing)) == ("ended", ["SeatHeld", "PaymentTaken"])


async def test_copies_of_an_event_change_nothing_even_without_the_inbox(follower: Follower) -> None:
    event = SeatHeld(booking_id="BK-1")
    await follower.hear(event, minute=1, message_id="one")
    before = await follower.story("BK-1")
    for _ in range(3):
        await follower.hear(event, minute=1, message_id="one")
    assert await follower.story("BK-1") == before

    await follower.hear(event, minute=2, message_id="two")  # the seat was held again: another event
    assert len((await follower.story("BK-1")).events) == 2


async def test_of_several_ends_the_last_to_happen_counts_and_the_first_is_timed(follower: Follower) -> None:
    await follower.hear(BookingRequested(booking_id="BK-1"), minute=0)
    await follower.hear(BookingExpired(booking_id="BK-1"), minute=9)
    await follower.hear(TicketIssued(booking_id="BK-1"), minute=4)

    story = await follower.story("BK-1")
    assert (story.status, names([story.ended_by or ""])) == ("ended", ["BookingExpired"])
    [timed] = follower.metric("microkit_process_duration_seconds_sum")
    assert timed.endswith(' 540.0') and "BookingExpired" in timed  # fmt: skip  # noqa: PT018  one line of one metric


async def test_concurrent_events_of_one_process_are_all_noted(follower: Follower) -> None:
    await asyncio.gather(*(follower.hear(event, minute=n) for n, event in enumerate(all_of("BK-1"))))

    story = await follower.story("BK-1")
    assert (len(story.events), story.status, story.began_at) == (4, "ended", NOON)


async def test_a_process_without_news_is_stuck_until_some_come(follower: Follower) -> None:
    for id_ in ("BK-1", "BK-2", "BK-3"):
        await follower.hear(BookingRequested(booking_id=id_))
    await follower.hear(TicketIssued(booking_id="BK-3"))
    for id_ in ("BK-2", "BK-3"):
        await follower.grow_old(id_, 1000)
    async with follower.database.transaction() as tx:
        await tx.execute(sa.update(process).where(process.c.ended_at.is_not(None)).values(stuck_at=None))

    async def listed(*, stuck: bool) -> list[tuple[str, str]]:
        page = await follower.database.run(lambda tx: list_processes(tx, PageRequest(), stuck=stuck), read_only=True)
        return [(each.id, each.status) for each in page.items]

    assert await listed(stuck=True) == [("BK-2", "stuck")]
    assert await listed(stuck=False) == [("BK-3", "ended"), ("BK-2", "stuck"), ("BK-1", "running")]
    [(name, count, stuck, _)] = await follower.database.run(survey, read_only=True)
    assert (name, count, stuck) == ("booking", 2, 1)
    await follower.hear(SeatHeld(booking_id="BK-2"))
    assert await listed(stuck=True) == []


async def test_an_event_that_tells_of_no_process_is_let_pass_and_an_id_that_is_none_is_dead_lettered(
    follower: Follower,
) -> None:
    await follower.hear(BookingRequested(booking_id=None))
    for bad in ("", "x" * 256, "a\x00b", "a\nb"):
        with pytest.raises(DeadLetter, match="255 printable characters"):
            await follower.hear(SeatHeld(booking_id=bad))
    page = await follower.database.run(lambda tx: list_processes(tx, PageRequest()), read_only=True)
    assert page.items == []
    assert await follower.database.run(lambda tx: show_processes(tx, "BK-9"), read_only=True) == []


async def test_an_event_without_a_time_happened_when_it_came(follower: Follower) -> None:
    event = SeatHeld(booking_id="BK-1")
    message = event.to_message("shop")
    odd = Message(message.topic, message.key, message.value, {**message.headers, "ce_time": "half past"})
    await follower.database.run(lambda tx: note(tx, BOOKING, event, odd, follower.metrics))

    [noted] = (await follower.story("BK-1")).events
    assert noted.happened_at == pytest.approx(noted.received_at, abs=timedelta(minutes=1))


async def test_processes_are_listed_newest_first_page_by_page_by_name_and_since(follower: Follower) -> None:
    for number in range(5):
        await follower.hear(BookingRequested(booking_id=f"BK-{number}"), minute=number // 2)  # some began together
    seen: list[str] = []
    request = PageRequest(limit=2)
    while True:
        page = await follower.database.run(lambda tx, r=request: list_processes(tx, r), read_only=True)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        seen += [each.id for each in page.items]
        if page.next_cursor is None:
            break
        request = PageRequest(limit=2, cursor=page.next_cursor)
    assert seen == ["BK-4", "BK-3", "BK-2", "BK-1", "BK-0"]

    since = NOON + timedelta(seconds=30)
    page = await follower.database.run(lambda tx: list_processes(tx, PageRequest(), since=since), read_only=True)
    assert [each.id for each in page.items] == ["BK-4", "BK-3", "BK-2"]
    page = await follower.database.run(lambda tx: list_processes(tx, PageRequest(), name="other"), read_only=True)
    assert page.items == []


async def test_what_nothing_was_heard_of_for_long_is_forgotten_with_its_events(follower: Follower) -> None:
    for id_ in ("old", "older", "new"):
        await follower.hear(BookingRequested(booking_id=id_))
    await follower.hear(TicketIssued(booking_id="older"))
    await follower.grow_old("old", 5000)
    await follower.grow_old("older", 9000)

    assert await follower.database.run(lambda tx: prune(tx, keep=3600, most=1)) == (1, {})
    assert await follower.database.run(lambda tx: prune(tx, keep=3600)) == (1, {"booking": 1})
    async with follower.database.transaction(read_only=True) as tx:
        assert list(await tx.scalars(sa.select(process_event.c.process_id))) == ["new"]
        assert list(await tx.scalars(sa.select(process.c.id))) == ["new"]


async def test_one_that_may_be_silent_for_longer_than_the_old_are_kept_does_not_vanish(
    follower: Follower,
) -> None:
    await follower.hear(BookingRequested(booking_id="patient"))
    await follower.grow_old("patient", 1200)
    assert await follower.database.run(lambda tx: prune(tx, keep=600)) == (0, {})  # it is stuck for 300 seconds
    await follower.grow_old("patient", 1600)
    assert await follower.database.run(lambda tx: prune(tx, keep=600)) == (1, {"booking": 1})


async def test_the_keeper_counts_says_what_is_stuck_and_forgets(
    follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = ProcessKeeper(follower.database, follower.telemetry, [BOOKING], follower.metrics, keep=3600, every=0.05)
    await keeper.start()
    assert follower.metric("microkit_process_open") == ['microkit_process_open{process="booking"} 0.0']
    for id_ in ("BK-1", "BK-2", "BK-3"):
        await follower.hear(BookingRequested(booking_id=id_))
    await follower.grow_old("BK-2", 1000)
    await follower.grow_old("BK-3", 5000)
    expected = ['microkit_process_open{process="booking"} 2.0', 'microkit_process_stuck{process="booking"} 1.0']
    async with asyncio.timeout(30):
        while [*follower.metric("microkit_process_open"), *follower.metric("microkit_process_stuck")] != expected:
            await asyncio.sleep(0.02)
    await keeper.stop()
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "booking: " in told
    assert "processes were forgotten that nobody ended" in told
    assert follower.metric("microkit_process_forgotten_total") == [
        'microkit_process_forgotten_total{process="booking"} 1.0'
    ]
