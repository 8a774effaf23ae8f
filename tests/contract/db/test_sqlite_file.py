"""SQLite's file between processes: other writers, kill -9."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from microkit.context import deadline_within
from microkit.db import Database, DatabaseUnavailable, Transaction
from microkit.errors import DeadlineExceeded
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


class OtherProcess:
    """Has the write lock, as another process would, until it is told to let go."""

    def __init__(self, file: Path) -> None:
        self.taken, self.let_go = threading.Event(), threading.Event()
        self._file = file
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        connection = sqlite3.connect(self._file, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        self.taken.set()
        self.let_go.wait()
        connection.execute("ROLLBACK")
        connection.close()

    def __enter__(self) -> OtherProcess:
        self._thread.start()
        self.taken.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._thread.join()


async def insert(tx: Transaction) -> None:
    await tx.execute(text("INSERT INTO coin (name) VALUES ('x')"))


@pytest.fixture
async def database(file: Path, telemetry: Telemetry) -> Database:
    database = Database(f"sqlite+aiosqlite:///{file}", telemetry=telemetry, pool_timeout=0.2)
    async with database.transaction() as tx:
        await tx.execute(text("CREATE TABLE coin (id INTEGER PRIMARY KEY, name TEXT)"))
    return database


async def test_a_writer_waits_for_another_process(database: Database, file: Path) -> None:
    with OtherProcess(file) as other:
        asyncio.get_running_loop().call_later(0.15, other.let_go.set)
        await database.run(insert)
    await database.close()


async def test_a_lock_that_stays_makes_the_database_unavailable_and_a_deadline_ends_the_wait(
    database: Database, file: Path
) -> None:
    with OtherProcess(file):
        with pytest.raises(DatabaseUnavailable, match="locked"):
            await database.run(insert, attempts=2)
        with pytest.raises((DeadlineExceeded, DatabaseUnavailable)), deadline_within(0.05):
            await database.run(insert)
        async with database.transaction(read_only=True) as tx:
            assert await tx.scalar(text("SELECT count(*) FROM coin")) == 0
        task = asyncio.create_task(database.run(insert))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await database.run(insert)
    assert database._writers.used == 0
    await database.close()


WRITER = """
import asyncio, sys
from sqlalchemy import text
from microkit.db import Database
from microkit.telemetry import Telemetry

async def main(url):
    database = Database(url, telemetry=Telemetry("child"))
    for number in range(1, 1_000_000):
        async with database.transaction() as tx:
            await tx.execute(text("INSERT INTO coin (id, name) VALUES (:id, 'row')"), {"id": number})
            await tx.execute(text("INSERT INTO coin (id, name) VALUES (:id, 'event')"), {"id": -number})
        print(number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_what_was_committed_survives_kill_9_and_nothing_by_halves(database: Database, file: Path) -> None:
    for wanted in (1, 5, 20):
        async with database.transaction() as tx:
            await tx.execute(text("DELETE FROM coin"))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, f"sqlite+aiosqlite:///{file}", stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        confirmed = 0
        while confirmed < wanted:
            confirmed = int(await child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = (await child.stdout.read()).split()
        await child.wait()
        confirmed = int(rest[-1]) if rest else confirmed
        async with database.transaction() as tx:
            rows = await tx.scalar(text("SELECT count(*) FROM coin WHERE id > 0"))
            events = await tx.scalar(text("SELECT count(*) FROM coin WHERE id < 0"))
            assert await tx.scalar(text("PRAGMA integrity_check")) == "ok"
        assert rows == events
        assert confirmed <= rows <= confirmed + 1
    await database.close()
