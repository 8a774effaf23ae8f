"""The conformance suite refuses adapters that are wrong in one thing each."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microkit.bus import Bus, Delivery, MemoryBus, Promises
from microkit.bus.kafka import KafkaBus
from microkit.bus.redis import RedisBus
from microkit.message import Message
from microkit.testing import bus_traffic
from microkit.testing.bus_faults import BusFaultSuite
from microkit.testing.bus_suite import BusScenarios, BusSuite

pytestmark = pytest.mark.anyio

Change = Callable[[MemoryBus], None]


class Wrapped:
    """A consumer of which a test changes one method."""

    def __init__(self, consumer: Any) -> None:
        self.inner = consumer
        self.fetch, self.ack = consumer.fetch, consumer.ack
        self.release, self.close = consumer.release, consumer.close


def with_consumers(change: Callable[[Wrapped], None]) -> Change:
    def apply(bus: MemoryBus) -> None:
        async def subscribe(group: str, topics: Sequence[str]) -> Any:
            consumer = Wrapped(await MemoryBus.subscribe(bus, group, topics))
            change(consumer)
            return consumer

        bus.subscribe = subscribe  # type: ignore[method-assign]

    return apply


def loses_every_hundredth(bus: MemoryBus) -> None:
    async def publish(messages: Sequence[Message]) -> None:
        await MemoryBus.publish(bus, [message for message in messages if message.id != "99"])

    bus.publish = publish  # type: ignore[method-assign]


def reverses_batches(bus: MemoryBus) -> None:
    async def publish(messages: Sequence[Message]) -> None:
        await MemoryBus.publish(bus, list(reversed(messages)))

    bus.publish = publish  # type: ignore[method-assign]


def drops_headers(bus: MemoryBus) -> None:
    async def publish(messages: Sequence[Message]) -> None:
        await MemoryBus.publish(bus, [replace(each, headers={"ce_id": each.id}) for each in messages])

    bus.publish = publish  # type: ignore[method-assign]


def knows_one_group(bus: MemoryBus) -> None:
    async def subscribe(group: str, topics: Sequence[str]) -> Any:
        return await MemoryBus.subscribe(bus, "all", topics)

    bus.subscribe = subscribe  # type: ignore[method-assign]


def gives_a_group_to_each_member(bus: MemoryBus) -> None:
    async def subscribe(group: str, topics: Sequence[str]) -> Any:
        return await MemoryBus.subscribe(bus, bus_traffic.new_name(), topics)

    bus.subscribe = subscribe  # type: ignore[method-assign]


@with_consumers
def acknowledges_by_itself(consumer: Wrapped) -> None:
    async def fetch(most: int, wait: float) -> Sequence[Delivery]:
        got: Sequence[Delivery] = await consumer.inner.fetch(most, wait)
        await consumer.inner.ack(got)
        return got

    consumer.fetch = fetch


@with_consumers
def forgets_what_is_released(consumer: Wrapped) -> None:
    consumer.release = consumer.inner.ack


@with_consumers
def never_acknowledges(consumer: Wrapped) -> None:
    async def ack(deliveries: Sequence[Delivery]) -> None: ...

    consumer.ack = ack


@with_consumers
def loses_what_a_cancelled_fetch_took(consumer: Wrapped) -> None:
    async def fetch(most: int, wait: float) -> Sequence[Delivery]:
        got: Sequence[Delivery] = await consumer.inner.fetch(most, wait)
        await asyncio.sleep(0)
        return got

    consumer.fetch = fetch


@with_consumers
def gives_more_than_asked_for(consumer: Wrapped) -> None:
    async def fetch(most: int, wait: float) -> Sequence[Delivery]:
        got: Sequence[Delivery] = await consumer.inner.fetch(most + 5, wait)
        return got

    consumer.fetch = fetch


def ignores_keys(bus: MemoryBus) -> None:
    """Shares the messages among the members as they come, whatever their keys."""
    keys: dict[str, str] = {}

    async def publish(messages: Sequence[Message]) -> None:
        keys.update((message.id, message.key) for message in messages)
        await MemoryBus.publish(bus, [replace(message, key=message.id) for message in messages])

    def restore(consumer: Wrapped) -> None:
        async def fetch(most: int, wait: float) -> Sequence[Delivery]:
            got = await consumer.inner.fetch(most, wait)
            return [replace(each, message=replace(each.message, key=keys[each.message.id])) for each in got]

        consumer.fetch = fetch

    bus.publish = publish  # type: ignore[method-assign]
    with_consumers(restore)(bus)


def settles_at_the_first_acknowledgement(bus: MemoryBus) -> None:
    count_up = bus._count_up
    bus._count_up = lambda message, groups: count_up(message, min(groups, 1))  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "scenario"),
    [
        (loses_every_hundredth, "test_members_of_a_group_share_its_messages"),
        (loses_every_hundredth, "test_many_publishers_and_members_lose_nothing"),
        (reverses_batches, "test_messages_of_one_key_arrive_in_their_order"),
        (reverses_batches, "test_many_publishers_and_members_lose_nothing"),
        (drops_headers, "test_a_message_arrives_as_it_was_sent"),
        (knows_one_group, "test_every_group_sees_every_message"),
        (gives_a_group_to_each_member, "test_members_of_a_group_share_its_messages"),
        (gives_a_group_to_each_member, "test_what_was_not_acknowledged_goes_to_another_member"),
        (acknowledges_by_itself, "test_what_was_not_acknowledged_goes_to_another_member"),
        (acknowledges_by_itself, "test_what_was_released_comes_again_in_its_old_order"),
        (forgets_what_is_released, "test_a_storm_of_releases_loses_nothing"),
        (never_acknowledges, "test_what_was_acknowledged_does_not_come_again"),
        (loses_what_a_cancelled_fetch_took, "test_a_cancelled_fetch_loses_nothing"),
        (gives_more_than_asked_for, "test_fetch_gives_at_most_what_was_asked_for"),
        (ignores_keys, "test_a_key_is_never_with_two_members_at_once"),
        (settles_at_the_first_acknowledgement, "test_a_message_is_settled_when_every_group_has_acknowledged_it"),
    ],
)
async def test_a_wrong_adapter_is_refused(change: Change, scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_traffic, "PATIENCE", 1.0)

    class Suite(BusSuite):
        promises = Promises(persistent=False, ordered=True, groups=True, redelivers=True, history=False)

        async def connect(self) -> Bus:
            bus = MemoryBus()
            change(bus)
            return bus

    with pytest.raises((AssertionError, TimeoutError)):
        await getattr(Suite(), scenario)()


def adapters(suite: type[BusScenarios]) -> list[type[BusScenarios]]:
    """The repository's runs of a suite, one a broker."""
    redis, kafka = load("test_redis_bus"), load("test_kafka_bus")
    if suite is BusSuite:
        return [
            load("test_memory_bus").TestMemoryBus,
            redis.TestRedisBus,
            kafka.TestKafkaBus,
            kafka.TestKafkaBusOnTheMockCluster,
        ]
    return [redis.TestRedisBusFaults, kafka.TestKafkaBusFaults]


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_for_its_classes", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUSES: dict[str, Any] = {"Memory": MemoryBus, "Redis": RedisBus, "Kafka": KafkaBus}


@pytest.mark.parametrize("suite", [BusSuite, BusFaultSuite])
async def test_every_scenario_is_held_on_some_adapter_and_those_about_order_on_all(suite: type[BusScenarios]) -> None:
    scenarios = {name for name in dir(suite) if name.startswith("test_")}
    held: dict[str, list[str]] = {name: [] for name in scenarios}
    for adapter in adapters(suite):
        kind = next(bus for name, bus in BUSES.items() if name in adapter.__name__)
        bus = kind.__new__(kind)  # abilities are the class's, and no broker is asked
        for name in scenarios:
            if adapter().why_not(name, bus) is None:
                held[name].append(adapter.__name__)
        assert set(adapter.excused) <= scenarios, "an excuse for a scenario that is not there"
    assert [name for name, where in held.items() if not where] == []
    if suite is BusSuite:
        everywhere = {name for name, where in held.items() if len(where) == len(adapters(suite))}
        assert everywhere >= load("test_kafka_bus").ABOUT_ORDER
    # What one broker for Kafka cannot show, the other one does.
    if suite is BusSuite:
        one, other = adapters(suite)[2:]
        assert not set(one.excused) & set(other.excused)


async def test_a_scenario_that_is_not_held_says_why() -> None:
    class Suite(BusSuite):
        promises = Promises(persistent=False, ordered=False, groups=True, redelivers=True, history=False)
        excused = {"test_publishing_nothing_does_nothing": "its broker is asleep"}  # noqa: RUF012  it is the class's

    bus = MemoryBus()
    suite = Suite()
    assert suite.why_not("test_publishing_nothing_does_nothing", bus) == "its broker is asleep"
    assert suite.why_not("test_messages_of_one_key_arrive_in_their_order", bus) == (
        "this adapter does not promise 'ordered'"
    )
    assert suite.why_not("test_what_was_removed_is_read_no_more", bus) == "this adapter is none that Removes"
    assert suite.why_not("test_a_message_arrives_as_it_was_sent", bus) is None
