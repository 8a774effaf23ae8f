"""Loops that crash: begun anew some times, and then the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from microkit.bus import ConsumerRuntime, Delivery, Limits, MemoryBus, MessagesLost, Subscription, group
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"


class Cracked(MemoryBus):
    """Its consumers' ``fetch`` or ``ack`` raises what it is told to, as often as it is told to."""

    def __init__(self, method: str, error: Exception, times: int) -> None:
        super().__init__()
        self.method, self.error, self.times = method, error, times
        self.joined = 0

    async def subscribe(self, group: str, topics: Sequence[str]) -> Any:
        consumer: Any = await super().subscribe(group, topics)
        self.joined += 1
        real = getattr(consumer, self.method)

        async def cracked(*arguments: Any) -> Any:
            if self.times:
                self.times -= 1
                raise self.error
            return await real(*arguments)

        setattr(consumer, self.method, cracked)
        return consumer


@pytest.fixture
async def runtimes() -> AsyncIterator[list[ConsumerRuntime]]:
    started: list[ConsumerRuntime] = []
    yield started
    for runtime in started:
        await runtime.stop(1)


@pytest.mark.parametrize("method", ["fetch", "ack"])
async def test_a_loop_that_crashes_is_begun_anew_and_nothing_is_lost(
    method: str, telemetry: Telemetry, runtimes: list[ConsumerRuntime]
) -> None:
    bus = Cracked(method, TypeError("a fault in the adapter"), 2)
    await bus.start()
    done: list[str] = []

    async def handle(delivery: Delivery) -> None:
        done.append(delivery.message.id)

    runtime = ConsumerRuntime(bus, telemetry)
    runtimes.append(runtime)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 20, keys=4))
    await until(lambda: len(set(done)) == 20 and bus.joined == 3, lambda: f"{len(set(done))} done, joined {bus.joined}")
    assert runtime.progress()[0].restarts == 2
    assert not runtime.progress()[0].stalled
    assert runtime.failure is None
    read = telemetry.registry.get_sample_value
    assert read("microkit_consumer_crashes_total", {"messaging_consumer_group_name": "ledger"}) == 2
    await bus.close()


async def test_a_loop_that_crashes_too_often_is_the_end(telemetry: Telemetry, runtimes: list[ConsumerRuntime]) -> None:
    bus = Cracked("fetch", TypeError("a fault in the adapter"), 1000)
    await bus.start()

    async def handle(_: Delivery) -> None: ...

    runtime = ConsumerRuntime(bus, telemetry, limits=Limits(crashes=2))
    runtimes.append(runtime)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()
    await until(runtime.failed.is_set, lambda: "it goes on and on")
    assert bus.joined == 3
    assert "a fault in the adapter" in str(runtime.failure)
    assert runtime.progress()[0].stalled
    await bus.close()


async def test_a_group_that_cannot_join_again_has_crashed_again(
    telemetry: Telemetry, runtimes: list[ConsumerRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be dead without a word, and nobody would begin the process anew."""
    bus = Cracked("fetch", TypeError("a fault in the adapter"), 1)
    await bus.start()

    async def handle(_: Delivery) -> None: ...

    runtime = ConsumerRuntime(bus, telemetry, limits=Limits(crashes=2))
    runtimes.append(runtime)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()

    async def refuses(*_: object) -> None:
        raise ValueError("not like this")

    monkeypatch.setattr(bus, "subscribe", refuses)
    await until(runtime.failed.is_set, lambda: "nobody was told")
    assert "not like this" in str(runtime.failure)
    assert runtime.progress()[0].restarts == 3
    await bus.close()


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_process_from_ending(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "LONGEST_END", 0.2)
    bus = MemoryBus()
    await bus.start()
    begun, enough = asyncio.Event(), False

    async def handle(_: Delivery) -> None:
        begun.set()
        while not enough:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 1))
    await begun.wait()
    async with asyncio.timeout(30):
        await runtime.stop(0.1)
    successor = await bus.subscribe("ledger", [TOPIC])
    assert [delivery.message.id for delivery in await successor.fetch(10, 5)] == ["0"]
    enough = True
    await bus.close()


async def test_a_loss_is_counted_and_the_group_goes_on(telemetry: Telemetry, runtimes: list[ConsumerRuntime]) -> None:
    bus = Cracked("fetch", MessagesLost("3 messages are gone", 3), 1)
    await bus.start()
    done: list[str] = []

    async def handle(delivery: Delivery) -> None:
        done.append(delivery.message.id)

    runtime = ConsumerRuntime(bus, telemetry)
    runtimes.append(runtime)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: done == ["0"], lambda: f"{done}")
    assert runtime.progress()[0].restarts == 0
    read = telemetry.registry.get_sample_value
    assert read("microkit_consumer_lost_messages_total", {"messaging_consumer_group_name": "ledger"}) == 3
    await bus.close()
