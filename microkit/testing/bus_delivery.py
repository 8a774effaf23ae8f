"""What is sent arrives, at whoever asked for it."""

from __future__ import annotations

import asyncio
import random

from microkit.bus.port import Delivery
from microkit.message import Message
from microkit.testing.bus_scenarios import BusScenarios, needs
from microkit.testing.bus_traffic import (
    by_id,
    ids,
    new_name,
    numbered,
    numbers,
    receive,
    until,
    working,
)


class DeliveryScenarios(BusScenarios):
    """What is sent arrives, at whoever asked for it."""

    # What is sent arrives.

    async def test_the_adapter_states_the_promises_that_are_tested(self) -> None:
        assert (await self.connect()).promises == self.promises

    async def test_a_message_arrives_as_it_was_sent(self) -> None:
        topic = new_name()
        sent = [
            Message(topic, "bill-1", b'{"amount": "12.50"}', {"ce_id": "1", "ce_source": "billing", "note": "naïve ☂"}),
            Message(topic, "", b"", {"ce_id": "2"}),
            Message(topic, "clé ☂", bytes(range(256)), {"ce_id": "3", "empty": ""}),
            Message(topic, "large", b"x" * 900_000, {"ce_id": "4"}),
        ]
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            await bus.publish(sent)
            got = await receive(consumer, len(sent))
        assert sorted((delivery.message for delivery in got), key=by_id) == sent
        assert all(delivery.attempt == 1 for delivery in got)

    async def test_publishing_nothing_does_nothing(self) -> None:
        async with self.bus() as bus:
            await bus.publish([])

    async def test_a_topic_that_nobody_subscribes_to_takes_messages(self) -> None:
        async with self.bus() as bus:
            await bus.publish(numbered(new_name(), 10))

    async def test_a_consumer_gets_only_the_topics_it_asked_for(self) -> None:
        wanted, also, other = new_name(), new_name(), new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [wanted, also])
            await bus.publish([*numbered(other, 3), *numbered(wanted, 2, start=3), *numbered(also, 2, start=5)])
            got = await receive(consumer, 4)
            assert not await consumer.fetch(10, 0.2)
        assert sorted(ids(got)) == ["3", "4", "5", "6"]
        assert {delivery.message.topic for delivery in got} == {wanted, also}

    async def test_what_is_published_before_a_declared_group_joins_waits_for_it(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            bus.declare(group, [topic])
            bus.declare(group, [topic])
            await bus.publish(numbered(topic, 5))
            consumer = await bus.subscribe(group, [topic])
            assert ids(await receive(consumer, 5)) == numbers(5)

    async def test_a_new_group_begins_where_the_adapter_promises(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            first = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 3))
            await receive(first, 3)
            late = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 2, start=3))
            expected = numbers(5) if self.promises.history else ["3", "4"]
            assert ids(await receive(late, len(expected))) == expected

    @needs("persistent")
    async def test_a_confirmed_message_survives_the_connection(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            bus.declare(group, [topic])
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 10))
            got = await receive(consumer, 10, ack=False)
            await consumer.ack(got[:4])
        async with self.bus() as bus:
            rest = await receive(await bus.subscribe(group, [topic]), 6)
        assert set(numbers(10)) == set(ids(got[:4])) | set(ids(rest))

    # Fetching.

    async def test_fetch_gives_at_most_what_was_asked_for(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 20, keys=5))
            sizes: list[int] = []
            while sum(sizes) < 20:
                got = await consumer.fetch(3, 1.0)
                sizes.append(len(got))
                await consumer.ack(got)
        assert max(sizes) <= 3

    async def test_fetch_returns_nothing_when_nothing_comes(self) -> None:
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [new_name()])
            assert not await consumer.fetch(10, 0.05)
            assert not await consumer.fetch(10, 0)

    async def test_a_waiting_fetch_gets_what_is_published_meanwhile(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            waiting = asyncio.create_task(receive(consumer, 1))
            await asyncio.sleep(0.05)
            await bus.publish(numbered(topic, 1))
            assert ids(await waiting) == ["0"]

    async def test_a_cancelled_fetch_loses_nothing(self) -> None:
        topic, total = new_name(), 200 * self.SCALE
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            publishing = asyncio.create_task(self._trickle(bus, numbered(topic, total, keys=7)))
            got: list[Delivery] = []
            for _ in range(100):
                fetching = asyncio.create_task(consumer.fetch(10, 0.5))
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(0)
                fetching.cancel()
                ended = (await asyncio.gather(fetching, return_exceptions=True))[0]
                if not isinstance(ended, BaseException):
                    got.extend(ended)
                    await consumer.ack(ended)
            await publishing
            got += await receive(consumer, total - len(set(ids(got))), known=set(ids(got)))
        assert set(ids(got)) == set(numbers(total))

    # Groups.

    @needs("groups")
    async def test_every_group_sees_every_message(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumers = [await bus.subscribe(new_name(), [topic]) for _ in range(3)]
            await bus.publish(numbered(topic, 30, keys=4))
            for consumer in consumers:
                assert sorted(ids(await receive(consumer, 30)), key=int) == numbers(30)

    @needs("groups")
    async def test_members_of_a_group_share_its_messages(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            members = [await bus.subscribe(group, [topic]) for _ in range(3)]
            seen: list[Delivery] = []
            async with working(members, seen):
                await bus.publish(numbered(topic, 300, keys=50))
                await until(lambda: len(seen) >= 300, lambda: f"{len(seen)} of 300 arrived")
        assert sorted(ids(seen), key=int) == numbers(300)

    async def test_many_topics_at_once_each_reach_their_group(self) -> None:
        topics = [new_name() for _ in range(10)]
        async with self.bus() as bus:
            consumers = await asyncio.gather(*(bus.subscribe(new_name(), [topic]) for topic in topics))
            await asyncio.gather(*(bus.publish(numbered(topic, 50, keys=5)) for topic in topics))
            received = await asyncio.gather(*(receive(consumer, 50) for consumer in consumers))
        for topic, got in zip(topics, received, strict=True):
            assert {delivery.message.topic for delivery in got} == {topic}
            assert sorted(ids(got), key=int) == numbers(50)
            self._check_order(got)

    async def test_members_that_leave_as_soon_as_they_join_spoil_nothing(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            bus.declare(group, [topic])

            async def come_and_go() -> None:
                await (await bus.subscribe(group, [topic])).close()

            await asyncio.gather(*(come_and_go() for _ in range(5)))
            await bus.publish(numbered(topic, 50, keys=5))
            assert sorted(ids(await receive(await bus.subscribe(group, [topic]), 50)), key=int) == numbers(50)
