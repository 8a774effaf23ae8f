"""From a committed row to a broker that speaks Kafka's protocol, and is away or hangs meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from microkit.bus import Bus, connect
from microkit.outbox.tables import PUBLISHED
from microkit.servers.kafka import KafkaServer
from microkit.testing.bus_suite import until
from microkit.testing.kafka import kafka

pytestmark = pytest.mark.anyio

TOPIC = "billing.bills"
KEYS = 5


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """What the broker does is the same to both databases."""
    return postgres_url


@pytest.fixture
def server() -> Iterator[KafkaServer]:
    with kafka() as running:
        yield running


@pytest.fixture
async def bus(server: KafkaServer) -> AsyncIterator[Bus]:
    connected = connect(f"{server.url}&delivery_timeout=2s")
    await connected.start()
    yield connected
    await connected.close()


async def all_published(box: Any, number: int) -> None:
    async with asyncio.timeout(90):
        while (await box.states()).count(PUBLISHED) < number:
            await asyncio.sleep(0.05)


async def first_comings(bus: Bus, number: int) -> list[int]:
    """The numbers that a new group gets, without repetitions."""
    consumer = await bus.subscribe("reader", [TOPIC])
    found: dict[int, None] = {}
    async with asyncio.timeout(60):
        while len(found) < number:
            for delivery in await consumer.fetch(500, 1.0):
                found.setdefault(json.loads(delivery.message.value)["number"])
    await consumer.close()
    return list(found)


def in_order(found: list[int], number: int) -> None:
    assert sorted(found) == list(range(number))
    for key in range(KEYS):
        lane = [each for each in found if each % KEYS == key]
        assert lane == sorted(lane)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for record in caplog.records if (line := record.getMessage()).startswith("outbox:")]


async def test_events_wait_in_their_order_for_a_broker_that_is_away(
    box: Any, server: KafkaServer, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    with caplog.at_level(logging.INFO):
        relay = await box.relay(bus)
        for start in range(0, 100, 20):
            await box.publish_numbers(range(start, start + 20), keys=KEYS)
        await until(lambda: relay.health().trouble is not None, lambda: "it does not say that the broker is away")
        assert await box.states() == [0] * 100
        server.start()
        await all_published(box, 100)
        await until(lambda: relay.health().ok, lambda: f"{relay.health()}")
    in_order(await first_comings(bus, 100), 100)
    assert all(row.attempts == 0 for row in await box.rows())
    lines = told(caplog)
    assert len(lines) == 2, lines
    assert "cannot publish" in lines[0]
    assert "publishes again" in lines[1]


async def test_events_arrive_in_their_order_though_the_broker_hangs_in_the_middle_of_them(
    box: Any, server: KafkaServer, bus: Bus
) -> None:
    relay = await box.relay(bus, batch=20)
    await box.publish_numbers(range(50), keys=KEYS)
    await all_published(box, 50)
    server.freeze()
    for start in range(50, 150, 25):
        await box.publish_numbers(range(start, start + 25), keys=KEYS)
    await until(lambda: relay.health().trouble is not None, lambda: "it does not say that the broker hangs")
    server.thaw()
    await all_published(box, 150)
    in_order(await first_comings(bus, 150), 150)
