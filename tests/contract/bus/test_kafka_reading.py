"""A walk over a topic whose end the broker never tells: after it was killed it may have announced what it lost."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaException

from microkit.bus import connect
from microkit.bus.kafka import inspection
from microkit.bus.kafka.inspection import Reading
from microkit.testing.bus_suite import new_name, numbered

pytestmark = pytest.mark.anyio

NEVER = 99
"""A partition of which nothing comes."""


@pytest.fixture
async def reading(kafka_url: str) -> Reading:
    topic = new_name()
    bus = connect(kafka_url)
    await bus.start()
    await bus.publish(numbered(topic, 3))
    await bus.close()
    servers = kafka_url.removeprefix("kafka://").partition("?")[0]
    made = Reading({"bootstrap.servers": servers}, topic, None, logging.getLogger("test"))
    assert await asyncio.to_thread(made.start)
    made._open.add(NEVER)
    return made


async def test_reading_that_gets_no_further_is_given_up_and_says_where(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "STALLED", 3.0)
    found = []

    def read() -> None:
        for part in reading.rest():
            found.extend(part)

    with pytest.raises(KafkaException, match=r"nor that it has ended \(partitions 99\)"):
        await asyncio.wait_for(asyncio.to_thread(read), 60)
    assert len(found) == 3
    await asyncio.to_thread(reading.close)


async def test_reading_is_stopped_by_who_wants_no_more(reading: Reading) -> None:
    alone = ThreadPoolExecutor(1)
    under_way = asyncio.get_running_loop().run_in_executor(alone, lambda: list(reading.rest()))
    await asyncio.sleep(0.5)
    reading.stop()
    await asyncio.wait_for(under_way, 30)
    await asyncio.to_thread(reading.close)
    alone.shutdown()
