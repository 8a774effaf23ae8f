"""A bank whose transfers are sagas, run by processes that are killed. A program: ``bank.py URL FOLDER COMMAND …``.

Two places hold money. This service's database holds the accounts, moved by local steps. The ledger, a file of its own,
stands for another service: it does what it is asked once for each idempotency key, durably, and forgets nothing. Its
money goes from account to account as the sagas' remote steps book it.

Each command forks its workers from this process, which has imported everything and started nothing, so that a worker is
a real process that a real SIGKILL ends, and yet starts in a moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.errors import Unavailable
from microkit.saga import (
    Retry,
    Saga,
    SagaEngine,
    StepContext,
    StepRefused,
    compensatable,
    leases,
    pivot,
    retriable,
    store,
)
from microkit.saga import writer as writer_module
from microkit.saga.tables import metadata as saga_tables
from microkit.saga.tables import saga as saga_table
from microkit.saga.tables import saga_step
from microkit.telemetry import Telemetry
from tests.faults.forking import ended, forked, succeed

LEASE = 0.3
PATIENT = Retry(attempts=100_000, initial=0.01, maximum=0.1)
OPENING = 1_000
HOUR = 3600

own = sa.MetaData()
account = sa.Table(
    "account",
    own,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("balance", sa.Integer, nullable=False),
)
entry = sa.Table(
    "entry",
    own,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("saga_id", sa.Uuid, nullable=False),
    sa.Column("what", sa.String(20), nullable=False),
)


class Crash:
    """Ends this process as SIGKILL does, at once and with nothing put in order, at the first point not tried yet.

    ``tried`` are the names of points, ``None`` to live on at all of them. The point's name is left in the file
    ``told``.
    """

    def __init__(self, tried: list[str] | None = None, told: Path = Path(os.devnull)) -> None:
        self.tried = tried
        self.told = told

    def point(self, name: str) -> None:
        if self.tried is not None and name not in self.tried:
            self.told.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


crash = Crash()


class Ledger:
    """Money elsewhere. A key is booked once; asked again it answers the same."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30, isolation_level=None)

    def create(self) -> None:
        connection = self.open()
        connection.executescript(
            "PRAGMA journal_mode=WAL;"
            "DROP TABLE IF EXISTS booking;"
            "CREATE TABLE booking (key TEXT PRIMARY KEY, what TEXT NOT NULL, amount INTEGER NOT NULL, number INTEGER)"
        )
        connection.close()

    def book(self, key: str, what: str, amount: int) -> None:
        connection = self.open()
        try:
            connection.execute(
                "INSERT OR IGNORE INTO booking SELECT ?, ?, ?, 1 + count(*) FROM booking", (key, what, amount)
            )
        finally:
            connection.close()

    def bookings(self) -> list[tuple[str, str, int]]:
        connection = self.open()
        try:
            return connection.execute("SELECT key, what, amount FROM booking ORDER BY number").fetchall()
        finally:
            connection.close()


class Transfer(BaseModel):
    payer: str
    amount: int
    refused: bool = False
    """Whether the pivot refuses it."""


async def debit(state: Transfer, tx: Transaction, step: StepContext) -> None:
    await _move(tx, step, "debit", state.payer, -state.amount)


async def credit_back(state: Transfer, tx: Transaction, step: StepContext) -> None:
    await _move(tx, step, "credit_back", state.payer, state.amount)


async def _move(tx: Transaction, step: StepContext, what: str, name: str, amount: int) -> None:
    crash.point(f"{what} begins")
    await tx.execute(sa.update(account).where(account.c.name == name).values(balance=account.c.balance + amount))
    await tx.execute(sa.insert(entry), {"saga_id": step.saga_id, "what": what})
    crash.point(f"{what} written")


async def reserve(state: Transfer, step: StepContext, ledger: Ledger) -> None:
    _book(ledger, step, "reserve", 0)


async def release(state: Transfer, step: StepContext, ledger: Ledger) -> None:
    _book(ledger, step, "release", 0)


async def book(state: Transfer, step: StepContext, ledger: Ledger) -> None:
    if state.refused:
        raise StepRefused("the ledger refuses it")
    _book(ledger, step, "book", state.amount)


def _book(ledger: Ledger, step: StepContext, what: str, amount: int) -> None:
    crash.point(f"{what} begins")
    ledger.book(step.idempotency_key, what, amount)
    crash.point(f"{what} booked")


async def note(tx: Transaction, step: StepContext) -> None:
    await tx.execute(sa.insert(entry), {"saga_id": step.saga_id, "what": "note"})


TRANSFER = Saga(
    "transfer",
    Transfer,
    [
        compensatable(debit, undo=credit_back, retry=PATIENT, undo_retry=PATIENT),
        compensatable(reserve, undo=release, timeout=10, retry=PATIENT, undo_retry=PATIENT),
        pivot(book, timeout=10, retry=PATIENT),
        retriable(note, retry=PATIENT),
    ],
)


def with_crash_points() -> None:
    """A point before and after each commit that the engine makes."""
    recording, claiming = store.record_all, leases.claim

    async def record_all(tx: Transaction, transitions: Any, **_: Any) -> Any:  # apart from its COMMIT
        each = [f"{made.attempt.direction} {made.attempt.step.name} {made.outcome.ended}" for made in transitions]
        what = ", ".join(each)
        recorded = await recording(tx, transitions)
        crash.point(f"{what}: before commit")
        tx.after_commit(lambda: crash.point(f"{what}: after commit"))
        return recorded

    async def claim(tx: Transaction, **options: Any) -> Any:
        claimed = await claiming(tx, **options)
        if claimed:
            crash.point("claim: before commit")
            tx.after_commit(lambda: crash.point("claim: after commit"))
        return claimed

    for module, name, instead in (
        (store, "record_all", record_all),
        (writer_module, "record_all", record_all),
        (leases, "claim", claim),
    ):
        setattr(module, name, instead)


async def prepare(url: str, ledger: Ledger, sagas: int) -> None:
    """Accounts, and sagas to be carried out; every third is refused at its pivot."""
    ledger.create()
    database = Database(url, telemetry=Telemetry("bank"))
    async with database.engine.begin() as connection:
        await connection.run_sync(own.drop_all)
        await connection.run_sync(saga_tables.drop_all)
    await create_tables(database, [saga_tables, own])
    async with database.transaction() as tx:
        await tx.execute(sa.insert(account), [{"name": name, "balance": OPENING} for name in "abc"])
        for number in range(sagas):
            await TRANSFER.start(tx, Transfer(payer="abc"[number % 3], amount=1 + number, refused=number % 3 == 1))
    await database.close()


async def work(url: str, ledger: Ledger, concurrency: int = 8, lease: float = LEASE) -> None:
    """Runs an engine until every saga has ended."""
    telemetry = Telemetry("bank", log_level="CRITICAL")
    database = Database(url, telemetry=telemetry)
    engine = SagaEngine(
        database, telemetry, [TRANSFER], {Ledger: ledger}, lease=lease, concurrency=concurrency, poll=0.05
    )
    await engine.start()
    left = sa.select(sa.func.count()).where(saga_table.c.status.in_(["running", "compensating"]))
    under_way = 1
    while under_way:
        await asyncio.sleep(0.02)
        with suppress(Unavailable):  # where the clock is moved, this connection's time to open runs out early, too
            async with database.transaction(read_only=True) as tx:
                under_way = (await tx.execute(left)).scalar_one()
    await engine.stop(5)
    await database.close()


async def verify(url: str, ledger: Ledger) -> None:
    """Money is conserved, and each effect is there once or, where the saga was compensated, undone once in reverse."""
    database = Database(url, telemetry=Telemetry("bank"))
    async with database.transaction(read_only=True) as tx:
        sagas = (await tx.execute(sa.select(saga_table))).mappings().all()
        steps = (await tx.execute(sa.select(saga_step).order_by(saga_step.c.saga_id, saga_step.c.seq))).mappings().all()
        balances = sum((await tx.execute(sa.select(account.c.balance))).scalars())
        entries = (await tx.execute(sa.select(entry.c.saga_id, entry.c.what).order_by(entry.c.number))).all()
    await database.close()
    bookings = ledger.bookings()

    assert balances + sum(amount for _, _, amount in bookings) == 3 * OPENING, "money is not conserved"
    for saga in sagas:
        local = [what for saga_id, what in entries if saga_id == saga["id"]]
        remote = [what for key, what, _ in bookings if UUID(key.split(":")[0]) == saga["id"]]
        own = [step for step in steps if step["saga_id"] == saga["id"]]
        undone = [step["step"] for step in own if step["direction"] == "undo" and step["status"] == "done"]
        if saga["state"]["refused"]:
            assert saga["status"] == "compensated", saga
            assert (local, remote) == (["debit", "credit_back"], ["reserve", "release"]), (local, remote)
            assert undone == ["reserve", "debit"], undone
        else:
            assert saga["status"] == "completed", saga
            assert (local, remote) == (["debit", "note"], ["reserve", "book"]), (local, remote)
            assert undone == [], undone
        assert saga["lease_owner"] is None
        assert saga["next_at"] is None


def explore(url: str, folder: Path) -> dict[str, Any]:
    """Two sagas, one of each end, once for every crash point that they pass: killed there, restarted, verified."""
    ledger, told = Ledger(folder / "ledger"), folder / "point"
    points: list[str] = []
    while True:

        def arm() -> None:
            global crash  # noqa: PLW0603  of a process that was forked for this
            crash = Crash(points, told)
            with_crash_points()

        succeed(prepare(url, ledger, 2), "preparing")
        code = ended(forked(work(url, ledger, concurrency=1), arm))
        if code == -signal.SIGKILL:
            points.append(told.read_text())
            succeed(work(url, ledger), "the work")
        succeed(verify(url, ledger), "verifying")
        if code == 0:
            return {"points": points}
        if code != -signal.SIGKILL:
            sys.exit(1)


def storm(url: str, folder: Path, sagas: int, blows: int) -> dict[str, Any]:
    """Two engines on one table. Again and again one is killed at a random moment and restarted, or stopped for longer
    than its lease and let go on."""
    ledger = Ledger(folder / "ledger")
    succeed(prepare(url, ledger, sagas), "preparing")
    workers = [forked(work(url, ledger)) for _ in range(2)]
    kills = stops = 0
    while kills + stops < blows:
        time.sleep(random.uniform(0.02, 0.25))
        victim = random.randrange(2)
        if random.random() < 0.2:
            os.kill(workers[victim], signal.SIGSTOP)
            time.sleep(1.5 * LEASE)
            os.kill(workers[victim], signal.SIGCONT)
            stops += 1
            continue
        os.kill(workers[victim], signal.SIGKILL)
        if ended(workers.pop(victim)) != -signal.SIGKILL:  # it had ended by itself, for all sagas have
            break
        kills += 1
        workers.append(forked(work(url, ledger)))
    codes = [ended(worker) for worker in workers]
    if any(codes):
        sys.exit(1)
    succeed(verify(url, ledger), "verifying")
    return {"kills": kills, "stops": stops}


class Clock:
    """The clock of this process, which jumps by an hour to and fro: with ``monotonic`` once, every timer with it."""

    def __init__(self, told: Path, *, monotonic: bool) -> None:
        self._told = told
        self._jumps = 0
        wall, wall_ns, steady, real = time.time, time.time_ns, time.monotonic, datetime
        began = steady()

        def offset() -> int:
            self._jumps += 1
            if self._jumps == 20:
                self._told.write_text("moved")
            return (self._jumps // 7 % 3 - 1) * HOUR

        class Moved(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return real.now(tz) + timedelta(seconds=offset())

        time.time = lambda: wall() + offset()
        time.time_ns = lambda: wall_ns() + offset() * 1_000_000_000
        if monotonic:
            time.monotonic = lambda: steady() + (HOUR if steady() > began + 0.3 else 0)
        for module in list(sys.modules.values()):
            if getattr(module, "datetime", None) is real and module.__name__ != "datetime":
                module.datetime = Moved  # type: ignore[attr-defined]  # it has it


def clock(url: str, folder: Path, sagas: int, which: str) -> dict[str, Any]:
    """Two engines on one table; the clock of one is moved by an hour, again and again. The leases are long: what is
    claimed a second time was taken from a process that lived."""
    ledger, told = Ledger(folder / "ledger"), folder / "moved"
    succeed(prepare(url, ledger, sagas), "preparing")

    def move() -> None:
        Clock(told, monotonic=which == "monotonic")

    workers = [forked(work(url, ledger, lease=60.0), move), forked(work(url, ledger, lease=60.0))]
    codes = [ended(worker) for worker in workers]
    if any(codes):
        sys.exit(1)
    succeed(verify(url, ledger), "verifying")
    found = folder / "leases"

    async def count() -> None:
        database = Database(url, telemetry=Telemetry("bank"))
        failed = sa.select(sa.func.count()).where(
            saga_step.c.saga_id == saga_table.c.id, saga_step.c.status == "failed"
        )
        taken = sa.select(sa.func.count()).where(saga_table.c.epoch != 1 + failed.scalar_subquery())
        cut_off = sa.select(sa.func.count()).where(saga_step.c.status.in_(["timed-out", "lost"]))
        async with database.transaction(read_only=True) as tx:
            found.write_text(json.dumps({"taken": await tx.scalar(taken), "cut_off": await tx.scalar(cut_off)}))
        await database.close()

    succeed(count(), "counting")
    return {**json.loads(found.read_text()), "moved": told.exists()}


def damage(url: str, folder: Path, how: str) -> dict[str, Any]:
    """Three sagas as they should be, then an effect too few or too many: ``verify`` must see it."""
    ledger = Ledger(folder / "ledger")
    succeed(prepare(url, ledger, 3), "preparing")
    succeed(work(url, ledger), "the work")
    succeed(verify(url, ledger), "verifying")
    connection = ledger.open()
    if how == "lose":
        connection.execute("DELETE FROM booking WHERE what = 'book'")
    else:
        connection.execute(
            "INSERT INTO booking SELECT key || ':again', what, 0, 100 FROM booking WHERE what = 'reserve'"
        )
    connection.close()
    succeed(verify(url, ledger), "verifying")
    return {}


def main() -> None:
    url, folder, command, *numbers = sys.argv[1:]
    if command == "explore":
        result = explore(url, Path(folder))
    elif command == "storm":
        result = storm(url, Path(folder), *map(int, numbers))
    elif command == "clock":
        result = clock(url, Path(folder), int(numbers[0]), numbers[1])
    else:
        result = damage(url, Path(folder), command)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
