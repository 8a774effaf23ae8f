"""An outbox whose relay and consumers run in processes that are killed: ``post_office.py URL FOLDER MODE ROUNDS``.

``broker``: the relay gives events to a broker that keeps what it confirmed (a file). ``memory``: relay and consumer
share a memory bus, and the effects are rows of the same database. Each run is forked from this process, which has
imported everything and started nothing. In round N a run is ended by SIGKILL at the N-th passing of each crash point in
turn; the last run of all is left alone. The points at which runs ended go to the file ``killed``, one a line.
``slowly``: two relays at once, one of which is stopped for longer than its lease, ROUNDS times.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from microkit.bus import ConsumerRuntime, Delivery, MemoryBus, Promises, Subscription
from microkit.db import Database, Transaction
from microkit.message import Event, Message
from microkit.outbox import Relay, RelayOptions, effect_once, install
from microkit.outbox.tables import PUBLISHED, metadata, outbox
from microkit.telemetry import Telemetry

EVENTS = 600
KEYS = 7
BATCH = 10
POINTS = {
    "broker": ("before publish", "in the middle of a batch", "between publish and mark", "after mark"),
    "memory": (
        "before the effect",
        "before the effect's commit",
        "between the effect and its acknowledgement",
        "between acknowledgement and settling",
        "after settling",
    ),
}
SHORT_LEASE = 1.0
OPTIONS = RelayOptions(batch=BATCH, lease=60.0, poll=0.02, unsettled=2 * BATCH)

effects = sa.Table(
    "effect", metadata, sa.Column("place", sa.Integer, primary_key=True), sa.Column("number", sa.Integer)
)


class BillPaid(Event, topic="billing.bills", key="bill"):
    bill: str
    number: int


class Crash:
    """Ends this process at the ``at``-th passing of ``where``, as SIGKILL does: at once, with nothing put in order."""

    def __init__(self, folder: Path, where: str, at: int) -> None:
        self.folder = folder
        self.where = where
        self.left = at

    def point(self, name: str) -> None:
        self.left -= name == self.where
        if name == self.where and self.left == 0:
            append(self.folder / "killed", name)
            os.kill(os.getpid(), signal.SIGKILL)


def append(path: Path, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())
    os.close(file)


class Broker:
    """Confirms a message once it is in the file ``broker``."""

    promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)

    def __init__(self, folder: Path, crash: Crash) -> None:
        self.folder = folder
        self.crash = crash

    async def publish(self, messages: Sequence[Message]) -> None:
        self.crash.point("before publish")
        for index, message in enumerate(messages):
            append(self.folder / "broker", str(json.loads(message.value)["number"]))
            if index == BATCH // 4:  # half of it is marked meanwhile
                self.crash.point("in the middle of a batch")
        self.crash.point("between publish and mark")

    async def start(self) -> None: ...

    def declare(self, group: str, topics: Sequence[str]) -> None: ...

    async def subscribe(self, group: str, topics: Sequence[str]) -> Any: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def crashing(owner: Any, name: str, crash: Crash, before: str, after: str, when: Callable[[], bool]) -> None:
    """Puts a crash point before and after a method, passed only ``when`` there is something to do."""
    original = getattr(owner, name)

    async def wrapped(*arguments: Any) -> Any:
        matters = when()
        if matters and before:
            crash.point(before)
        result = await original(*arguments)
        if matters:
            crash.point(after)
        return result

    setattr(owner, name, wrapped)


async def until_done(database: Database) -> None:
    left = sa.select(sa.func.count()).select_from(outbox).where(outbox.c.state != PUBLISHED)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        async with database.transaction(read_only=True) as tx:
            if await tx.scalar(left) == 0:
                return
        await asyncio.sleep(0.02)
    raise TimeoutError("not everything was published")


async def run_broker(database: Database, folder: Path, crash: Crash) -> None:
    relay = Relay(database, Broker(folder, crash), Telemetry("relay"), source="billing", options=OPTIONS)
    crashing(relay, "_mark", crash, "", "after mark", lambda: True)
    await relay.start()
    await until_done(database)
    await relay.stop(5)


async def run_slowly(database: Database, folder: Path, crash: Crash) -> None:
    """A relay among others, with a lease that runs out soon, at a broker that takes its time."""

    class Slow(Broker):
        async def publish(self, messages: Sequence[Message]) -> None:
            await asyncio.sleep(0.03)
            await super().publish(messages)

    options = replace(OPTIONS, lease=SHORT_LEASE)
    relay = Relay(database, Slow(folder, crash), Telemetry("relay"), source="billing", options=options)
    await relay.start()
    await until_done(database)
    await relay.stop(5)


async def run_memory(database: Database, folder: Path, crash: Crash) -> None:
    bus = MemoryBus()
    consumers = ConsumerRuntime(bus, Telemetry("consumer"))

    async def handle(delivery: Delivery) -> None:
        async def work(tx: Transaction) -> None:
            await tx.execute(sa.insert(effects).values(number=json.loads(delivery.message.value)["number"]))
            crash.point("before the effect's commit")

        crash.point("before the effect")
        await effect_once(database, "ledger", delivery.message, work)
        crash.point("between the effect and its acknowledgement")

    consumers.add(Subscription("ledger", ("billing.bills",), handle, concurrency=4))
    relay = Relay(database, bus, Telemetry("relay"), source="billing", options=OPTIONS)
    crashing(
        relay,
        "_write_settled",
        crash,
        "between acknowledgement and settling",
        "after settling",
        lambda: bool(relay._unsettled.settled()),
    )
    await consumers.start()
    await relay.start()
    await until_done(database)
    await consumers.stop(5)
    await relay.stop(5)


async def work(url: str, folder: Path, mode: str, where: str, at: int) -> None:
    database = Database(url, telemetry=Telemetry("billing"))
    await database.start()
    await {"broker": run_broker, "memory": run_memory, "slowly": run_slowly}[mode](
        database, folder, Crash(folder, where, at)
    )
    await database.close()


async def fill(url: str) -> None:
    database = Database(url, telemetry=Telemetry("billing"))
    await database.start()
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    install(database, "billing")
    for start in range(0, EVENTS, 40):
        async with database.transaction() as tx:
            tx.publish(*[BillPaid(bill=str(number % KEYS), number=number) for number in range(start, start + 40)])
    await database.close()


def forked(task: Callable[[], Any]) -> int:
    """Runs the task in a process of its own; how that ended, as ``os.waitstatus_to_exitcode`` says it."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(task())
        except BaseException:  # noqa: BLE001  told, and turned into an exit status
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def relays(url: str, folder: Path, rounds: int) -> int:
    """Two relays at once, of which now one, now the other is stopped for longer than a lease, and goes on."""
    running = [multiprocessing.get_context("fork").Process(target=alone, args=(url, folder)) for _ in range(2)]
    for process in running:
        process.start()
    for turn in range(rounds):
        time.sleep(0.7)
        pid = running[turn % 2].pid
        if pid is None or not running[turn % 2].is_alive():
            break
        os.kill(pid, signal.SIGSTOP)
        append(folder / "killed", "stopped")
        time.sleep(1.5 * SHORT_LEASE)
        os.kill(pid, signal.SIGCONT)
    for process in running:
        process.join(90)
    return max(process.exitcode or 0 for process in running)


def alone(url: str, folder: Path) -> None:
    asyncio.run(work(url, folder, "slowly", "", 0))


def main(url: str, folder: Path, mode: str, rounds: int) -> int:
    if mode == "slowly":
        return forked(partial(fill, url)) or relays(url, folder, rounds)
    if forked(partial(fill, url)):
        return 1
    for at in range(1, rounds + 1):
        for where in POINTS[mode]:
            if forked(partial(work, url, folder, mode, where, at)) != -signal.SIGKILL:
                return 1
    return forked(partial(work, url, folder, mode, "", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
