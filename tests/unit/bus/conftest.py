"""What the tests of the consumer runtime share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from microkit.bus import ConsumerRuntime, Subscription
from microkit.bus.consumer import Limits
from microkit.bus.memory import MemoryBus
from microkit.message import Message
from microkit.telemetry import Telemetry
from tests.unit.bus.consuming import QUICKLY, TOPIC, Handle, Run, Start


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    await bus.start()
    yield bus
    await bus.close()


@pytest.fixture
async def start(bus: MemoryBus, telemetry: Telemetry) -> AsyncIterator[Start]:
    """Starts a runtime with one subscription."""
    started: list[ConsumerRuntime] = []

    async def start(subscription: Subscription, **options: Any) -> ConsumerRuntime:
        runtime = ConsumerRuntime(bus, telemetry, **options)
        runtime.add(subscription)
        await runtime.start()
        started.append(runtime)
        return runtime

    yield start
    for runtime in started:
        await runtime.stop(1)


@pytest.fixture
def run(start: Start) -> Run:
    """Runs a handler of single messages, whose retries come quickly."""

    async def run(handle: Handle, *, max_in_flight: int = 256, bury: Any = None, **changes: Any) -> ConsumerRuntime:
        subscription = Subscription("ledger", (TOPIC,), handle, **{**QUICKLY, **changes})
        return await start(subscription, limits=Limits(in_flight=max_in_flight), bury=bury)

    return run


@pytest.fixture
async def buried(bus: MemoryBus) -> Callable[[int], Awaitable[list[Message]]]:
    """Waits for that many dead letters on the topic's dead-letter topic."""
    consumer = await bus.subscribe("undertaker", [f"{TOPIC}.dead-letter"])
    got: list[Message] = []

    async def wait(number: int) -> list[Message]:
        async with asyncio.timeout(60):
            while len(got) < number:
                got.extend(delivery.message for delivery in await consumer.fetch(10, 1))
        return got

    return wait
