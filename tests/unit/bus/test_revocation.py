"""What the consumer runtime does when the broker moves keys to another member."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Subscription
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"


class MovingBus(MemoryBus):
    """Its consumers say that they revoke; a test does it by calling ``let_go``, and sees what is acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go: Any = None
        self.acknowledged: list[str] = []
        self.released: list[str] = []

    async def subscribe(self, group: str, topics: Sequence[str]) -> Any:
        consumer: Any = await super().subscribe(group, topics)
        ack, release = consumer.ack, consumer.release

        async def noted_ack(deliveries: Sequence[Delivery]) -> None:
            self.acknowledged += [delivery.message.id for delivery in deliveries]
            await ack(deliveries)

        async def noted_release(deliveries: Sequence[Delivery]) -> None:
            self.released += [delivery.message.id for delivery in deliveries]
            await release(deliveries)

        consumer.ack, consumer.release = noted_ack, noted_release
        consumer.on_revoke = lambda let_go: setattr(self, "let_go", let_go)
        return consumer


@pytest.fixture
async def bus() -> AsyncIterator[MovingBus]:
    bus = MovingBus()
    await bus.start()
    yield bus
    await bus.close()


def with_keys(*keys: str) -> Any:
    return lambda delivery: delivery.message.key in keys


async def test_what_is_begun_is_finished_and_what_waits_is_given_up(bus: MovingBus, telemetry: Telemetry) -> None:
    handled: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.key == "0" and not begun.is_set():
            begun.set()
            await go_on.wait()
        handled.append(delivery.message.id)

    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), handle, concurrency=1))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 12, keys=3))  # of key 0: 0, 3, 6, 9
    await begun.wait()
    await until(lambda: runtime.progress()[0].in_flight == 12, lambda: "not all were fetched")
    gone = bus.let_go(with_keys("0", "1"))
    assert sorted(delivery.message.id for delivery in gone) == ["1", "10", "3", "4", "6", "7", "9"]
    go_on.set()
    await until(lambda: len(bus.acknowledged) == 5, lambda: f"acknowledged: {bus.acknowledged}")
    assert handled == ["0", "2", "5", "8", "11"]
    assert runtime.progress()[0].in_flight == 0
    await runtime.stop(1)


async def test_a_key_that_waits_for_its_next_attempt_goes_too(bus: MovingBus, telemetry: Telemetry) -> None:
    async def handle(delivery: Delivery) -> None:
        if delivery.message.key == "0":
            raise ValueError("not today")

    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), handle, backoff=3600.0, longest_backoff=3600.0))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 4, keys=2))
    await until(lambda: runtime.progress()[0].retrying == 1 and len(bus.acknowledged) == 2, lambda: "no retry waits")
    assert [delivery.message.id for delivery in bus.let_go(with_keys("0"))] == ["0", "2"]
    assert runtime.progress()[0].retrying == 0
    assert runtime.progress()[0].in_flight == 0
    await runtime.stop(1)


async def test_what_fails_meanwhile_is_released_for_the_next_member(bus: MovingBus, telemetry: Telemetry) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        raise ValueError("not today")

    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), handle, backoff=3600.0, longest_backoff=3600.0))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 1))
    await begun.wait()
    assert bus.let_go(with_keys("0")) == []
    go_on.set()
    await until(lambda: bus.released == ["0"], lambda: f"released: {bus.released}")
    await runtime.stop(1)
