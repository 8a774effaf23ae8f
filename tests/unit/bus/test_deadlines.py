"""A group whose attempts are bounded by the deadline of the work that published a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from microkit import context
from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.bus.letter import Letter
from microkit.bus.subscription import Batching
from microkit.context import off_the_clock, on_the_clock
from microkit.errors import DeadlineExceeded, DefinitionError
from microkit.message import DEADLINE, Message
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

TOPIC = "shop.quotes"


def numbered(number: int, seconds: float | None, *, header: str | None = None) -> Message:
    headers = {"ce_id": str(number), "ce_type": "shop.quotes.Asked"}
    if seconds is not None:
        headers[DEADLINE] = str(on_the_clock(time.monotonic() + seconds))
    if header is not None:
        headers[DEADLINE] = header
    return Message(TOPIC, str(number), b"{}", headers)


class Desk:
    """A running group; what it began, and what it gave up."""

    def __init__(self, bus: MemoryBus, telemetry: Telemetry) -> None:
        self.bus = bus
        self.runtime = ConsumerRuntime(bus, telemetry)
        self.begun: dict[int, float | None] = {}
        self.done: list[int] = []
        self.hanging = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> None:
        number = int(delivery.message.id)
        self.begun[number] = context.remaining()
        if number >= 100:
            await self.hanging.wait()
        self.done.append(number)

    async def start(self, **options: Any) -> None:
        self.runtime.add(Subscription("quoting", (TOPIC,), self, **{"deadline": True, "backoff": 0.01, **options}))
        await self.runtime.start()

    async def letters(self, number: int) -> list[Message]:
        consumer = await self.bus.subscribe("undertaker", [f"{TOPIC}.dead-letter"])
        got: list[Message] = []
        async with asyncio.timeout(60):
            while len(got) < number:
                got.extend(delivery.message for delivery in await consumer.fetch(10, 1))
        return got

    async def until_done(self, *numbers: int) -> None:
        async with asyncio.timeout(60):
            while not set(numbers) <= set(self.done):
                await asyncio.sleep(0.01)


@pytest.fixture
async def desk(bus: MemoryBus, telemetry: Telemetry) -> AsyncIterator[Desk]:
    made = Desk(bus, telemetry)
    yield made
    made.hanging.set()
    await made.runtime.stop(1)


async def test_what_is_left_of_the_deadline_or_the_groups_own_time_bounds_an_attempt(desk: Desk) -> None:
    await desk.start(timeout=20.0)
    await desk.bus.publish([numbered(1, 10.0), numbered(2, 1000.0), numbered(3, None)])
    await desk.until_done(1, 2, 3)
    first, second, third = (desk.begun[number] for number in (1, 2, 3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first <= 10
    assert 10 < second <= 20
    assert 10 < third <= 20


async def test_one_that_has_less_time_than_those_under_way_is_stopped_before_them(desk: Desk) -> None:
    await desk.start(timeout=3000.0)
    await desk.bus.publish([numbered(100, 2000.0)])
    async with asyncio.timeout(60):
        while 100 not in desk.begun:
            await asyncio.sleep(0.01)
    await desk.bus.publish([numbered(101, 0.3)])
    (letter,) = await desk.letters(1)
    assert letter.id == "101"
    assert letter.headers["mk_dlq_reason"] == "deadline-passed"
    assert "the handler was stopped" in letter.headers["mk_dlq_error"]
    desk.hanging.set()
    await desk.until_done(100)


async def test_one_that_comes_too_late_is_given_up_unbegun_and_begun_when_it_is_redriven(desk: Desk) -> None:
    await desk.start()
    await desk.bus.publish([numbered(1, -1.0), numbered(2, 60.0)])
    (letter,) = await desk.letters(1)
    assert (letter.id, letter.headers["mk_dlq_reason"]) == ("1", "deadline-passed")
    await desk.until_done(2)
    assert 1 not in desk.begun
    again = Letter("1", letter).redriven("quoting")
    assert DEADLINE not in again.headers
    await desk.bus.publish([again])
    await desk.until_done(1)


async def test_a_group_may_be_done_with_what_comes_too_late(desk: Desk) -> None:
    await desk.start(ignore=(DeadlineExceeded,))
    await desk.bus.publish([numbered(1, -1.0), numbered(2, 60.0)])
    await desk.until_done(2)
    await desk.runtime.stop(5)
    assert 1 not in desk.begun
    assert not [topic for topic in await desk.bus.topics() if topic.name.endswith(".dead-letter")]


@pytest.mark.parametrize("header", ["", "soon", "-5", "1e3", "٣", "9" * 40])
async def test_a_deadline_that_cannot_be_read_loses_no_message(desk: Desk, header: str) -> None:
    await desk.start()
    await desk.bus.publish([numbered(1, None, header=header)])
    await desk.until_done(1)


async def test_without_the_declaration_a_deadline_is_only_shown(desk: Desk) -> None:
    await desk.start(deadline=False)
    await desk.bus.publish([numbered(1, -1.0)])
    await desk.until_done(1)


def test_a_group_of_batches_cannot_have_deadlines() -> None:
    async def handle(_: Any) -> None: ...

    async def together(deliveries: Any, _: Any) -> Any:
        return deliveries

    with pytest.raises(DefinitionError, match="a time of its own"):
        Subscription("quoting", (TOPIC,), handle, batching=Batching(together), deadline=True)


def test_a_deadline_survives_the_way_over_the_wall_clock() -> None:
    deadline = time.monotonic() + 5
    assert off_the_clock(on_the_clock(deadline)) == pytest.approx(deadline, abs=0.5)
