"""The contenders on Kafka's protocol, for ``benchmarks.bus``. The broker keeps everything in memory and is no Apache
Kafka: the figures say what the clients cost. What a group's joining takes is the broker's affair and is not counted."""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from benchmarks.bus_redis import BATCH, PAYLOAD, BillPaid, Paid, bill_of

CONTENDERS = ("raw", "faststream", "microkit")
MESSAGES = 100_000
FASTSTREAM_MESSAGES = 20_000


@contextmanager
def broker() -> Iterator[str]:
    from microkit.testing.kafka import kafka

    with kafka() as server:
        yield server.url


def run(name: str, url: str) -> dict[str, float]:
    import uvloop

    contender: Callable[[str], Coroutine[Any, Any, dict[str, float]]] = {
        "raw": raw,
        "faststream": faststream,
        "microkit": microkit,
    }[name]
    return uvloop.run(contender(url))


async def raw(url: str) -> dict[str, float]:
    """confluent-kafka alone: idempotent, each batch of 500 flushed; consumed by 500, each committed."""
    from confluent_kafka import Consumer, Producer

    topic = uuid4().hex
    producer = Producer({"bootstrap.servers": _servers(url), "enable.idempotence": True, "linger.ms": 1})
    bodies = [
        Paid(bill_id=bill_of(number), number=number, **PAYLOAD).model_dump_json().encode() for number in range(MESSAGES)
    ]
    confirmed = 0

    def report(error: Any, _record: Any) -> None:
        nonlocal confirmed
        confirmed += error is None

    begun = time.perf_counter()
    for start in range(0, MESSAGES, BATCH):
        for number in range(start, start + BATCH):
            producer.produce(topic, bodies[number], bill_of(number), on_delivery=report)
        producer.flush()
    published = time.perf_counter() - begun
    assert confirmed == MESSAGES
    consumer = Consumer(
        {
            "bootstrap.servers": _servers(url),
            "group.id": "raw",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 3000,
        }
    )
    consumer.subscribe([topic])
    seen, begun = 0, 0.0
    while seen < MESSAGES:
        records = consumer.consume(BATCH, 0.05)
        begun = begun or (time.perf_counter() if records else 0.0)
        seen += len(records)
        if records:
            consumer.commit(asynchronous=False)
    consumed = time.perf_counter() - begun
    consumer.close()
    assert _committed(url, "raw", topic) == MESSAGES
    return {"raw_kafka_publish": MESSAGES / published, "raw_kafka_consume": MESSAGES / consumed}


async def faststream(url: str) -> dict[str, float]:
    """FastStream over confluent-kafka as its documentation has it: batches, acknowledged after the handler."""
    import logging

    from faststream import AckPolicy
    from faststream.confluent import KafkaBroker

    topic = uuid4().hex
    broker = KafkaBroker(_servers(url), logger=None, log_level=logging.CRITICAL)
    seen, begun = 0, 0.0
    done = asyncio.Event()

    @broker.subscriber(
        topic,
        group_id="fast",
        auto_offset_reset="earliest",
        session_timeout_ms=3000,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def handle(event: Paid) -> None:
        nonlocal seen, begun
        assert event.bill_id
        begun = begun or time.perf_counter()
        seen += 1
        if seen >= FASTSTREAM_MESSAGES:
            done.set()

    await broker.connect()
    events = [Paid(bill_id=bill_of(number), number=number, **PAYLOAD) for number in range(FASTSTREAM_MESSAGES)]
    started = time.perf_counter()
    for start in range(0, FASTSTREAM_MESSAGES, BATCH):
        await broker.publish_batch(*events[start : start + BATCH], topic=topic)
    published = time.perf_counter() - started
    await broker.start()
    await done.wait()
    consumed = time.perf_counter() - begun
    await broker.stop()
    return {
        "faststream_kafka_publish": FASTSTREAM_MESSAGES / published,
        "faststream_kafka_consume": FASTSTREAM_MESSAGES / consumed,
    }


async def microkit(url: str) -> dict[str, float]:
    """microkit: events into their envelopes and published in the relay's batches; the consumer runtime with all on."""
    from microkit.bus import ConsumerRuntime, Delivery, Subscription, connect
    from microkit.telemetry import Telemetry

    bus = connect(url)
    await bus.start()
    topic = BillPaid.event_topic
    events = [BillPaid(bill_id=bill_of(number), number=number, **PAYLOAD) for number in range(MESSAGES)]
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    begun = time.perf_counter()
    for start in range(0, MESSAGES, BATCH):
        await bus.publish([event.to_message("billing", trace=trace) for event in events[start : start + BATCH]])
    published = time.perf_counter() - begun

    numbers: dict[str, list[int]] = {}
    seen, begun = 0, 0.0
    done = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        nonlocal seen, begun
        begun = begun or time.perf_counter()
        event = BillPaid.from_message(delivery.message)
        numbers.setdefault(event.bill_id, []).append(event.number)
        seen += 1
        if seen >= MESSAGES:
            done.set()

    group = uuid4().hex
    runtime = ConsumerRuntime(bus, Telemetry("bench"))
    runtime.add(Subscription(group, (topic,), handle))
    await runtime.start()
    await done.wait()
    while runtime.progress()[0].in_flight:  # noqa: ASYNC110  the runtime's own affair
        await asyncio.sleep(0.002)
    consumed = time.perf_counter() - begun
    await runtime.stop(5)
    await bus.close()
    lanes: Sequence[list[int]] = list(numbers.values())
    assert sum(map(len, lanes)) == MESSAGES
    assert all(lane == sorted(lane) for lane in lanes)
    assert _committed(url, group, topic) == MESSAGES
    return {"kafka_publish": MESSAGES / published, "kafka_consume": MESSAGES / consumed}


def _servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0]


def _committed(url: str, group: str, topic: str) -> int:
    """How many messages of a topic, counted from its beginning, the broker has as done."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": _servers(url), "group.id": group})
    partitions = [TopicPartition(topic, number) for number in consumer.list_topics(topic, 5).topics[topic].partitions]
    done = sum(max(0, each.offset) for each in consumer.committed(partitions, timeout=5))
    consumer.close()
    return done
