"""Dead letters that are rows of the outbox become events of it again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from microkit.bus import Delivery, MemoryBus
from microkit.bus.dead_letter import dead_letter
from microkit.bus.letter import REDRIVE_GROUP, Letter, Which
from microkit.bus.redrive import Redriving, redrive
from microkit.message import Message
from microkit.outbox import burial
from microkit.outbox.dead_letters import OutboxLetters
from microkit.outbox.tables import DEAD, PENDING, PUBLISHED

pytestmark = pytest.mark.anyio

TOPIC = "shop.orders"
ALL = Redriving()
Bury = Callable[..., Awaitable[Message]]


@pytest.fixture
def bury(box: Any, bus: MemoryBus) -> Bury:
    """Gives an event of another service up, as a group of this one."""

    async def go(key: str, number: int, *, group: str = "billing.bill", message_id: str = "") -> Message:
        given = Message(
            TOPIC,
            key,
            str(number).encode(),
            {"ce_id": message_id or f"id {key} {number}", "ce_source": "shop", "ce_type": "shop.Placed"},
        )
        await burial(box.database, bus)(dead_letter(Delivery(given, group, 0, number), "broken", "it broke", 10))
        return given

    return go


async def letters_of(box: Any, topics: Sequence[str] | None = None) -> list[Letter]:
    return [each async for each in OutboxLetters(box.database, "billing").letters(topics)]


async def send_all_back(box: Any, which: Which = Which(), how: Redriving = ALL) -> list[str | None]:  # noqa: B008
    return [each.refused async for each in redrive(OutboxLetters(box.database, "billing"), which, how)]


async def states_become(box: Any, states: Sequence[int]) -> None:
    async with asyncio.timeout(60):
        while await box.states() != list(states):
            await asyncio.sleep(0.01)


async def receive(bus: MemoryBus, group: str, number: int) -> list[Message]:
    consumer = await bus.subscribe(group, [TOPIC])
    got: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(got) < number:
            got += await consumer.fetch(100, 1.0)
    await consumer.ack(got)
    await consumer.close()
    return [each.message for each in got]


async def test_a_letter_goes_out_as_it_was_and_its_row_is_done_when_all_groups_have_had_it(
    box: Any, bus: MemoryBus, bury: Bury
) -> None:
    given = [await bury("a", number) for number in range(3)]
    await bury("b", 9)
    assert await box.states() == [DEAD] * 4
    assert [letter.message.value for letter in await letters_of(box)] == [b"0", b"1", b"2", b"9"]
    for group in ("billing.bill", "shop.tell"):
        bus.declare(group, [TOPIC])

    assert await send_all_back(box, Which(key="a")) == [None] * 3

    assert await box.states() == [PENDING] * 3 + [DEAD]
    await box.relay(bus)
    mine = await receive(bus, "billing.bill", 3)
    assert [(each.key, each.value, each.id, each.type) for each in mine] == [
        (each.key, each.value, each.id, each.type) for each in given
    ]
    assert {each.headers[REDRIVE_GROUP] for each in mine} == {"billing.bill"}
    await asyncio.sleep(0.1)
    assert await box.states() == [PENDING] * 3 + [DEAD], "shop.tell has not acknowledged them"
    await receive(bus, "shop.tell", 3)
    await states_become(box, [PUBLISHED] * 3 + [DEAD])
    assert [letter.message.key for letter in await letters_of(box)] == ["b"]


async def test_one_event_that_two_groups_gave_up_goes_to_each_once(box: Any, bus: MemoryBus, bury: Bury) -> None:
    for group in ("billing.bill", "billing.thank"):
        await bury("a", 1, group=group)
        bus.declare(group, [TOPIC])
    await send_all_back(box)
    await box.relay(bus)

    got = [message for group in ("billing.bill", "billing.thank") for message in await receive(bus, group, 2)]

    assert sorted(each.headers[REDRIVE_GROUP] for each in got) == sorted(["billing.bill", "billing.thank"] * 2)
    await states_become(box, [PUBLISHED] * 2)
    late = await bus.subscribe("billing.bill", [TOPIC])
    assert await late.fetch(10, 0.2) == [], "neither row was published again while the other was on its way"


async def test_letters_are_read_in_steps_and_by_their_topics(box: Any, bury: Bury) -> None:
    for number in range(203):  # more than one step
        await bury("a", number)

    assert [letter.message.value for letter in await letters_of(box)] == [str(number).encode() for number in range(203)]
    assert len(await letters_of(box, [TOPIC])) == 203
    assert await letters_of(box, ["shop.other"]) == []
    first, *_ = await letters_of(box)
    assert first.id == "billing/1"


async def test_what_dies_while_letters_are_sent_back_is_for_the_next_time(box: Any, bury: Bury) -> None:
    await bury("a", 1)
    outcomes = 0

    async for _ in redrive(OutboxLetters(box.database, "billing"), Which(), Redriving(rate=1000)):
        outcomes += 1
        await bury("a", 1 + outcomes)
        assert outcomes < 5

    assert outcomes == 1
    assert await box.states() == [PENDING, DEAD]


async def test_two_who_send_back_at_once_send_each_letter_once(box: Any, bus: MemoryBus, bury: Bury) -> None:
    for number in range(20):
        await bury("a", number)
    bus.declare("billing.bill", [TOPIC])

    await asyncio.gather(send_all_back(box), send_all_back(box))

    await box.relay(bus)
    assert [each.value for each in await receive(bus, "billing.bill", 20)] == [str(n).encode() for n in range(20)]
    await states_become(box, [PUBLISHED] * 20)
