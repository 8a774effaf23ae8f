"""What stands in a stream: how long it is kept, entries of others, large ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microkit.bus.redis import RedisBus
from microkit.message import Message
from microkit.testing.bus_suite import new_name, numbered, receive
from tests.contract.bus.redis.streams import GROUP, stream_of

pytestmark = pytest.mark.anyio


async def test_a_stream_is_trimmed_below_what_its_slowest_group_has_open(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    fast, slow = await bus.subscribe("fast", [topic]), await bus.subscribe("slow", [topic])
    await bus.publish(numbered(topic, 2_000))
    await receive(fast, 2_000)
    held = await receive(slow, 2_000, ack=False)
    stuck = held.pop(700)
    await slow.ack(held)

    async def first() -> int:
        return int((await client.xrange(stream_of(bus, topic), count=1))[0][0].split(b"-")[1])

    async with asyncio.timeout(60):
        while await first() == 1:
            await asyncio.sleep(0.05)
    assert 500 < await first() <= stuck.offset
    await asyncio.sleep(0.5)
    assert await first() <= stuck.offset
    await slow.ack([stuck])
    async with asyncio.timeout(60):
        while await client.xlen(stream_of(bus, topic)) > 200:
            await asyncio.sleep(0.05)


async def test_a_topic_without_groups_is_not_trimmed(bus: RedisBus, client: Any) -> None:
    topic, busy = new_name(), new_name()
    await bus.publish(numbered(topic, 1_000))
    consumer = await bus.subscribe(GROUP, [busy])
    assert not await consumer.fetch(1, 1.0)
    assert await client.xlen(stream_of(bus, topic)) == 1_000


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"k": "a", "v": "{}", "h": '{"ce_id": "1"}'}, {"ce_id": "1"}),
        ({"v": "{}", "h": '{"ce_id": "1"}', "k": "a", "more": "x"}, {"ce_id": "1"}),
        ({"k": "a", "v": "{}", "h": "not json"}, {"malformed-headers": "not json"}),
        ({"k": "a", "v": "{}", "h": "[1]"}, {"malformed-headers": "[1]"}),
        ({"k": "a", "v": "{}", "h": '{"ce_id": 1}'}, {"malformed-headers": '{"ce_id": 1}'}),
        ({"k": "a", "v": "{}", "h": b"\xff"}, {"malformed-headers": "\udcff"}),
        ({"k": "a", "v": "{}", "h": "[" * 100_000}, {"malformed-headers": "[" * 100_000}),
        ({"k": "a", "v": "{}"}, {"malformed-headers": ""}),
    ],
)
async def test_an_entry_that_somebody_else_wrote_is_delivered_for_what_it_is(
    bus: RedisBus, client: Any, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await client.xadd(stream_of(bus, topic), fields, "0-*")
    await bus.publish(numbered(topic, 1))
    first, second = await receive(consumer, 2)
    assert first.message == Message(topic, "a", b"{}", headers)
    assert second.message.id == "0"


async def test_a_dead_letter_with_a_header_that_is_no_text_is_kept_as_it_was(bus: RedisBus) -> None:
    topic = new_name()
    message = Message(topic, "k\udcff", b"\xff", {"ce_id": "1", "broken": "\udcff\udc00"})
    await bus.publish([message])
    (delivery,) = await receive(await bus.subscribe(GROUP, [topic]), 1)
    assert delivery.message == message


async def test_large_messages_are_read_a_few_at_a_time(bus: RedisBus) -> None:
    topic = new_name()
    for start in range(0, 64, 8):
        await bus.publish(
            [Message(topic, "a", b"x" * 2_000_000, {"ce_id": str(number)}) for number in range(start, start + 8)]
        )
    consumer = await bus.subscribe(GROUP, [topic])
    most, got = 0, 0
    while got < 64:
        part = await consumer.fetch(1, 1.0)
        got += len(part)
        await consumer.ack(part)
        most = max(most, len(consumer._buffer) + len(part))
    assert most <= 16
    await bus.publish(numbered(topic, 3_000))
    while consumer._typical > 1_000:
        await consumer.ack(await consumer.fetch(1_000, 1.0))
