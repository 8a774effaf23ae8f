"""The outbox relay: from rows committed in PostgreSQL to messages confirmed by a broker that speaks Kafka's protocol.

    python -m benchmarks.outbox [--json] [PART …]

In rows a second: ``relay`` publishes a table's rows, ``done`` does so beside a million rows published before, and
``pending`` takes the first of a million that wait. ``idle`` is the time in ms from the end of COMMIT in another process
to the broker's confirmation, while the relay has nothing else to do. ``faststream`` is faststream-outbox with 8 workers
and batches of 100. PostgreSQL has fsync on; the broker keeps everything in memory. Payloads are 250 bytes of JSON under
a thousand keys. What arrived is read from the broker afterwards: every row, once, in the order of its key.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.bus_redis import PAYLOAD, BillPaid, bill_of

ROWS: Final = 60_000
MILLION: Final = 1_000_000
FASTSTREAM_ROWS: Final = 15_000
COMMITS: Final = 200
PAUSE: Final = 0.05
TOPIC: Final = BillPaid.event_topic
KEYS: Final = [bill_of(number) for number in range(1000)]

_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_HEADERS: Final = (
    f'{{"ce_specversion": "1.0", "ce_id": "%1$s", "ce_source": "billing", "ce_type": "{BillPaid.event_type}", '
    '"ce_time": "2026-01-17T12:00:00.123456+00:00", "ce_subject": "%2$s", "ce_partitionkey": "%2$s", '
    f'"ce_schemaversion": "1", "content-type": "application/json", "traceparent": "{_TRACE}"}}'
)
_PAYLOAD: Final = '{"bill_id":"%1$s","number":%2$s,' + json.dumps(PAYLOAD, separators=(",", ":"))[1:]
_FILL: Final = """
    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, shard, state, created_at, done_at)
    SELECT made.id, $3, names.key, $4, convert_to(format($5, names.key, number), 'UTF8'),
           format($6, made.id, names.key)::json, names.shard, $2::int, clock_timestamp(),
           CASE WHEN $2::int = 2 THEN clock_timestamp() END
    FROM (SELECT number, gen_random_uuid() AS id FROM generate_series(0, $1::int - 1) AS number OFFSET 0) AS made
    JOIN unnest($7::text[], $8::int[]) WITH ORDINALITY AS names (key, shard, place) ON place = made.number % 1000 + 1
    ORDER BY number
"""


# The table.


async def fill(url: str, rows: int, state: int) -> None:
    """Writes rows as ``tx.publish`` does, in one statement."""
    from microkit.outbox.writer import shard_of

    shards = [shard_of(key) for key in KEYS]
    arguments = (rows, state, TOPIC, BillPaid.event_type, _PAYLOAD, _HEADERS, KEYS, shards)
    async with _administrator(url) as connection:
        await connection.execute(_FILL, *arguments, timeout=90)


async def settle(url: str) -> None:
    """Leaves the table as autovacuum would find and leave it, and nothing of the filling to be written any more."""
    async with _administrator(url) as connection:
        await connection.execute("VACUUM ANALYZE outbox", timeout=90)
        await connection.execute("CHECKPOINT", timeout=90)


@asynccontextmanager
async def _administrator(url: str) -> AsyncIterator[Any]:
    import asyncpg  # type: ignore[import-untyped]  # it ships no types

    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


# The relay.


@dataclass
class Service:
    """A service with nothing but its outbox and its relay, and what it has published so far."""

    database: Any
    relay: Any
    bus: Any
    telemetry: Any

    @property
    def published(self) -> int:
        labels = {"messaging_destination_name": TOPIC}
        return int(self.telemetry.registry.get_sample_value("messaging_client_sent_messages_total", labels) or 0)


@asynccontextmanager
async def service(url: str, broker: str) -> AsyncIterator[Service]:
    from microkit.bus import connect
    from microkit.db import Database
    from microkit.db.migration import create_tables
    from microkit.outbox import Relay, install
    from microkit.outbox.tables import metadata
    from microkit.telemetry import Telemetry

    telemetry = Telemetry("billing")
    database = Database(url, telemetry=telemetry)
    await database.start()
    await create_tables(database, [metadata])
    install(database, "billing")
    bus = connect(broker)
    await bus.start()
    try:
        yield Service(database, Relay(database, bus, telemetry, source="billing"), bus, telemetry)
    finally:
        await bus.close()
        await database.close()


async def relay(url: str, broker: str) -> dict[str, float]:
    return {"relay": await _rate(url, broker, done=0, pending=ROWS)}


async def done(url: str, broker: str) -> dict[str, float]:
    return {"relay_million_done": await _rate(url, broker, done=MILLION, pending=ROWS)}


async def pending(url: str, broker: str) -> dict[str, float]:
    return {"relay_million_pending": await _rate(url, broker, done=0, pending=MILLION)}


async def _rate(url: str, broker: str, *, done: int, pending: int) -> float:
    async with service(url, broker) as running:
        if done:
            await fill(url, done, 2)
        await fill(url, pending, 0)
        await settle(url)
        began = time.perf_counter()
        await running.relay.start()
        while running.published < ROWS:  # noqa: ASYNC110  a counter is all there is to look at
            await asyncio.sleep(0.01)
        rate = running.published / (time.perf_counter() - began)
        await running.relay.stop(0 if pending > ROWS else 10)
        published = running.published
    async with _administrator(url) as connection:
        marked = await connection.fetchval("SELECT count(*) FROM outbox WHERE state = 2") - done
    arrived = await asyncio.to_thread(_arrived, broker, published)
    ordered = all(numbers == sorted(set(numbers)) for numbers in arrived.values())
    if not ordered or sum(map(len, arrived.values())) < published or not published - 2000 <= marked <= published:
        raise SystemExit(f"{published} published, {marked} marked, in order: {ordered}")
    return rate


def _arrived(broker: str, expected: int) -> dict[str, list[int]]:
    """The numbers that the broker has of each key, in the order that it has them."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": _servers(broker), "group.id": "check", "enable.auto.commit": False})
    found = consumer.list_topics(TOPIC, 5).topics[TOPIC].partitions
    consumer.assign([TopicPartition(TOPIC, number, OFFSET_BEGINNING) for number in found])
    numbers: dict[str, list[int]] = {}
    seen, until = 0, time.monotonic() + 20
    while seen < expected and time.monotonic() < until:
        for record in consumer.consume(1000, 0.2):
            event = json.loads(record.value() or b"")
            numbers.setdefault(event["bill_id"], []).append(event["number"])
            seen += 1
    consumer.close()
    return numbers


def _servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0]


# Idle.


@dataclass
class Watched:
    """A bus that notes when each event was confirmed."""

    bus: Any
    confirmed: dict[int, float] = field(default_factory=dict)

    async def publish(self, messages: Any) -> None:
        await self.bus.publish(messages)
        now = time.monotonic()
        self.confirmed.update((json.loads(message.value)["number"], now) for message in messages)


async def idle(url: str, broker: str) -> dict[str, float]:
    async with service(url, broker) as running:
        watched = Watched(running.bus)
        running.relay._bus = watched  # noqa: SLF001  the one place between relay and bus
        await running.relay.start()
        writer = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.outbox",
            "--contender",
            "writer",
            url,
            broker,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await writer.communicate()
        committed: list[float] = json.loads(said)
        while len(watched.confirmed) <= COMMITS:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.01)
        await running.relay.stop(10)
    waits = sorted((watched.confirmed[number] - at) * 1e3 for number, at in enumerate(committed))
    return {"idle_latency_ms_p50": statistics.median(waits), "idle_latency_ms_p99": waits[len(waits) * 99 // 100]}


async def writer(url: str, _broker: str) -> list[float]:
    """Another process of the service, without a relay; when each COMMIT was over, on the clock of the machine."""
    from microkit.db import Database
    from microkit.outbox import install
    from microkit.telemetry import Telemetry

    database = Database(url, telemetry=Telemetry("billing"))
    await database.start()
    install(database, "billing")
    committed: list[float] = []
    async with database.transaction() as tx:  # the first event makes the topic, which is not counted
        tx.publish(BillPaid(bill_id=bill_of(0), number=COMMITS, **PAYLOAD))
    await asyncio.sleep(2)
    for number in range(COMMITS):
        await asyncio.sleep(PAUSE)
        async with database.transaction() as tx:
            tx.publish(BillPaid(bill_id=bill_of(number), number=number, **PAYLOAD))
        committed.append(time.monotonic())
    await database.close()
    return committed


# The peer.


async def faststream(url: str, broker: str) -> dict[str, float]:
    """faststream-outbox, stacked upon a publisher for Kafka, as its documentation has it."""
    import logging

    from faststream.confluent import KafkaBroker
    from faststream_outbox import OutboxBroker, make_outbox_table
    from sqlalchemy import MetaData, func, select
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    engine = create_async_engine(url, pool_size=20)
    table = make_outbox_table(MetaData(), table_name="outbox")
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    source = OutboxBroker(engine, outbox_table=table, logger=None)
    target = KafkaBroker(_servers(broker), logger=None, log_level=logging.CRITICAL)

    @target.publisher(TOPIC)
    @source.subscriber("bills", max_workers=8, fetch_batch_size=100)
    async def carry(body: dict[str, Any]) -> dict[str, Any]:
        return body

    await source.connect()
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    for start in range(0, FASTSTREAM_ROWS, 500):
        async with sessions() as session, session.begin():
            for number in range(start, start + 500):
                event = {"bill_id": bill_of(number), "number": number, **PAYLOAD}
                await source.publish(event, queue="bills", session=session)
    await settle(url)
    await target.connect()
    began = time.perf_counter()
    await source.start()
    left = FASTSTREAM_ROWS
    while left:
        await asyncio.sleep(0.05)
        async with engine.connect() as connection:
            left = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
    rate = FASTSTREAM_ROWS / (time.perf_counter() - began)
    await source.stop()
    await target.stop()
    await engine.dispose()
    arrived = await asyncio.to_thread(_arrived, broker, FASTSTREAM_ROWS)
    if sum(len(set(numbers)) for numbers in arrived.values()) != FASTSTREAM_ROWS:
        raise SystemExit("not every row arrived")
    return {"faststream_outbox": rate}


PARTS: Final[dict[str, Callable[[str, str], Awaitable[Any]]]] = {
    "relay": relay,
    "done": done,
    "pending": pending,
    "idle": idle,
    "faststream": faststream,
}


def figures(part: str) -> dict[str, float]:
    """One part in a process of its own, on a server and a broker of its own."""
    from microkit.testing.kafka import kafka
    from microkit.testing.postgres import cluster

    with cluster(durable=True) as server, kafka() as broker:
        url = server.url(server.create())
        command = [sys.executable, "-m", "benchmarks.outbox", "--contender", part, url, broker.url]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"{part} broke off: {finished.stderr[-2000:]}")
        found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
        return found


def run(name: str, url: str, broker: str) -> Any:
    import uvloop

    return uvloop.run({**PARTS, "writer": writer}[name](url, broker))  # type: ignore[arg-type]  # they are coroutines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--contender", nargs=3, metavar=("NAME", "URL", "BROKER"), help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(run(*options.contender)))
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: dict[str, float] = {}
    for part in options.parts or PARTS:
        for name, figure in figures(part).items():
            found[name] = round(figure, 1) if "_ms_" in name else round(figure)
            if not options.json:
                print(f"{name:28} {found[name]:>10,}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
