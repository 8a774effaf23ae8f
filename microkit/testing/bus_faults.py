"""The conformance suite's scenarios with a broker of their own: it is killed, or filled. For adapters to one outside::

class TestCarrierPigeonFaults(BusFaultSuite):
    promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)

    async def connect(self) -> Bus: ...
    def restart(self) -> None: ...  # kills the broker and starts it again with its data
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from microkit.bus.port import Bus, Consumer, Delivery, PublishFailed
from microkit.message import Message
from microkit.testing.bus_suite import BusScenarios, end, ids, needs, new_name, numbered, until

LARGE = 2_000
"""Bytes of a message in the scenario of the slow consumer."""


class BusFaultSuite(BusScenarios):
    """Subclass it as you did :class:`~microkit.testing.bus_suite.BusSuite`."""

    pytestmark = pytest.mark.anyio

    MEMORY: ClassVar[int] = 32
    """MiB that a consumer may take for what it has not fetched, however much waits."""

    def restart(self) -> None:
        """Kills the broker as a crash does and starts it again, with the data it had confirmed."""
        pytest.skip("this broker cannot be restarted with its data")

    @needs("persistent")
    async def test_the_broker_may_be_restarted_in_mid_stream(self) -> None:
        topic, group, total = new_name(), new_name(), 3_000 * self.SCALE
        done: list[Delivery] = []
        async with self.bus() as bus:
            bus.declare(group, [topic])
            members = [await bus.subscribe(group, [topic]) for _ in range(2)]
            tasks = [asyncio.create_task(_work_through_trouble(member, done)) for member in members]
            publishing = asyncio.create_task(_publish_through_trouble(bus, numbered(topic, total, keys=20)))
            for part in (1, 2):
                await until(lambda part=part: len(set(ids(done))) > part * total // 4, lambda: f"{len(done)} arrived")  # type: ignore[misc]
                await asyncio.to_thread(self.restart)
            await publishing
            await until(
                lambda: len(set(ids(done))) >= total, lambda: f"{len(set(ids(done)))} of {total} arrived", twice=True
            )
            await end(tasks)
        self._check_order(done)

    @needs("persistent")
    async def test_a_slow_consumer_takes_no_more_memory_than_what_it_works_on(self) -> None:
        topic, group, total = new_name(), new_name(), 60_000
        async with self.bus() as bus:
            bus.declare(group, [topic])
            for start in range(0, total, 500):
                await bus.publish(
                    [Message(topic, str(number % 50), b"x" * LARGE, {"ce_id": str(number)})
                     for number in range(start, start + 500)]
                )  # fmt: skip
            before = _resident()
            consumer = await bus.subscribe(group, [topic])
            most = 0.0
            for _ in range(60):
                got = await consumer.fetch(20, 1.0)
                await asyncio.sleep(0.02)
                await consumer.ack(got)
                most = max(most, _resident())
        waiting = total * LARGE / 2**20
        assert waiting > 3 * self.MEMORY
        assert most - before < self.MEMORY, f"it took {most - before:.0f} MiB while {waiting:.0f} MiB waited"


async def _publish_through_trouble(bus: Bus, messages: Sequence[Message]) -> None:
    """Publishes batch by batch, each until it is confirmed, as the outbox relay does."""
    for start in range(0, len(messages), 20):
        batch = messages[start : start + 20]
        while batch:
            try:
                await bus.publish(batch)
                batch = []
            except PublishFailed as error:
                batch = [message for index, message in enumerate(batch) if index in error.failed]
            except ConnectionError:
                await asyncio.sleep(random.uniform(0.01, 0.1))
        await asyncio.sleep(0.002)


async def _work_through_trouble(consumer: Consumer, done: list[Delivery]) -> None:
    """Fetches and acknowledges, and asks again when the broker is away, as the consumer runtime does."""
    while True:
        try:
            got = await consumer.fetch(50, 0.2)
        except ConnectionError:
            await asyncio.sleep(random.uniform(0.01, 0.1))
            continue
        done.extend(got)
        while got:
            try:
                await consumer.ack(got)
                got = []
            except ConnectionError:
                await asyncio.sleep(random.uniform(0.01, 0.1))


def _resident() -> float:
    """MiB that this process takes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell the memory of a process in /proc")
    gc.collect()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
