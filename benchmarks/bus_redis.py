"""The contenders on Redis Streams, for ``benchmarks.bus``. The server is a Valkey with its append-only file."""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from microkit.message import Event

CONTENDERS = ("raw", "faststream", "microkit")
MESSAGES = 100_000
FASTSTREAM_MESSAGES = 20_000
BATCH = 500
"""What the outbox relay publishes at once."""
RAW_BATCH = 100

PAYLOAD = {
    "owner": "6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90",
    "payee": "Lagos Water",
    "reference": "INV-2026-0117",
    "amount": "12.50",
    "currency": "EUR",
    "note": "x" * 75,
}


class Paid(BaseModel):
    bill_id: str
    number: int
    owner: str
    payee: str
    reference: str
    amount: str
    currency: str
    note: str


class BillPaid(Event, topic="billing.bills", key="bill_id"):
    bill_id: str
    number: int
    owner: str
    payee: str
    reference: str
    amount: str
    currency: str
    note: str


def bill_of(number: int) -> str:
    """One of a thousand keys."""
    return f"bill-{number % 1000:04}"


@contextmanager
def broker() -> Iterator[str]:
    from microkit.testing.valkey import valkey

    with valkey() as server:
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
    """redis-py alone: pipelines of a hundred XADDs, reads and acknowledgements of a hundred."""
    from redis.asyncio import Redis

    client: Any = Redis.from_url(url)
    bodies = [
        Paid(bill_id=bill_of(number), number=number, **PAYLOAD).model_dump_json().encode() for number in range(MESSAGES)
    ]
    assert 240 <= len(bodies[0]) <= 260, len(bodies[0])
    begun = time.perf_counter()
    for start in range(0, MESSAGES, RAW_BATCH):
        pipeline = client.pipeline(transaction=False)
        for body in bodies[start : start + RAW_BATCH]:
            pipeline.xadd("raw", {"v": body})
        await pipeline.execute()
    published = time.perf_counter() - begun
    await client.xgroup_create("raw", "bench", "0")
    seen = 0
    begun = time.perf_counter()
    while seen < MESSAGES:
        for _, entries in await client.xreadgroup("bench", "one", {"raw": ">"}, count=RAW_BATCH):
            await client.xack("raw", "bench", *[entry[0] for entry in entries])
            seen += len(entries)
    consumed = time.perf_counter() - begun
    assert (await client.xpending("raw", "bench"))["pending"] == 0
    await client.delete("raw")
    await client.aclose()
    return {"raw_redis_publish": MESSAGES / published, "raw_redis_consume": MESSAGES / consumed}


async def faststream(url: str) -> dict[str, float]:
    """FastStream as its documentation has it: a group that reads a hundred at once and acknowledges after the handler;
    a handler for each message, as microkit's, and one for the whole batch."""
    from faststream import AckPolicy
    from faststream.redis import RedisBroker, StreamSub
    from redis.asyncio import Redis

    client: Any = Redis.from_url(url)
    broker = RedisBroker(url, logger=None)  # type: ignore[arg-type]  # as its documentation turns the log off
    seen = {"each": 0, "batch": 0}
    done = {"each": asyncio.Event(), "batch": asyncio.Event()}

    def count(kind: str, number: int) -> None:
        seen[kind] += number
        if seen[kind] >= FASTSTREAM_MESSAGES:
            done[kind].set()

    async def each(event: Paid) -> None:
        count("each", 1)

    async def batch(events: list[Paid]) -> None:
        count("batch", len(events))

    await broker.connect()
    events = [Paid(bill_id=bill_of(number), number=number, **PAYLOAD) for number in range(FASTSTREAM_MESSAGES)]
    begun = time.perf_counter()
    for event in events:
        await broker.publish(event, stream="fast")
    figures = {"faststream_redis_publish": FASTSTREAM_MESSAGES / (time.perf_counter() - begun)}
    for kind, handler in (("each", each), ("batch", batch)):
        await client.xgroup_create("fast", kind, "0")
        stream = StreamSub(
            "fast", group=kind, consumer="one", last_id=">", batch=kind == "batch", max_records=RAW_BATCH
        )
        subscriber = broker.subscriber(stream=stream, ack_policy=AckPolicy.NACK_ON_ERROR)
        subscriber(handler)
        begun = time.perf_counter()
        await subscriber.start()
        await done[kind].wait()
        seconds = time.perf_counter() - begun
        figures["faststream_redis_consume" + ("_batch" if kind == "batch" else "")] = FASTSTREAM_MESSAGES / seconds
        await subscriber.stop()
    await broker.stop()
    await client.aclose()
    return figures


async def microkit(url: str) -> dict[str, float]:
    """microkit: events into their envelopes and published in the relay's batches; the consumer runtime with all on."""
    from microkit.bus import ConsumerRuntime, Delivery, Subscription
    from microkit.bus.redis import RedisBus
    from microkit.telemetry import Telemetry

    bus = RedisBus(f"{url}?prefix={uuid4().hex}")
    await bus.start()
    events = [BillPaid(bill_id=bill_of(number), number=number, **PAYLOAD) for number in range(MESSAGES)]
    cpu = time.process_time()
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    begun = time.perf_counter()
    for start in range(0, MESSAGES, BATCH):
        await bus.publish([event.to_message("billing", trace=trace) for event in events[start : start + BATCH]])
    published = time.perf_counter() - begun
    publish_cpu = time.process_time() - cpu

    numbers: dict[str, list[int]] = {}
    seen = 0
    done = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        nonlocal seen
        event = BillPaid.from_message(delivery.message)
        numbers.setdefault(event.bill_id, []).append(event.number)
        seen += 1
        if seen >= MESSAGES:
            done.set()

    cpu = time.process_time()
    runtime = ConsumerRuntime(bus, Telemetry("bench"))
    runtime.add(Subscription("bench", (BillPaid.event_topic,), handle))
    begun = time.perf_counter()
    await runtime.start()
    await done.wait()
    while sum(part.waiting for part in await bus.lag("bench", [BillPaid.event_topic])):  # noqa: ASYNC110  another process
        await asyncio.sleep(0.002)
    consumed = time.perf_counter() - begun
    consume_cpu = time.process_time() - cpu
    await runtime.stop(5)
    await bus.close()
    _check(numbers.values())
    return {
        "redis_publish": MESSAGES / published,
        "redis_consume": MESSAGES / consumed,
        "redis_publish_cpu_us": 1e6 * publish_cpu / MESSAGES,
        "redis_consume_cpu_us": 1e6 * consume_cpu / MESSAGES,
    }


def _check(lanes: Any) -> None:
    lists: Sequence[list[int]] = list(lanes)
    assert sum(map(len, lists)) == MESSAGES
    assert all(lane == sorted(lane) for lane in lists)
