"""What a group that falls behind holds."""

from __future__ import annotations

import asyncio

import pytest

from microkit.bus import ConsumerRuntime, Delivery, Limits, MemoryBus, Subscription
from microkit.message import Message
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import numbered, until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"


@pytest.mark.parametrize(
    ("keys", "size", "limits", "most"),
    [
        (10_000, 10, Limits(in_flight=32), 32),
        (1, 10, Limits(in_flight=32), 32 * 16),
        (10_000, 100_000, Limits(in_flight=256, bytes=1_000_000), 256 + 10),  # what one fetch brings beyond it
    ],
)
async def test_a_group_that_falls_behind_holds_a_bounded_number_and_size_of_messages(
    telemetry: Telemetry, keys: int, size: int, limits: Limits, most: int
) -> None:
    bus = MemoryBus()
    await bus.start()
    go_on = asyncio.Event()
    seen: list[str] = []
    held: list[int] = []

    async def handle(delivery: Delivery) -> None:
        await go_on.wait()
        held.append(runtime.progress()[0].in_flight)
        seen.append(delivery.message.id)

    runtime = ConsumerRuntime(bus, telemetry, limits=limits)
    runtime.add(Subscription("ledger", (TOPIC,), handle))
    await runtime.start()
    value = b"x" * size
    messages = [Message(TOPIC, one.key, value, one.headers) for one in numbered(TOPIC, 2000, keys=keys)]
    for start in range(0, 2000, 100):
        await bus.publish(messages[start : start + 100])
        await asyncio.sleep(0)
    await until(lambda: runtime.progress()[0].in_flight > 0, lambda: "nothing was fetched")
    go_on.set()
    await until(lambda: len(seen) == 2000, lambda: f"{len(seen)} were handled")
    assert max(held) <= most
    await runtime.stop(1)
    await bus.close()
