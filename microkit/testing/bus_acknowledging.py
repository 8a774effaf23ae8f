"""What is acknowledged, what comes again, and in which order."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import suppress

from microkit.bus.port import Consumer, Delivery
from microkit.testing.bus_scenarios import BusScenarios, needs
from microkit.testing.bus_traffic import (
    end,
    ids,
    new_name,
    numbered,
    numbers,
    receive,
    until,
)


class AcknowledgingScenarios(BusScenarios):
    """What is acknowledged, what comes again, and in which order."""

    # Acknowledgement.

    async def test_what_is_in_flight_does_not_come_again(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 4, keys=2))
            got = await receive(consumer, 4, ack=False)
            assert not await consumer.fetch(10, 0.3)
            await consumer.ack(got)
            assert not await consumer.fetch(10, 0.3)

    @needs("redelivers")
    async def test_of_a_batch_in_which_one_message_fails_only_that_one_comes_again(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 20, keys=20))
            got = await receive(consumer, 20, ack=False)
            (failed,) = [delivery for delivery in got if delivery.message.id == "7"]
            await consumer.ack([delivery for delivery in got if delivery is not failed])
            await consumer.release([failed])
            again = await receive(consumer, 1)
            assert ids(again) == ["7"]
            assert again[0].attempt > 1
            await consumer.close()
            assert not await (await bus.subscribe(group, [topic])).fetch(10, self.JOINING + 0.1)

    async def test_what_was_acknowledged_does_not_come_again(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 10, keys=3))
            await receive(consumer, 10)
            await consumer.close()
            again = await bus.subscribe(group, [topic])
            assert not await again.fetch(10, self.JOINING + 0.1)

    async def test_a_second_acknowledgement_does_nothing(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 3))
            got = await receive(consumer, 3, ack=False)
            await consumer.ack(got[:2])
            await consumer.ack(got)
            await consumer.ack(got)
            assert not await consumer.fetch(10, 0.2)
            await bus.publish(numbered(topic, 1, start=3))
            assert ids(await receive(consumer, 1)) == ["3"]

    @needs("redelivers")
    async def test_what_was_not_acknowledged_goes_to_another_member(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            gone = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 10, keys=2))
            got = await receive(gone, 10, ack=False)
            await gone.ack([delivery for delivery in got if int(delivery.message.id) < 4])
            await gone.close()
            rest = await receive(await bus.subscribe(group, [topic]), 6)
        assert sorted(ids(rest), key=int) == numbers(10)[4:]
        self._check_order(rest)

    @needs("redelivers")
    async def test_an_acknowledgement_after_leaving_does_nothing(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            gone = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 2))
            late = await receive(gone, 2, ack=False)
            await gone.close()
            other = await bus.subscribe(group, [topic])
            with suppress(ConnectionError):
                await gone.ack(late)
            assert ids(await receive(other, 2)) == numbers(2)

    @needs("redelivers")
    async def test_what_was_released_comes_again_in_its_old_order(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            await bus.publish(numbered(topic, 5))
            got = await receive(consumer, 5, ack=False)
            await consumer.ack(got[:1])
            await consumer.release(list(reversed(got[1:])))
            again = await receive(consumer, 4)
        assert ids(again) == ["1", "2", "3", "4"]
        assert all(delivery.attempt > 1 for delivery in again)

    # Order.

    @needs("ordered")
    async def test_messages_of_one_key_arrive_in_their_order(self) -> None:
        topic = new_name()
        async with self.bus() as bus:
            consumer = await bus.subscribe(new_name(), [topic])
            for start in range(0, 300, 50):
                await bus.publish(numbered(topic, 50, keys=7, start=start))
            self._check_order(await receive(consumer, 300))

    @needs("ordered", "groups")
    async def test_a_key_is_never_with_two_members_at_once(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            one, two = await bus.subscribe(group, [topic]), await bus.subscribe(group, [topic])
            holding: dict[str, list[int]] = defaultdict(list)
            met: list[tuple[str, list[int]]] = []
            done: list[Delivery] = []

            async def member(number: int, consumer: Consumer) -> None:
                while True:
                    got = await consumer.fetch(3, 0.1)
                    for delivery in got:
                        holders = holding[delivery.message.key]
                        holders.append(number)
                        if len(set(holders)) > 1:
                            met.append((delivery.message.key, list(holders)))
                    for delivery in got:
                        await asyncio.sleep(random.choice((0, 0, 0.001)))
                        done.append(delivery)
                        holding[delivery.message.key].remove(number)
                        await consumer.ack([delivery])

            tasks = [asyncio.create_task(member(*item)) for item in ((1, one), (2, two))]
            await self._trickle(bus, numbered(topic, 200, keys=4))
            await until(lambda: len(done) >= 200, lambda: f"{len(done)} of 200 arrived")
            await end(tasks)
        assert not met
        self._check_order(done)
