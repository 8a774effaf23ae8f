"""The conformance suite of the bus port. Every adapter passes it, yours too::

    class TestCarrierPigeon(BusSuite):
        promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)

        async def connect(self) -> Bus:
            return CarrierPigeonBus("pigeon://loft")

Each ``connect()`` gives a new connection, not started, to the same broker. What an adapter does not promise is tested
where it has an opposite, and skipped with the reason where it has none. Topics and groups have new names in every test.
A scenario that your broker cannot show goes into ``excused`` with its reason, which is printed. With a ``url`` that
``microkit.bus.connect`` takes, other processes join too. ``SCALE`` (1) multiplies the number of messages in the tests
under load; ``JOINING`` is how long a member may need to get its share, on a bus that deals out partitions.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import pytest

from microkit.bus.port import Bus, Consumer, Delivery, Inspects, Promises, Removes, Settles, ShowsLag
from microkit.message import Message

PATIENCE = 60.0
"""Seconds until a message that has not arrived is lost."""


Need = str | type[Any]

Scenario = TypeVar("Scenario", bound=Callable[..., Any])


def needs(*these: Need) -> Callable[[Scenario], Scenario]:
    """Marks a scenario that only an adapter with these promises and abilities can show."""

    def mark(scenario: Scenario) -> Scenario:
        scenario.needs = these  # type: ignore[attr-defined]  # functions take attributes
        return scenario

    return mark


class BusScenarios:
    """What the suites have in common."""

    promises: ClassVar[Promises]
    SCALE: ClassVar[int] = 1
    JOINING: ClassVar[float] = 0.2
    """Seconds that a new member may need until it gets messages."""
    excused: ClassVar[Mapping[str, str]] = {}
    """Names of scenarios that cannot be held here, and why."""
    url: str | None = None
    """What ``microkit.bus.connect`` takes to the same broker, for scenarios with other processes."""

    scenario = ""
    """The one that is being held."""

    @pytest.fixture(autouse=True)
    def _excuse(self, request: pytest.FixtureRequest) -> None:
        self.scenario = request.node.originalname
        if reason := self.why_not(self.scenario):
            pytest.skip(reason)

    @pytest.fixture(autouse=True)
    def bus_round(self, request: pytest.FixtureRequest) -> int:
        """Which of the rounds this is that ``--bus-stress`` asks for."""
        return getattr(request, "param", 0)

    async def connect(self) -> Bus:
        """A new connection, not started."""
        raise NotImplementedError

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await self.connect()
        if reason := self.why_not(self.scenario, bus):
            pytest.skip(reason)
        await bus.start()
        try:
            yield bus
        finally:
            await bus.close()

    def why_not(self, scenario: str, bus: Bus | None = None) -> str | None:
        """Why a scenario cannot be held here, ``None`` where it can; with ``bus``, its abilities count."""
        if reason := self.excused.get(scenario):
            return reason
        for need in getattr(getattr(type(self), scenario, None), "needs", ()):
            if isinstance(need, str):
                if not getattr(self.promises, need):
                    return f"this adapter does not promise {need!r}"
            elif bus is not None and not isinstance(bus, need):
                return f"this adapter is none that {need.__name__}"
        return None

    async def _publish(self, bus: Bus, messages: Sequence[Message], batch: int) -> None:
        for start in range(0, len(messages), batch):
            await bus.publish(messages[start : start + batch])

    async def _trickle(self, bus: Bus, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), 5):
            await bus.publish(messages[start : start + 5])
            await asyncio.sleep(0)

    async def _steadily(self, bus: Bus, messages: Sequence[Message], seconds: float) -> None:
        for start in range(0, len(messages), 10):
            await bus.publish(messages[start : start + 10])
            await asyncio.sleep(seconds * 10 / len(messages))

    async def _lag(self, bus: ShowsLag, group: str, topic: str) -> int:
        return sum(each.waiting for each in await bus.lag(group, [topic]) if (each.group, each.topic) == (group, topic))

    def _check_order(self, deliveries: Sequence[Delivery]) -> None:
        """The first coming of each message of a key is in the order of publishing."""
        if not self.promises.ordered:
            return
        lanes: dict[str, list[int]] = defaultdict(list)
        for delivery in deliveries:
            number = int(delivery.message.id)
            if number not in lanes[delivery.message.key]:
                lanes[delivery.message.key].append(number)
        for key, lane in lanes.items():
            assert lane == sorted(lane), f"the messages of key {key!r} came as {lane}"


class BusSuite(BusScenarios):
    """Subclass it, name what the adapter promises, and say how to connect."""

    pytestmark = pytest.mark.anyio

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
            deadline = asyncio.get_running_loop().time() + PATIENCE
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

            async with asyncio.timeout(PATIENCE + 30 * self.JOINING):
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
                async with asyncio.timeout(PATIENCE):
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
        waiting = asyncio.create_task(consumer.fetch(1, PATIENCE))
        await asyncio.sleep(0.05)
        await bus.close()
        async with asyncio.timeout(PATIENCE / 2):
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


def new_name() -> str:
    return f"suite.{uuid4().hex}"


def numbered(topic: str, number: int, *, keys: int = 1, start: int = 0, source: str = "suite") -> list[Message]:
    """Messages whose ids count up from ``start``, with ``keys`` keys in turn."""
    return [
        Message(topic, str(count % keys), str(count).encode(), {"ce_id": str(count), "ce_source": source})
        for count in range(start, start + number)
    ]


def numbers(number: int) -> list[str]:
    return [str(count) for count in range(number)]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def by_id(message: Message) -> str:
    return message.id


def number_of(message: Message) -> int:
    return int(message.id)


async def receive(
    consumer: Consumer, number: int, *, ack: bool = True, known: set[str] | None = None
) -> list[Delivery]:
    """Fetches until ``number`` new messages are there (copies and those ``known`` do not count)."""
    got: list[Delivery] = []
    seen = set(known or ())
    wanted = len(seen) + number
    until = asyncio.get_running_loop().time() + PATIENCE
    while len(seen) < wanted:
        assert asyncio.get_running_loop().time() < until, f"{wanted - len(seen)} of {number} messages did not arrive"
        deliveries = await consumer.fetch(100, 0.5)
        if ack:
            await consumer.ack(deliveries)
        got.extend(deliveries)
        seen.update(ids(deliveries))
    return got


@asynccontextmanager
async def working(members: Sequence[Consumer], seen: list[Delivery]) -> AsyncIterator[None]:
    """Members that fetch and acknowledge in the background and write down what they saw."""

    async def member(consumer: Consumer) -> None:
        while True:
            got = await consumer.fetch(50, 0.2)
            seen.extend(got)
            await consumer.ack(got)

    tasks = [asyncio.create_task(member(consumer)) for consumer in members]
    try:
        yield
    finally:
        await end(tasks)


async def until(true: Callable[[], bool], say: Callable[[], str], *, twice: bool = False) -> None:
    """Waits until something is true, in vain for at most ``PATIENCE`` seconds, or ``twice`` that."""
    deadline = asyncio.get_running_loop().time() + PATIENCE * (1 + twice)
    while not true():
        assert asyncio.get_running_loop().time() < deadline, say()
        await asyncio.sleep(0.005)


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
