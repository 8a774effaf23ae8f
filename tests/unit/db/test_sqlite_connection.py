"""The threads of SQLite's connections end, and close their files, however the work and the loop end."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from microkit.db import Database
from microkit.db import sqlite_connection as module
from microkit.db.sqlite_connection import SqliteConnection, SqliteConnections
from microkit.telemetry import Telemetry


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SqliteConnection]]:
    """Every connection; at the end each has let go of its file, and no thread has complained."""
    complaints: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    found: list[SqliteConnection] = []

    class Noted(SqliteConnection):
        def __init__(self, path: str, options: Mapping[str, Any]) -> None:
            super().__init__(path, options)
            found.append(self)

    monkeypatch.setattr(module, "SqliteConnection", Noted)
    yield found
    for each in found:
        if each._thread.ident is not None:
            each._thread.join(60)
        assert not each._thread.is_alive()
        assert each._file is None
    assert complaints == []


def busy(connection: SqliteConnection, until: threading.Event) -> None:
    """Gives the connection a statement that lasts until then, with somebody who waits for its result."""
    connection._tx.put_nowait((asyncio.get_running_loop().create_future(), lambda: until.wait(60)))


def test_a_connection_that_is_cut_closes_even_if_its_loop_ends_first(made: list[SqliteConnection]) -> None:
    loop_has_ended = threading.Event()

    async def leave() -> None:
        connection = await SqliteConnections().connect(":memory:")
        busy(connection, loop_has_ended)
        connection.stop()

    asyncio.run(leave())
    loop_has_ended.set()


def test_one_whose_opening_is_cancelled_closes_even_if_its_loop_ends_first(made: list[SqliteConnection]) -> None:
    loop_has_ended = threading.Event()

    async def leave() -> None:
        opening = asyncio.ensure_future(SqliteConnections().connect(":memory:"))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})

    opened = sqlite3.connect

    def slowly(*args: Any, **options: Any) -> sqlite3.Connection:
        loop_has_ended.wait(60)
        connection: sqlite3.Connection = opened(*args, **options)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", slowly)
        asyncio.run(leave())
        loop_has_ended.set()
        made[0]._thread.join(60)


def test_to_stop_twice_and_to_close_then_waits_for_nothing(made: list[SqliteConnection]) -> None:
    async def stop() -> None:
        connection = await SqliteConnections().connect(":memory:")
        async with asyncio.timeout(60):
            stopped = connection.stop()
            assert stopped is not None
            await stopped
            assert connection.stop() is None
            await connection.close()

    asyncio.run(stop())


def test_the_error_of_an_opening_ends_the_thread(made: list[SqliteConnection], tmp_path: Path) -> None:
    async def fail() -> None:
        with pytest.raises(sqlite3.OperationalError):
            await SqliteConnections().connect(str(tmp_path / "no" / "such" / "folder.db"))

    asyncio.run(fail())


def database(folder: Path) -> Database:
    return Database(f"sqlite+aiosqlite:///{folder / 'test.db'}", telemetry=Telemetry("test"))


def test_a_start_that_is_cancelled_anywhere_leaves_nothing_open_behind_close(
    made: list[SqliteConnection], tmp_path: Path
) -> None:
    async def start(steps: int) -> bool:
        opened = database(tmp_path)
        starting = asyncio.ensure_future(opened.start())
        for _ in range(steps):
            await asyncio.sleep(0 if steps % 2 else 0.0005)
        cancelled = starting.cancel()
        await asyncio.wait({starting})
        await opened.close()
        assert not any(each._thread.is_alive() for each in made)
        return cancelled

    steps = 0
    while asyncio.run(start(steps)):
        steps += 1
    assert steps > 3
    gc.collect()  # what was not closed complains


def test_what_is_given_back_after_the_close_is_closed(made: list[SqliteConnection], tmp_path: Path) -> None:
    async def work() -> None:
        opened = database(tmp_path)
        await opened.start()
        async with opened.transaction() as writing, opened.transaction(read_only=True) as reading:
            for tx in (writing, reading):
                await tx.execute(text("SELECT 1"))
            await opened.close()
            assert any(each._thread.is_alive() for each in made)
            await writing.execute(text("SELECT 1"))
        async with asyncio.timeout(60):
            while any(each._thread.is_alive() for each in made):
                await asyncio.sleep(0.001)

    asyncio.run(work())


def test_a_close_that_is_cancelled_closes_all_the_same(made: list[SqliteConnection], tmp_path: Path) -> None:
    async def work() -> None:
        opened = database(tmp_path)
        await opened.start()
        closing = asyncio.ensure_future(opened.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        assert not any(each._thread.is_alive() for each in made)

    asyncio.run(work())
