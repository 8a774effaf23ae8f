"""What is refused, what is away, and what keeps its order when it is published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from microkit.bus import PublishFailed
from microkit.bus.redis import MessageRefused, RedisBus
from microkit.bus.redis import bus as bus_module
from microkit.message import Message
from microkit.testing.bus_suite import ids, new_name, numbered, numbers, receive
from microkit.testing.valkey import valkey
from tests.contract.bus.redis.streams import GROUP

pytestmark = pytest.mark.anyio


async def test_the_number_of_partitions_is_settled_by_who_comes_first(redis_url: str) -> None:
    topic = new_name()
    few, many = RedisBus(f"{redis_url}&partitions=2"), RedisBus(f"{redis_url}&partitions=16")
    await few.start()
    await many.start()
    await few.publish(numbered(topic, 40, keys=20))
    await many.publish(numbered(topic, 40, keys=20, start=40))
    assert len(await many.lag(GROUP, [topic])) == 2
    got = await receive(await many.subscribe(GROUP, [topic]), 80)
    for key in {delivery.message.key for delivery in got}:
        lane = [int(delivery.message.id) for delivery in got if delivery.message.key == key]
        assert lane == sorted(lane)
    await few.close()
    await many.close()


async def test_a_refused_message_takes_the_later_ones_of_its_key_and_no_others(
    bus: RedisBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "LARGEST", 100)
    topic = new_name()
    batch = numbered(topic, 9, keys=3)
    batch[4] = Message(topic, "1", b"x" * 101, {"ce_id": "4"})
    with pytest.raises(PublishFailed) as refused:
        await bus.publish(batch)
    assert sorted(refused.value.failed) == [4, 7]
    assert all(isinstance(cause, MessageRefused) for cause in refused.value.failed.values())
    assert sorted(ids(await receive(await bus.subscribe(GROUP, [topic]), 7))) == ["0", "1", "2", "3", "5", "6", "8"]


async def test_a_server_without_memory_is_away_and_no_message_is_blamed(bus: RedisBus, client: Any) -> None:
    topic = new_name()
    await bus.publish(numbered(topic, 1))
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(PublishFailed) as refused:
            await bus.publish(numbered(topic, 3, start=1))
        assert all(isinstance(cause, ConnectionError) for cause in refused.value.failed.values())
    finally:
        await client.config_set("maxmemory", 0)
    await bus.publish(numbered(topic, 3, start=1))
    assert ids(await receive(await bus.subscribe(GROUP, [topic]), 4)) == numbers(4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("ACL", "SETUSER", "default", "-@write"), ("ACL", "SETUSER", "default", "+@all")),
    ],
    ids=["demoted", "full", "forbidden"],
)
async def test_a_server_that_takes_nothing_now_is_away_for_all_that_is_asked_of_it(
    before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """A group survives any outage, but not its own faults. redis-py cuts the code off these errors."""
    with valkey() as server:
        client: Any = Redis.from_url(server.url)
        bus = RedisBus(server.url)
        await bus.start()
        consumer = await bus.subscribe(GROUP, ["billing"])
        await bus.publish(numbered("billing", 1))
        [delivery] = await receive(consumer, 1)
        await client.execute_command(*before)
        asked: list[Callable[[], Any]] = [
            lambda: consumer.fetch(1, 0.1),
            lambda: consumer.ack([delivery]),
            lambda: bus.publish(numbered("billing", 1)),
            lambda: bus.publish(numbered("bills", 1)),
            lambda: bus.subscribe("library", ["billing"]),
        ]
        outcomes = await asyncio.gather(*(ask() for ask in asked), return_exceptions=True)
        causes: list[object] = []
        for outcome in outcomes:
            causes += outcome.failed.values() if isinstance(outcome, PublishFailed) else [outcome]
        errors = [cause for cause in causes if isinstance(cause, BaseException)]
        assert len(errors) >= 3
        assert all(isinstance(error, ConnectionError) for error in errors), errors
        await client.execute_command(*after)
        await bus.close()
        await client.aclose()


async def test_a_batch_of_many_scripts_keeps_its_order(bus: RedisBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "AT_ONCE", 7)
    topic = new_name()
    await bus.publish(numbered(topic, 100))
    assert ids(await receive(await bus.subscribe(GROUP, [topic]), 100)) == numbers(100)
