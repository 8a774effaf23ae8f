"""A partition goes from one member of a group to another: nothing is lost, out of order, or acknowledged by both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from microkit.bus import Delivery
from microkit.bus.redis import RedisBus
from microkit.bus.redis.consumer import RedisConsumer
from microkit.testing.bus_suite import ids, new_name, numbered, numbers, receive
from tests.contract.bus.redis.streams import GROUP, stream_of

pytestmark = pytest.mark.anyio


async def test_a_member_that_fell_silent_loses_its_partition_and_its_acknowledgements(bus: RedisBus) -> None:
    topic = new_name()
    frozen = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 4))
    held = await receive(frozen, 4, ack=False)
    assert frozen._house._keeping is not None
    frozen._house._keeping.cancel()  # as a process does that is stopped: its heartbeats end
    other = await bus.subscribe(GROUP, [topic])
    taken = await receive(other, 4, ack=False)
    assert ids(taken) == numbers(4)
    await frozen.ack(held)
    await bus.publish(numbered(topic, 1, start=4))
    assert not await frozen.fetch(10, 0.3)
    assert sum(part.waiting for part in await bus.lag(GROUP, [topic])) == 5
    await other.ack(taken)
    assert ids(await receive(other, 1)) == ["4"]


async def test_what_a_member_read_after_it_lost_the_partition_reaches_the_owner_in_order(
    bus: RedisBus, client: Any
) -> None:
    topic = new_name()
    owner = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 3))
    await receive(owner, 3)
    waiting = asyncio.create_task(receive(owner, 6))
    await asyncio.sleep(0.1)
    transaction = client.pipeline(transaction=True)  # as a read by another that lands just after the publishing
    for message in numbered(topic, 6, start=3):
        transaction.xadd(
            stream_of(bus, topic), {"k": "0", "v": message.value, "h": f'{{"ce_id": "{message.id}"}}'}, "0-*"
        )
    transaction.xreadgroup(GROUP, "microkit", {stream_of(bus, topic): ">"}, count=4)
    await transaction.execute()
    assert ids(await waiting) == ["3", "4", "5", "6", "7", "8"]


async def test_a_reply_that_is_lost_loses_no_message(bus: RedisBus, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 3))
    await receive(consumer, 3)
    together, lose = bus._server.together, [True, False, True]

    async def losing(*commands: Sequence[Any]) -> list[Any]:
        replies = await together(*commands)
        if replies[-1] and lose and lose.pop():
            raise ConnectionError("the reply is lost")
        return replies

    monkeypatch.setattr(bus._server, "together", losing)
    got: list[Delivery] = []
    for start in range(3, 33, 10):
        await bus.publish(numbered(topic, 10, start=start))
        while len(got) < start + 7:
            try:
                part = await consumer.fetch(4, 1.0)
            except ConnectionError:
                continue
            got += part
            await consumer.ack(part)
    assert not lose
    assert ids(got) == numbers(33)[3:]


async def test_taking_over_reads_in_steps_what_is_left_and_then_what_is_new(bus: RedisBus) -> None:
    topic = new_name()
    first = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 200))
    held = await receive(first, 200, ack=False)
    await first.ack(held[10:20])
    await first.close()
    await bus.publish(numbered(topic, 50, start=200))
    second = await bus.subscribe(GROUP, [topic])
    got: list[Delivery] = []
    while len(got) < 240:
        part = await second.fetch(7, 1.0)
        assert len(part) <= 7
        got += part
    assert ids(got) == [number for number in numbers(250) if not 10 <= int(number) < 20]
    assert {delivery.attempt for delivery in got[:100]} == {2}
    assert {delivery.attempt for delivery in got[-10:]} == {1}


async def test_a_partition_that_goes_takes_what_nobody_has_begun_with(bus: RedisBus) -> None:
    topic = new_name()
    first = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 10))
    held = await receive(first, 6, ack=False)
    asked: list[list[str]] = []

    def let_go(goes: Callable[[Delivery], bool]) -> list[Delivery]:
        asked.append(ids([delivery for delivery in held if goes(delivery)]))
        return held[1:]  # it is at work on the first

    first.on_revoke(let_go)
    first._house._member = "z"  # of two members and one partition, the first by name has it
    second = await bus.subscribe(GROUP, [topic])
    second._house._member = "a"
    async with asyncio.timeout(60):
        while not asked:
            assert not await second.fetch(10, 0.1)
    assert not await second.fetch(10, 0.3), "what the first works on is not done"
    await first.ack(held[:1])
    got = await receive(second, 9)
    assert asked == [numbers(10)] or asked == [numbers(6)]
    assert ids(got) == numbers(10)[1:]


async def test_what_is_being_read_while_a_partition_goes_is_left_to_the_next_owner(
    bus: RedisBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before it has been let go of: handed out, it would overtake that."""
    topic = new_name()
    first = await bus.subscribe(GROUP, [topic])
    revoked, on_its_way = asyncio.Event(), asyncio.Event()
    held: list[Delivery] = []

    def let_go(_goes: Callable[[Delivery], bool]) -> list[Delivery]:
        revoked.set()
        return held

    first.on_revoke(let_go)
    await bus.publish(numbered(topic, 5))
    held += await receive(first, 5, ack=False)
    await bus.publish(numbered(topic, 5, start=5))
    together = bus._server.together

    async def slow(*commands: Sequence[Any]) -> list[Any]:
        replies = await together(*commands)
        if replies[-1]:
            on_its_way.set()
            await revoked.wait()
        return replies

    monkeypatch.setattr(bus._server, "together", slow)
    fetching = asyncio.create_task(first.fetch(10, 0.5))
    await on_its_way.wait()
    first._house._member = "z"  # of two members and one partition, the first by name has it
    joining = RedisConsumer(bus._server, GROUP, [topic], bus._create, bus._left)
    joining._house._member = "a"
    await joining.join()
    assert ids(await fetching) == []
    assert ids(await receive(joining, 10)) == numbers(10)
    await joining.close()
