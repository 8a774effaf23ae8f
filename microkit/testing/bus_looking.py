"""Looking in from outside, and the end: of a connection, of a message that nobody waits for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from microkit.bus.port import Inspects, Removes, Settles
from microkit.testing import bus_traffic
from microkit.testing.bus_scenarios import BusScenarios, needs
from microkit.testing.bus_traffic import (
    end,
    ids,
    new_name,
    number_of,
    numbered,
    numbers,
    receive,
    until,
)


class LookingScenarios(BusScenarios):
    """Looking in from outside, and the end: of a connection, of a message that nobody waits for."""

    # Looking in.

    @needs(Inspects)
    async def test_topics_are_listed_with_their_groups(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Inspects)
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 20, keys=7))
            await receive(consumer, 20)
            (found,) = [each for each in await bus.topics() if each.name == topic]
        assert found.partitions >= 1
        assert found.groups == (group,)

    @needs(Inspects)
    async def test_topics_are_listed_with_the_number_of_their_messages(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Inspects)
            bus.declare(group, [topic])
            await bus.publish(numbered(topic, 20, keys=7))
            assert [each.messages for each in await bus.topics() if each.name == topic] == [20]

    @needs(Inspects)
    async def test_a_topic_is_read_without_moving_any_group(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Inspects)
            bus.declare(group, [topic])
            await bus.publish(numbered(topic, 600, keys=7))
            found = [stored async for stored in bus.read(topic)]
            assert sorted((stored.message for stored in found), key=number_of) == numbered(topic, 600, keys=7)
            places = [(stored.partition, stored.offset) for stored in found]
            assert len(set(places)) == len(places)
            for number in {partition for partition, _ in places}:
                offsets = [offset for partition, offset in places if partition == number]
                assert offsets == sorted(offsets)
            newest = [stored async for stored in bus.read(topic, last=5)]
            assert len(newest) == 5
            assert not [stored async for stored in bus.read(new_name())]
            consumer = await bus.subscribe(group, [topic])
            assert sorted(ids(await receive(consumer, 600)), key=int) == numbers(600)

    @needs(Inspects)
    async def test_a_topic_can_be_followed(self) -> None:
        topic, group = new_name(), new_name()
        seen: list[str] = []

        async def follow(bus: Inspects) -> None:
            async with aclosing(bus.read(topic, last=1, follow=True)) as reading:
                async for stored in reading:
                    seen.append(stored.message.id)  # noqa: PERF401  it is looked at meanwhile

        async with self.bus() as bus:
            assert isinstance(bus, Inspects)
            bus.declare(group, [topic])
            await bus.publish(numbered(topic, 3))
            following = asyncio.create_task(follow(bus))
            await until(lambda: bool(seen), lambda: "nothing is read")
            await bus.publish(numbered(topic, 30, keys=7, start=3))
            await until(lambda: len(seen) >= 31, lambda: f"read: {seen}")
            await end([following])
        assert seen[0] == "2"
        assert sorted(seen, key=int) == numbers(33)[2:]

    @needs(Inspects, Removes)
    async def test_what_was_removed_is_read_no_more(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Inspects)
            assert isinstance(bus, Removes)
            await bus.publish(numbered(topic, 20, keys=7))
            found = [stored async for stored in bus.read(topic)]
            gone = [stored for stored in found if int(stored.message.id) % 3]
            await bus.remove(gone)
            await bus.remove(gone[:2])
            rest = [stored.message.id async for stored in bus.read(topic)]
            assert sorted(rest, key=int) == ["0", "3", "6", "9", "12", "15", "18"]
            await bus.publish(numbered(topic, 1, start=20))
            assert "20" in [stored.message.id async for stored in bus.read(topic)]
            assert topic in [each.name for each in await bus.topics()]

    # The end.

    async def test_closing_the_bus_ends_a_waiting_fetch(self) -> None:
        bus = await self.connect()
        await bus.start()
        consumer = await bus.subscribe(new_name(), [new_name()])
        waiting = asyncio.create_task(consumer.fetch(1, bus_traffic.PATIENCE))
        await asyncio.sleep(0.05)
        await bus.close()
        async with asyncio.timeout(bus_traffic.PATIENCE / 2):
            ended = (await asyncio.gather(waiting, return_exceptions=True))[0]
        assert ended == [] or isinstance(ended, ConnectionError)

    async def test_a_closed_bus_takes_nothing(self) -> None:
        bus = await self.connect()
        await bus.start()
        await bus.ping()
        await bus.close()
        await bus.close()
        with pytest.raises(ConnectionError):
            await bus.publish(numbered(new_name(), 1))
        with pytest.raises(ConnectionError):
            await bus.ping()

    # A bus that keeps nothing.

    @needs(Settles)
    async def test_a_message_is_settled_when_every_group_has_acknowledged_it(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Settles)
            settled: list[str] = []
            forget = bus.on_settled("billing", settled.extend)
            one, two = await bus.subscribe(new_name(), [topic]), await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 2, source="billing"))
            await bus.publish(numbered(topic, 2, start=2, source="another"))
            await receive(one, 4)
            await asyncio.sleep(0.05)
            assert not settled
            got = await receive(two, 4, ack=False)
            await two.ack([delivery for delivery in got if delivery.message.id == "1"])
            await until(lambda: settled == ["1"], lambda: f"settled: {settled}")
            await two.ack(got)
            await until(lambda: settled == ["1", "0"], lambda: f"settled: {settled}")
            await bus.publish(numbered(new_name(), 1, start=7, source="billing"))
            await until(lambda: settled == ["1", "0", "7"], lambda: f"settled: {settled}")
            forget()
            await bus.publish(numbered(new_name(), 1, start=8, source="billing"))
            await asyncio.sleep(0.05)
        assert settled == ["1", "0", "7"]

    @needs(Settles)
    async def test_a_copy_of_a_message_elsewhere_does_not_settle_it(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            assert isinstance(bus, Settles)
            settled: list[str] = []
            bus.on_settled("billing", settled.extend)
            consumer = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 1, source="billing"))
            got = await receive(consumer, 1, ack=False)
            await bus.publish(numbered(topic + ".dead-letter", 1, source="billing"))
            await asyncio.sleep(0.05)
            assert not settled
            await consumer.ack(got)
            await until(lambda: settled == ["0"], lambda: f"settled: {settled}")
