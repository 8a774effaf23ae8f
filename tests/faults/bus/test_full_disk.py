"""A broker whose disk is full: what it confirmed is there when it is back, and nothing else was taken for sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from microkit.bus.connect import connect
from microkit.bus.port import Bus, PublishFailed
from microkit.message import Message
from microkit.servers.kafka import KafkaServer
from microkit.servers.process import ServerProcess
from microkit.servers.valkey import ValkeyServer
from tests.conditions import fill, make_room, small_disk

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 6) as folder:
        yield folder


def made(kind: str, folder: Path) -> tuple[ServerProcess, str]:
    """A server that keeps what it confirms, and its URL."""
    if kind == "redis":
        valkey = ValkeyServer(folder, durable=True)
        return valkey, valkey.url
    broker = KafkaServer(folder, durable=True)
    return broker, f"{broker.url}&delivery_timeout=3s"


async def tried(bus: Bus, numbers: range) -> set[str]:
    """Those that were confirmed, each published by itself."""
    confirmed = set()
    for number in numbers:
        try:
            await bus.publish([Message("full", str(number), b"x" * 20_000)])
        except (PublishFailed, ConnectionError):
            continue
        confirmed.add(str(number))
    return confirmed


@pytest.mark.parametrize("kind", ["redis", "kafka"])
async def test_what_a_broker_confirmed_before_its_disk_was_full_is_there_afterwards(kind: str, disk: Path) -> None:
    server, url = made(kind, disk)
    server.start()
    bus = connect(url)
    try:
        bus.declare("readers", ["full"])
        await bus.start()
        confirmed = await tried(bus, range(10))
        assert len(confirmed) == 10
        fill(disk)
        at_the_end = await tried(bus, range(10, 14))
        assert len(at_the_end) < 4, "there was room for nothing"
        make_room(disk)
        if not server.running:
            server.start()  # as whoever supervises it does
        async with asyncio.timeout(60):
            while not (later := await tried(bus, range(20, 21))):
                await asyncio.sleep(0.2)
        wanted = confirmed | at_the_end | later
        consumer = await bus.subscribe("readers", ["full"])
        seen: set[str] = set()
        async with asyncio.timeout(60):
            while not wanted <= seen:
                deliveries = await consumer.fetch(100, 1.0)
                seen |= {each.message.key for each in deliveries}
                await consumer.ack(deliveries)
        await consumer.close()
    finally:
        await bus.close()
        server.stop()
