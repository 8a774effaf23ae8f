"""Events from one service's rows to another's, while everything on the way is killed: ``copying.py PLAN`` (JSON).

A *producer* counts up numbers for each key and publishes each in the transaction that counts it; now and then it rolls
one back that has published already. Two *relays* carry them to a real broker through a *door*, a TCP proxy whose death
ends all connections. Two *consumers* are whole instances of a service with two handlers: one writes each event down,
the other whole batches. All of them are forked from this process, which has imported everything and started nothing, so
that each is a real process that a real SIGKILL ends, and yet starts in a moment. On the memory bus one process is all
of them.

In the end the rows on the right must be the numbers on the left: all, each once, in the order of their key.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from microkit import Event, Service, Transaction
from microkit.bus import Bus, MemoryBus, connect
from microkit.db import Database
from microkit.db.migration import create_tables, migrate
from microkit.declared import topics_of
from microkit.instance import Instance
from microkit.outbox import Relay, RelayOptions, install
from microkit.servers.kafka import KafkaServer
from microkit.servers.ports import free_ports
from microkit.servers.valkey import ValkeyServer
from microkit.telemetry import Telemetry
from microkit.testing.kafka import kafka
from microkit.testing.valkey import valkey
from tests.faults.forking import ended, forked, told_to_end

T = TypeVar("T")

KEYS: Final = 40
TOGETHER: Final = 5
"""Keys that one transaction counts up …"""
STEPS: Final = 4
"""… by so much each."""
PATIENCE: Final = 120.0
"""Seconds without a new row after which the run has failed."""

left = sa.MetaData()
counted = sa.Table(
    "counted", left, sa.Column("key", sa.Integer, primary_key=True), sa.Column("number", sa.Integer, nullable=False)
)
right = sa.MetaData()
singly, in_batches = (
    sa.Table(
        name,
        right,
        sa.Column("place", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("kept", sa.Boolean, nullable=False),
    )
    for name in ("singly", "in_batches")
)


class Counted(Event, topic="counter.numbers", key="name"):
    """``kept`` is false in a transaction that is going to be rolled back."""

    name: int
    number: int
    kept: bool = True


class _ChangedItsMindError(Exception):
    pass


ledger = Service("ledger", tables=right)


def row(event: Counted) -> dict[str, Any]:
    return {"key": event.name, "number": event.number, "kept": event.kept}


@ledger.on(Counted)
async def write_down(event: Counted, tx: Transaction) -> None:
    await tx.execute(sa.insert(singly), [row(event)])


@ledger.on(Counted)
async def write_batch_down(events: list[Counted], tx: Transaction) -> None:
    await tx.execute(sa.insert(in_batches), [row(event) for event in events])


@dataclass(frozen=True, slots=True)
class Plan:
    """``bus`` is ``memory``, ``redis`` or ``kafka``. ``blows`` fall at random times, ``seconds`` apart in the mean, as
    ``seed`` has it."""

    source: str
    target: str
    bus: str
    events: int
    blows: int
    seconds: float
    seed: int
    folder: str


# The processes that are killed.


async def produce(plan: Plan, seed: int) -> None:
    """Counts until ``plan.events`` numbers are committed, and notes that it counts no more."""
    chance = random.Random(seed)
    database = Database(plan.source, telemetry=Telemetry("counter", log_level="CRITICAL"), pool_size=4)
    await database.start()
    install(database, "counter")

    async def count(tx: Transaction, keys: list[int], *, kept: bool) -> None:
        up = (
            sa.update(counted)
            .where(counted.c.key.in_(keys))
            .values(number=counted.c.number + STEPS)
            .returning(counted.c.key, counted.c.number)
        )
        for key, last in sorted((await tx.execute(up)).all()):
            first = last - STEPS + 1
            tx.publish(*[Counted(name=key, number=number, kept=kept) for number in range(first, last + 1)])
        if not kept:
            await tx.flush()
            raise _ChangedItsMindError

    async def go_on() -> None:
        while not await finished(database, plan.events):
            for _ in range(8):
                keys = chance.sample(range(KEYS), TOGETHER)
                kept = chance.random() > 0.1
                with suppress(_ChangedItsMindError):
                    await database.run(lambda tx, keys=keys, kept=kept: count(tx, keys, kept=kept))  # type: ignore[misc]

    await asyncio.gather(*[go_on() for _ in range(4)])
    await database.close()
    counted_all(plan).touch()


def counted_all(plan: Plan) -> Path:
    return Path(plan.folder) / "counted"


async def finished(database: Database, events: int) -> bool:
    async with database.transaction(read_only=True) as tx:
        return int(await tx.scalar(sa.select(sa.func.sum(counted.c.number))) or 0) >= events


async def relay(plan: Plan, bus: Bus) -> None:
    telemetry = Telemetry("counter", log_level="CRITICAL")
    database = Database(plan.source, telemetry=telemetry)
    await database.start()
    await started(bus.start)
    working = Relay(database, bus, telemetry, source="counter", options=RelayOptions(lease=2.0, poll=0.2, batch=200))
    await working.start()
    await told_to_end()
    await working.stop(5)
    await bus.close()
    await database.close()


async def consume(plan: Plan, bus: Bus) -> None:
    settings = {"database_url": plan.target, "port": 0, "log_level": "CRITICAL", "access_log": False}
    await started(bus.start)
    instance = await started(partial(ready, settings, bus))
    await told_to_end()
    await instance.stop()


async def ready(settings: dict[str, object], bus: Bus) -> Instance:
    instance = ledger.instance(settings, bus=bus)
    await instance.start()
    return instance


async def live_alone(plan: Plan, seed: int) -> None:
    """All of it in one process, which is what ``memory://`` is for."""
    bus = MemoryBus()
    for group, listeners in ledger.declared.groups().items():  # before anything is published, as a system does it
        bus.declare(group, topics_of(listeners))
    await asyncio.gather(consume(plan, bus), relay(plan, bus), produce(plan, seed))


async def started(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """As a supervisor has it: what does not start, because the broker is away, is started again."""
    while True:
        try:
            return await start()
        except ConnectionError:
            await asyncio.sleep(0.2)


async def door(port: int, behind: int) -> None:
    """Lets connections through to the broker."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def open_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", behind)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer))

    server = await asyncio.start_server(open_up, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


# The one that kills.


class Company:
    """The processes by name; each is started again soon after it was killed."""

    def __init__(self, plan: Plan, url: str, port: int, broker: ValkeyServer | KafkaServer | None) -> None:
        self.kills: Counter[str] = Counter()
        self._plan = plan
        self._broker = broker
        self._chance = random.Random(plan.seed)
        self._log = (Path(plan.folder) / "blows").open("a", buffering=1)
        self._begun = time.monotonic()
        self._makers: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "process": lambda: live_alone(plan, self._chance.getrandbits(32)),
        }
        if broker is not None:
            behind = broker.port
            self._makers = {
                "door": lambda: door(port, behind),
                "producer": lambda: produce(plan, self._chance.getrandbits(32)),
                "relay 1": lambda: relay(plan, connect(url)),
                "relay 2": lambda: relay(plan, connect(url)),
                "consumer 1": lambda: consume(plan, connect(url)),
                "consumer 2": lambda: consume(plan, connect(url)),
            }
        self._running = {name: forked(make()) for name, make in self._makers.items()}

    def blow(self) -> None:
        """Kills one of them, or the broker, leaves it dead for a moment, and starts it again."""
        names = [*self._running, *(["broker"] if self._broker else [])]
        victim = self._chance.choice(names)
        away = self._chance.uniform(0, 0.6)
        self._log.write(f"{time.monotonic() - self._begun:8.3f} s  {victim}, away for {away:.3f} s\n")
        self.kills[victim.split()[0]] += 1
        if victim == "broker":
            self._strike_broker(away)
            return
        self._kill(victim)
        time.sleep(away)
        self._running[victim] = forked(self._makers[victim]())

    def watch(self) -> None:
        """Notices who has ended though nobody killed it: the producer does, when it is through."""
        for name, pid in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._running[name]
                if name != "producer" or status:
                    raise RuntimeError(f"{name} ended by itself with {os.waitstatus_to_exitcode(status)}")

    def dismiss(self) -> None:
        """Lets everybody end in order, the door last. The producer ends by itself."""
        for name in sorted(self._running, key=lambda name: name == "door"):
            pid = self._running.pop(name)
            if name != "producer":
                os.kill(pid, signal.SIGKILL if name == "door" else signal.SIGTERM)
            code = ended(pid)
            if name != "door" and code:
                raise RuntimeError(f"{name} did not end in order: {code}")

    def _strike_broker(self, away: float) -> None:
        if self._broker is not None:  # it has its data again
            self._broker.kill()
            time.sleep(away)
            self._broker.start()

    def _kill(self, name: str) -> None:
        pid = self._running.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def kill_all(self) -> None:
        for name in list(self._running):
            self._kill(name)


async def prepare(plan: Plan) -> None:
    for url, tables in ((plan.source, left), (plan.target, right)):
        database = Database(url, telemetry=Telemetry("copying"))
        await migrate(database, None)
        await create_tables(database, tables)
        if tables is left:
            async with database.transaction() as tx:
                await tx.execute(sa.insert(counted), [{"key": key, "number": 0} for key in range(KEYS)])
        await database.close()


async def sums(plan: Plan) -> tuple[int, int, int]:
    """How many numbers were counted, and how many of them each handler has written down."""
    counts = []
    for url, statement in (
        (plan.source, sa.select(sa.func.sum(counted.c.number))),
        (plan.target, sa.select(sa.func.count()).select_from(singly)),
        (plan.target, sa.select(sa.func.count()).select_from(in_batches)),
    ):
        database = Database(url, telemetry=Telemetry("copying"))
        async with database.transaction(read_only=True) as tx:
            counts.append(int(await tx.scalar(statement) or 0))
        await database.close()
    return counts[0], counts[1], counts[2]


async def verify(plan: Plan) -> None:
    source = Database(plan.source, telemetry=Telemetry("copying"))
    async with source.transaction(read_only=True) as tx:
        committed = dict((await tx.execute(sa.select(counted.c.key, counted.c.number))).all())
    await source.close()
    target = Database(plan.target, telemetry=Telemetry("copying"))
    for table in (singly, in_batches):
        lanes: dict[int, list[int]] = {key: [] for key in committed}
        async with target.transaction(read_only=True) as tx:
            for key, number, kept in await tx.execute(
                sa.select(table.c.key, table.c.number, table.c.kept).order_by(table.c.place)
            ):
                assert kept, f"{table.name}: {number} of {key} was rolled back"
                lanes[key].append(number)
        for key, last in committed.items():
            found = lanes[key]
            wrong = next((at for at, number in enumerate(found, 1) if number != at), None)
            assert wrong is None, f"{table.name}: place {wrong} of key {key}: {found[max(wrong - 4, 0) : wrong + 3]}"
            assert len(found) == last, f"{table.name}: {len(found)} of {last} of key {key}"
    await target.close()


@contextmanager
def broker_behind(plan: Plan, port: int) -> Iterator[tuple[ValkeyServer | KafkaServer | None, str]]:
    """The broker, if any, and the URL with which it is reached through the door."""
    if plan.bus == "memory":
        yield None, ""
    elif plan.bus == "redis":
        with valkey() as server:
            yield server, f"redis://127.0.0.1:{port}/0?lease=2s"
    else:
        with kafka(advertised_port=port, durable=True) as server:
            yield server, server.url


def copy(plan: Plan) -> dict[str, Any]:
    asyncio.run(prepare(plan))
    chance = random.Random(plan.seed + 1)
    (port,) = free_ports(1)
    begun = time.monotonic()
    with broker_behind(plan, port) as (broker, url):
        company = Company(plan, url, port, broker)
        try:
            before, moved = (0, 0, 0), time.monotonic()
            while True:
                time.sleep(chance.uniform(0, 2 * plan.seconds) if company.kills.total() < plan.blows else 0.5)
                company.watch()
                if company.kills.total() < plan.blows:
                    company.blow()
                through = counted_all(plan).exists() and company.kills.total() >= plan.blows
                now = asyncio.run(sums(plan))
                if now != before:
                    before, moved = now, time.monotonic()
                if through and now[0] <= min(now):
                    break
                if time.monotonic() - moved > PATIENCE:
                    raise TimeoutError(f"counted, written down singly and in batches: {now}; nothing moves any more")
            company.dismiss()
        finally:
            company.kill_all()
    asyncio.run(verify(plan))
    counts = asyncio.run(sums(plan))
    return {
        "events": counts[0],
        "effects": counts[1:],
        "kills": dict(company.kills),
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(copy(Plan(**json.loads(sys.argv[1])))))
