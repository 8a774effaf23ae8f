"""What the Redis adapter does when its streams are not as it left them."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from microkit.bus import Delivery, MessagesLost, PublishFailed, connect
from microkit.bus.redis import MessageRefused, RedisBus, RedisOptions
from microkit.bus.redis import bus as bus_module
from microkit.bus.redis.consumer import RedisConsumer
from microkit.errors import ConfigurationError, MissingExtra
from microkit.message import Message
from microkit.testing.bus_suite import ids, new_name, numbered, numbers, receive
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio

GROUP = "shop"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(redis_url.partition("?")[0])
    yield client
    await client.aclose()


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    bus = RedisBus(f"{redis_url}&partitions=1&lease=600ms&keep=0")
    await bus.start()
    yield bus
    await bus.close()


def stream_of(bus: RedisBus, topic: str) -> str:
    return bus._server.stream(topic, 0)


async def loss_of(consumer: RedisConsumer) -> int | None:
    async with asyncio.timeout(10):
        while True:
            try:
                assert not await consumer.fetch(10, 0.2), "the loss was not told before what comes after it"
            except MessagesLost as error:
                return error.lost


# Loss is told.


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


# The fence.


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
    async with asyncio.timeout(10):
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


# Trimming.


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

    async with asyncio.timeout(10):
        while await first() == 1:
            await asyncio.sleep(0.05)
    assert 500 < await first() <= stuck.offset
    await asyncio.sleep(0.5)
    assert await first() <= stuck.offset
    await slow.ack([stuck])
    async with asyncio.timeout(10):
        while await client.xlen(stream_of(bus, topic)) > 200:
            await asyncio.sleep(0.05)


async def test_a_topic_without_groups_is_not_trimmed(bus: RedisBus, client: Any) -> None:
    topic, busy = new_name(), new_name()
    await bus.publish(numbered(topic, 1_000))
    consumer = await bus.subscribe(GROUP, [busy])
    assert not await consumer.fetch(1, 1.0)
    assert await client.xlen(stream_of(bus, topic)) == 1_000


# Publishing.


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


# What others write.


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


# The URL.


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost?partitions=0",
        "redis://localhost?partitions=many",
        "redis://localhost?lease=1ms",
        "redis://localhost?lease=nan",
        "redis://localhost?keep=-1",
        "redis://localhost?unheard_of=1",
        "redis://localhost:port",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="bus_url"):
        connect(url)


async def test_the_url_says_what_the_options_are() -> None:
    options, rest = RedisOptions.of(
        "rediss://:secret@host:1/2?lease=1m&partitions=3&ssl_cert_reqs=none&prefix=p&keep=7"
    )
    assert options == RedisOptions(partitions=3, lease=60.0, keep=7, prefix="p")
    assert rest == "rediss://:secret@host:1/2?ssl_cert_reqs=none"


async def test_a_server_that_is_not_there_is_said_in_time() -> None:
    bus = connect("redis://127.0.0.1:1")
    with pytest.raises(ConnectionError):
        await bus.start()
    await bus.close()


async def test_a_missing_client_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "redis" or name.startswith("microkit.bus.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"microkit\[redis\]"):
        importlib.import_module("microkit.bus.redis")


# Another server than before.


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


# Memory.


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
