"""Many messages, many members, and members that come and go."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict

import pytest

from microkit.bus.port import Delivery, ShowsLag
from microkit.testing import bus_traffic
from microkit.testing.bus_scenarios import BusScenarios, needs
from microkit.testing.bus_traffic import (
    end,
    ids,
    new_name,
    numbered,
    numbers,
    receive,
    until,
    working,
)


class LoadScenarios(BusScenarios):
    """Many messages, many members, and members that come and go."""

    # Under load.

    async def test_many_publishers_and_members_lose_nothing(self) -> None:
        topic, group, total = new_name(), new_name(), 5_000 * self.SCALE
        async with self.bus() as bus:
            members = [await bus.subscribe(group, [topic]) for _ in range(5)]
            seen: list[Delivery] = []
            async with working(members, seen):
                messages = numbered(topic, total, keys=100)
                # One publisher a key's messages: order is promised for what was confirmed before, not for what races.
                shares = [[message for message in messages if int(message.key) % 10 == share] for share in range(10)]
                await asyncio.gather(*(self._publish(bus, share, 50) for share in shares))
                await until(lambda: len(set(ids(seen))) >= total, lambda: f"{len(set(ids(seen)))} of {total} arrived")
        self._check_order(seen)

    @needs("groups")
    async def test_fifty_groups_at_once_each_see_everything(self) -> None:
        topic, total = new_name(), 100 * self.SCALE
        async with self.bus() as bus:
            consumers = [await bus.subscribe(new_name(), [topic]) for _ in range(50)]
            receiving = [asyncio.create_task(receive(consumer, total)) for consumer in consumers]
            await self._publish(bus, numbered(topic, total, keys=9), 20)
            for task in receiving:
                assert sorted(ids(await task), key=int) == numbers(total)

    @needs("redelivers")
    async def test_a_storm_of_releases_loses_nothing(self) -> None:
        topic, group, total = new_name(), new_name(), 1_000 * self.SCALE
        async with self.bus() as bus:
            consumer = await bus.subscribe(group, [topic])
            await self._publish(bus, numbered(topic, total, keys=20), 100)
            done: list[Delivery] = []
            deadline = asyncio.get_running_loop().time() + bus_traffic.PATIENCE
            while len(done) < total and asyncio.get_running_loop().time() < deadline:
                # A key's messages are done up to the first that is released, as the consumer runtime does it.
                refused: set[str] = set()
                finished, again = [], []
                for delivery in await consumer.fetch(50, 1.0):
                    if delivery.message.key in refused or random.random() < 0.3:
                        refused.add(delivery.message.key)
                        again.append(delivery)
                    else:
                        finished.append(delivery)
                await consumer.ack(finished)
                await consumer.release(again)
                done += finished
        assert sorted(ids(done), key=int) == numbers(total)
        self._check_order(done)

    @needs("redelivers")
    async def test_members_that_come_and_go_lose_nothing(self) -> None:
        topic, group = new_name(), new_name()
        at_once = self.JOINING < 1  # else each coming and going takes its time, and that of the others
        total, members = (1_000 * self.SCALE, 4) if at_once else (40 * self.SCALE, 2)
        async with self.bus() as bus:
            bus.declare(group, [topic])
            publishing = asyncio.create_task(self._trickle(bus, numbered(topic, total, keys=20)))
            done: list[Delivery] = []

            async def fleeting() -> None:
                while len(set(ids(done))) < total:
                    consumer = await bus.subscribe(group, [topic])
                    for turn in range(random.randrange(1, 6)):
                        got = await consumer.fetch(20, 0.2 if turn else self.JOINING)
                        kept = got[: random.randrange(len(got) + 1)]
                        done.extend(kept)
                        await consumer.ack(kept)
                        if len(kept) < len(got):
                            break
                    await consumer.close()

            async with asyncio.timeout(bus_traffic.PATIENCE + 30 * self.JOINING):
                await asyncio.gather(publishing, *(fleeting() for _ in range(members)))
        assert set(ids(done)) == set(numbers(total))
        self._check_order(done)

    @needs("ordered", "groups")
    async def test_members_that_join_and_leave_under_load_change_no_order(self) -> None:
        topic, group, total = new_name(), new_name(), 600 * self.SCALE
        async with self.bus() as bus:
            done: list[Delivery] = []
            busy: dict[str, int] = defaultdict(int)
            met: list[str] = []

            async def member() -> None:
                consumer = await bus.subscribe(group, [topic])
                try:
                    while True:
                        for delivery in await consumer.fetch(5, 0.1):
                            key = delivery.message.key
                            busy[key] += 1
                            if busy[key] > 1:
                                met.append(key)
                            try:
                                await asyncio.sleep(0.002)
                            finally:
                                busy[key] -= 1
                            done.append(delivery)
                            await consumer.ack([delivery])
                finally:
                    await consumer.close()

            tasks = [asyncio.create_task(member())]
            publishing = asyncio.create_task(self._steadily(bus, numbered(topic, total, keys=20), self.JOINING * 3))
            for _ in range(2):
                await asyncio.sleep(self.JOINING)
                tasks.append(asyncio.create_task(member()))
            await publishing
            leaving = tasks.pop(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until(lambda: len(set(ids(done))) >= total, lambda: f"{len(set(ids(done)))} of {total} arrived")
            await end(tasks)
        assert not met, "a key was with two members at once"
        self._check_order(done)

    @needs("redelivers")
    async def test_what_a_killed_process_held_is_delivered_again(self) -> None:
        if self.url is None:
            pytest.skip("this adapter's bus is in one process")
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            bus.declare(group, [topic])
            await bus.publish(numbered(topic, 20, keys=1))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "microkit.testing.bus_member", self.url, group, topic, "5"),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(bus_traffic.PATIENCE):
                    held = [(await process.stdout.readline()).decode().strip() for _ in range(20)]
                    assert (await process.stdout.readline()).decode().strip() == "acknowledged"
            finally:
                process.kill()
                await process.wait()
            assert held == numbers(20)
            again = await receive(await bus.subscribe(group, [topic]), 15)
        assert ids(again)[:1] == ["5"], "what was acknowledged came again, or what was not did not"
        assert set(ids(again)) == set(numbers(20)[5:])
        self._check_order(again)

    @needs(ShowsLag)
    async def test_the_lag_is_what_is_not_acknowledged(self) -> None:
        topic, group = new_name(), new_name()
        async with self.bus() as bus:
            assert isinstance(bus, ShowsLag)
            consumer = await bus.subscribe(group, [topic])
            await bus.publish(numbered(topic, 30, keys=7))
            assert await self._lag(bus, group, topic) == 30
            got = await receive(consumer, 30, ack=False)
            assert await self._lag(bus, group, topic) == 30
            # Of each key, so that nothing that is done waits behind something that is not.
            await consumer.ack([delivery for delivery in got if int(delivery.message.id) < 14])
            assert await self._lag(bus, group, topic) == 16
            await consumer.ack(got)
            assert await self._lag(bus, group, topic) == 0
            await bus.publish(numbered(topic, 5, keys=7, start=30))
            assert await self._lag(bus, group, topic) == 5
