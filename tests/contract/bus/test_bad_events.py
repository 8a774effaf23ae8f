"""Every bad event ends as a dead letter with its reason, and the next message of its key is handled; on every bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from zlib import crc32

import orjson
import pytest
from confluent_kafka import Producer
from opentelemetry.trace import get_current_span
from redis.asyncio import Redis

from microkit.bus import Bus, ConsumerRuntime, Delivery, Subscription, connect
from microkit.bus.dead_letter import SUFFIX
from microkit.bus.kafka import KafkaBus
from microkit.bus.redis import RedisBus
from microkit.db import Database, Transaction
from microkit.declared import Listener
from microkit.listening import GroupHandler
from microkit.message import Event, Message
from microkit.outbox.tables import metadata
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import until

pytestmark = pytest.mark.anyio

TOPIC = "billing.bad"
KEY = "bill-1"


class BillPaid(Event, topic=TOPIC, key="bill"):
    bill: str
    number: int


@dataclass
class Bad:
    """What somebody else wrote: a payload, and headers as bytes."""

    reason: str
    value: bytes
    headers: dict[str, bytes]


def event(number: int, **changes: bytes | None) -> dict[str, bytes]:
    good = BillPaid(bill=KEY, number=number).to_message("elsewhere", message_id=f"id-{number}")
    headers: dict[str, bytes | None] = {name: value.encode() for name, value in good.headers.items()}
    headers |= changes
    return {name: value for name, value in headers.items() if value is not None}


def payload(number: int) -> bytes:
    return orjson.dumps({"bill": KEY, "number": number})


BAD = [
    Bad("unknown-type", payload(1), event(1, ce_type=b"billing.bad.BillStolen")),
    Bad("unknown-type", payload(2), event(2, ce_type=None)),
    Bad("newer-version", payload(3), event(3, ce_schemaversion=b"2")),
    Bad("bad-version", payload(4), event(4, ce_schemaversion=b"two")),
    Bad("no-id", payload(5), event(5, ce_id=None)),
    Bad("bad-id", payload(6), event(6, ce_id=b"x" * 300)),
    Bad("id-reused", payload(7), event(0)),
    Bad("too-large", b'"' + b"x" * 10_000_000 + b'"', event(8)),
    Bad("not-json", b"<bill/>", event(9)),
    Bad("not-json", b"", event(10)),
    Bad("not-json", b'{"bill": "\xff"}', event(11)),
    Bad("invalid-payload", b'{"bill": "bill-1", "number": "many"}', event(12)),
    Bad("bad-header", payload(13), event(13, note=b"\xff\xfe")),
]


class Elsewhere:
    """Writes to a topic past microkit, which would not make such messages."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def write(self, value: bytes, headers: dict[str, bytes]) -> None:
        texts = {name: text.decode("utf-8", "surrogateescape") for name, text in headers.items()}
        await self._bus.publish([Message(TOPIC, KEY, value, texts)])


class ElsewhereOnRedis(Elsewhere):
    async def write(self, value: bytes, headers: dict[str, bytes]) -> None:
        bus = self._bus
        assert isinstance(bus, RedisBus)
        streams = await bus._server.streams(TOPIC)
        client: Any = Redis(connection_pool=bus._server._client.connection_pool)
        json = b"{" + b",".join(b'"%s":"%s"' % (name.encode(), text) for name, text in headers.items()) + b"}"
        fields = {"k": KEY, "v": value, "h": json}
        await client.xadd(streams[crc32(KEY.encode()) % len(streams)], fields, "0-*")


class ElsewhereOnKafka(Elsewhere):
    async def write(self, value: bytes, headers: dict[str, bytes]) -> None:
        bus = self._bus
        assert isinstance(bus, KafkaBus)
        producer = Producer(
            {"bootstrap.servers": bus.options.servers, "message.max.bytes": 12_000_000, "partitioner": "murmur2_random"}
        )
        producer.produce(TOPIC, value, KEY, headers=list(headers.items()))
        assert producer.flush(10) == 0
        producer.close()


@pytest.fixture(params=["memory", "redis", "kafka"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    bus = connect(url)
    await bus.start()
    yield bus
    await bus.close()


def elsewhere(bus: Bus) -> Elsewhere:
    kinds: dict[type, type[Elsewhere]] = {RedisBus: ElsewhereOnRedis, KafkaBus: ElsewhereOnKafka}
    return kinds.get(type(bus), Elsewhere)(bus)


@pytest.fixture
async def ledger(sqlite_url: str, telemetry: Telemetry) -> AsyncIterator[Database]:
    database = Database(sqlite_url, telemetry=telemetry)
    await database.start()
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield database
    await database.close()


async def test_each_is_kept_with_its_reason_and_the_next_one_is_handled(
    bus: Bus, ledger: Database, telemetry: Telemetry
) -> None:
    handled: list[tuple[int, str]] = []
    group, morgue = f"ledger-{uuid4().hex}", f"morgue-{uuid4().hex}"

    async def record(event: BillPaid, tx: Transaction) -> None:
        handled.append((event.number, format(get_current_span().get_span_context().trace_id, "032x")))

    handler = GroupHandler([Listener(group, BillPaid, record)], {}, ledger)
    runtime = ConsumerRuntime(bus, telemetry)
    runtime.add(Subscription(group, (TOPIC,), handler, batching=handler.batching, backoff=0.01))
    bus.declare(morgue, [TOPIC + SUFFIX])
    await runtime.start()
    there = elsewhere(bus)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await there.write(payload(0), event(0, traceparent=f"00-{trace}-00f067aa0ba902b7-01".encode()))
    for number, bad in enumerate(BAD):
        await there.write(bad.value, bad.headers)
        await there.write(payload(100 + number), event(100 + number))
    await there.write(payload(200), event(200, traceparent=f"00-{trace}-zzz-01".encode()))
    expected = [0, *range(100, 100 + len(BAD)), 200]
    await until(lambda: len(handled) >= len(expected), lambda: f"handled: {[number for number, _ in handled]}")
    assert [number for number, _ in handled] == expected
    traces = dict(handled)
    assert traces[0] == trace
    assert traces[200] not in (trace, "0" * 32), "a bad traceparent begins a new trace"

    letters = [delivery.message for delivery in await receive_all(bus, morgue, len(BAD))]
    await runtime.stop(5)
    for bad, letter in zip(BAD, letters, strict=True):
        assert letter.headers["mk_dlq_reason"] == bad.reason, letter.headers
        assert letter.value == bad.value
        assert letter.key == KEY
        assert letter.headers["mk_dlq_error"]
        assert letter.headers["mk_dlq_attempts"] == "1"
        assert (letter.headers["mk_dlq_topic"], letter.headers["mk_dlq_group"]) == (TOPIC, group)
        assert letter.headers["mk_dlq_offset"].isdigit()


async def receive_all(bus: Bus, group: str, number: int) -> list[Delivery]:
    """Dead letters, which have no ids of their own to count by."""
    consumer = await bus.subscribe(group, [TOPIC + SUFFIX])
    got: list[Delivery] = []

    async with asyncio.timeout(60):
        while len(got) < number:
            part = await consumer.fetch(100, 0.5)
            await consumer.ack(part)
            got.extend(part)
    return got
