"""SQLite through aiosqlite: one file a service, safe against kill -9 and against loss of power.

Write-ahead log, so that readers and the writer do not wait for each other; ``synchronous=FULL``, so that a commit is on
the disk; foreign keys enforced. One connection writes (its pool of one is the queue of writers, where SQLite itself
would have them poll), others read. Another process that writes the same file is waited for in short naps, which can be
cancelled.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_

from microkit.db import jsontext
from microkit.db.disposal import close_what_comes_late
from microkit.db.failure import TransactionAborted, is_busy
from microkit.db.limit import allowed
from microkit.db.one_trip import Held
from microkit.db.prepared import PreparedSelect
from microkit.db.shield import GRACE
from microkit.db.sqlite_connection import SqliteConnections
from microkit.db.sqlite_types import EXACT

# Seconds that SQLite's own busy handler may block its thread before the waiting is ours again.
_BUSY = 0.1
# Virtual machine steps between two looks at the clock: some milliseconds.
_STEPS = 50_000


class Stopwatch:
    """Interrupts the statements of one connection once ``until`` has passed, a reading of ``time.monotonic()``."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = float("inf")

    def __call__(self) -> bool:
        return time.monotonic() > self.until


def engine(
    url: URL, *, size: int, statement_timeout: float, patience: float | None, pragmas: Mapping[str, bool]
) -> AsyncEngine:
    """An engine that writes, and waits ``patience`` seconds for another process that does, or with ``None`` one that
    reads. ``pragmas`` are set on each connection besides the usual ones."""
    connections = SqliteConnections()
    made = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,  # also for a database in memory, which then lives in the one connection
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # what people typed does not belong into logs
        json_serializer=jsontext.dumps,
        json_deserializer=jsontext.loads,
        connect_args={"async_creator_fn": connections.connect, "isolation_level": None, "timeout": _BUSY},
    )
    dialect: Any = made.sync_engine.dialect
    dialect.colspecs = {**dialect.colspecs, **EXACT}
    # SQLAlchemy's own closes twice when it is cancelled meanwhile, and the second time waits for ever.
    dialect.do_terminate = lambda adapted: cut(adapted.driver_connection)
    _listen(made.sync_engine, statement_timeout, patience, pragmas)
    close_what_comes_late(made.sync_engine)
    # Whoever disposes of the engine may end the event loop next, for which a thread must not have an answer then.
    event.listen(made.sync_engine, "engine_disposed", lambda _: await_(connections.closed(GRACE)))
    return made


def cut(driver: Any) -> None:
    """Closes a connection in its thread, after what is queued there; nobody waits for it."""
    driver.stop()


class SqliteDriver:
    """How the pool treats aiosqlite's connections. Nothing is held: there are no round trips to save."""

    holds = False

    def cut(self, driver: Any) -> None:
        cut(driver)

    def lend(self, driver: Any, *, read_only: bool, held: Held | None) -> None: ...

    def send_held(self, connection: Connection, held: Held) -> None: ...

    def fetch_alone(
        self, connection: Connection, statement: PreparedSelect, values: Mapping[str, Any]
    ) -> Sequence[Any]:
        return statement.fetch(connection, values)


def _listen(sync: Engine, statement_timeout: float, patience: float | None, pragmas: Mapping[str, bool]) -> None:
    @event.listens_for(sync, "connect")
    def connected(adapted: Any, record: Any) -> None:
        stopwatch = record.info["stopwatch"] = Stopwatch()
        _set_up(adapted, stopwatch, pragmas)

    @event.listens_for(sync, "begin")
    def begin(connection: Connection) -> None:
        if patience is None:
            connection.exec_driver_sql("BEGIN")
        else:
            _begin_writing(connection, patience)
        connection.info["failed"] = False

    @event.listens_for(sync, "before_cursor_execute")
    def about_to_execute(connection: Connection, *_: object) -> None:
        connection.info["stopwatch"].until = time.monotonic() + allowed(statement_timeout)

    @event.listens_for(sync, "commit")
    def about_to_commit(connection: Connection) -> None:
        connection.info["stopwatch"].until = float("inf")
        if connection.info["failed"]:
            raise TransactionAborted

    event.listen(sync, "handle_error", _failed)


def _set_up(adapted: Any, stopwatch: Stopwatch, pragmas: Mapping[str, bool]) -> None:
    cursor = adapted.cursor()
    # Another process that opens the new file at the same moment makes the first of these fail, however long one waits
    # inside SQLite.
    for again in (True, True, False):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if not again or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            await_(asyncio.sleep(_BUSY))
    for pragma in ("synchronous=FULL", *(f"{name}={on:d}" for name, on in pragmas.items())):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    await_(adapted.driver_connection.set_progress_handler(stopwatch, _STEPS))


def _begin_writing(connection: Connection, patience: float) -> None:
    until = time.monotonic() + allowed(patience)
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            if not is_busy(error) or time.monotonic() >= until:
                raise
        else:
            return
        await_(asyncio.sleep(random.uniform(0.001, 0.02)))  # noqa: S311  spreads the waiters, no secret


def _failed(failure: ExceptionContext) -> None:
    connection = failure.connection
    if connection is None:
        return
    if isinstance(failure.original_exception, sqlite3.Error):
        # A savepoint takes the failure back; without one the transaction is spoiled, as it is on PostgreSQL.
        if not connection.in_nested_transaction():
            connection.info["failed"] = True
    elif not isinstance(failure.original_exception, Exception):
        # Cancelled. SQLAlchemy would drop the connection. But its statements queue in one thread: what comes next finds
        # this one ended, and the rollback that follows is all it takes.
        failure.is_disconnect = False
        connection.info["stopwatch"].until = float("-inf")
