"""A walk over a topic whose end is never told: after a broker was killed it may have announced what it did not keep."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaException

from microkit.bus import connect
from microkit.bus.kafka import inspection
from microkit.bus.kafka.inspection import Reading
from microkit.bus.port import Stored
from microkit.testing.bus_suite import new_name, numbered

pytestmark = pytest.mark.anyio


@pytest.fixture
async def reading(kafka_url: str, monkeypatch: pytest.MonkeyPatch) -> Reading:
    """One that has read three messages, and is not told of the end of a partition."""
    monkeypatch.setattr(inspection, "SILENCE", 0.5)
    topic = new_name()
    bus = connect(kafka_url)
    await bus.start()
    await bus.publish(numbered(topic, 3))
    await bus.close()
    servers = kafka_url.removeprefix("kafka://").partition("?")[0]
    made = Reading({"bootstrap.servers": servers}, topic, None, logging.getLogger("test"))
    assert await asyncio.to_thread(made.start)
    assert len(await read(made)) == 3
    made._open.add(0)
    return made


async def read(reading: Reading) -> list[Stored]:
    def all_of_it() -> list[Stored]:
        return [stored for part in reading.rest() for stored in part]

    return await asyncio.wait_for(asyncio.to_thread(all_of_it), 60)


async def test_what_a_broker_announces_and_does_not_have_is_no_reason_to_wait(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    assert await read(reading) == []
    assert "gives nothing more: that is taken for its end" in caplog.text
    await asyncio.to_thread(reading.close)


async def test_a_broker_that_does_not_answer_is_no_end(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    reading._open.add(99)  # of a partition that is not there nobody can tell how far it reaches
    monkeypatch.setattr(inspection, "_ASK_SECONDS", 1.0)
    with pytest.raises(KafkaException):
        await read(reading)
    await asyncio.to_thread(reading.close)


async def test_reading_is_stopped_by_who_wants_no_more(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SILENCE", 3600.0)
    alone = ThreadPoolExecutor(1)
    under_way = asyncio.get_running_loop().run_in_executor(alone, lambda: list(reading.rest()))
    await asyncio.sleep(0.5)
    reading.stop()
    await asyncio.wait_for(under_way, 30)
    await asyncio.to_thread(reading.close)
    alone.shutdown()
