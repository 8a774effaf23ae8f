"""What is deleted from the adapter's streams, or lost with the server, is told and counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from microkit.bus import Delivery, MessagesLost
from microkit.bus.redis import RedisBus
from microkit.bus.redis.consumer import RedisConsumer
from microkit.testing.bus_suite import ids, new_name, numbered, receive
from microkit.testing.valkey import valkey
from tests.contract.bus.redis.streams import GROUP, stream_of

pytestmark = pytest.mark.anyio


async def loss_of(consumer: RedisConsumer) -> int | None:
    async with asyncio.timeout(60):
        while True:
            try:
                assert not await consumer.fetch(10, 0.2), "the loss was not told before what comes after it"
            except MessagesLost as error:
                return error.lost


async def test_a_deleted_stream_is_told_and_what_comes_after_arrives(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 5))
    held = await receive(consumer, 5, ack=False)
    await client.delete(stream_of(bus, topic))
    assert await loss_of(consumer) is None
    await bus.publish(numbered(topic, 3, start=5))
    await consumer.ack(held)  # of the stream that was: it must not acknowledge what has its numbers now
    assert ids(await receive(consumer, 3)) == ["5", "6", "7"]


async def test_messages_deleted_unread_are_told_and_counted(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 2))
    await receive(consumer, 2)
    await consumer.close()
    await bus.publish(numbered(topic, 10, start=2))
    await client.xtrim(stream_of(bus, topic), maxlen=3, approximate=False)
    again = await bus.subscribe(GROUP, [topic])
    assert await loss_of(again) == 7
    assert ids(await receive(again, 3)) == ["9", "10", "11"]


async def test_messages_deleted_in_mid_stream_are_told_and_counted(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 2))
    await receive(consumer, 2)
    await consumer._house.leave()  # nobody reads meanwhile
    await bus.publish(numbered(topic, 6, start=2))
    await client.xdel(stream_of(bus, topic), "0-4", "0-5")
    again = await bus.subscribe(GROUP, [topic])
    assert await loss_of(again) == 2
    assert ids(await receive(again, 4)) == ["2", "5", "6", "7"]


async def test_everything_deleted_unread_is_told_though_nothing_follows(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    await (await bus.subscribe(GROUP, [topic])).close()
    await bus.publish(numbered(topic, 4))
    await client.xtrim(stream_of(bus, topic), maxlen=0, approximate=False)
    consumer = await bus.subscribe(GROUP, [topic])
    assert await loss_of(consumer) == 4
    await bus.publish(numbered(topic, 1, start=4))
    assert ids(await receive(consumer, 1)) == ["4"]


async def test_messages_deleted_unacknowledged_are_told_and_counted(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    first = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 6))
    await receive(first, 6, ack=False)
    await first.close()
    await client.xtrim(stream_of(bus, topic), maxlen=2, approximate=False)
    second = await bus.subscribe(GROUP, [topic])
    assert await loss_of(second) == 4
    again = await receive(second, 2)
    assert ids(again) == ["4", "5"]
    assert [delivery.attempt for delivery in again] == [2, 2]
    assert sum(part.waiting for part in await bus.lag(GROUP, [topic])) == 0


async def test_a_server_that_forgot_everything_is_told(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    consumer = await bus.subscribe(GROUP, [topic])
    await bus.publish(numbered(topic, 3))
    await receive(consumer, 3)
    for key in await client.keys(f"{bus._server.options.prefix}*"):
        await client.delete(key)
    assert await loss_of(consumer) is None
    await bus.publish(numbered(topic, 2, start=3))
    got: list[Delivery] = []
    while len(got) < 2:
        try:
            got += await consumer.fetch(10, 0.5)
        except MessagesLost:  # it is found out in more than one way
            continue
    assert ids(got) == ["3", "4"]


async def test_what_was_in_flight_before_the_server_began_anew_acknowledges_nothing_of_it() -> None:
    """A server that forgot the end of a stream gives its numbers to other messages, and may still know the leases."""
    topic = new_name()
    with valkey() as server:
        url = f"{server.url}?partitions=1&lease=60s"
        bus = RedisBus(url)
        client: Any = Redis.from_url(server.url)
        await bus.start()
        consumer = await bus.subscribe(GROUP, [topic])
        await bus.publish(numbered(topic, 5))
        held = await receive(consumer, 5, ack=False)
        owners, stream = bus._server.owners(topic, GROUP), stream_of(bus, topic)
        leases = await client.hgetall(owners)
        await client.flushall()
        await client.aclose()
        server.restart()
        client = Redis.from_url(server.url)
        await client.hset(owners, mapping=leases)
        for message in numbered(topic, 3, start=5):
            await client.xadd(stream, {"k": "0", "v": message.value, "h": f'{{"ce_id": "{message.id}"}}'}, "0-*")
        await client.xgroup_create(stream, GROUP, "0")
        await client.xreadgroup(GROUP, "microkit", {stream: ">"})  # as by a reading that was under way
        for _ in range(3):
            try:
                await consumer.ack(held)
            except ConnectionError:
                await asyncio.sleep(0.05)
        assert (await client.xpending(stream, GROUP))["pending"] == 3
        got: list[Delivery] = []
        while len(got) < 3:
            try:
                got += await consumer.fetch(10, 0.5)
            except (ConnectionError, MessagesLost):
                await asyncio.sleep(0.05)
        assert ids(got) == ["5", "6", "7"]
        await bus.close()
        await client.aclose()
