"""SQLite through aiosqlite: one file a service, safe against kill -9 and against loss of power.

Write-ahead log, so that readers and the writer do not wait for each other; ``synchronous=FULL``, so that a commit is on
the disk; foreign keys enforced. One connection writes (its pool of one is the queue of writers, where SQLite itself
would have them poll), others read. Another process that writes the same file is waited for in short naps, which can be
cancelled.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import await_

from microkit.db import jsontext
from microkit.db.failure import is_busy
from microkit.db.limit import allowed
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
    url: URL, *, size: int, statement_timeout: float, patience: float, writes: bool, pragmas: Mapping[str, bool]
) -> AsyncEngine:
    """An engine that writes or one that reads. ``pragmas`` are set on each connection besides the usual ones."""
    made = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,  # also for a database in memory, which then lives in the one connection
        pool_size=size,
        max_overflow=0,
        json_serializer=jsontext.dumps,
        json_deserializer=jsontext.loads,
        connect_args={"isolation_level": None, "timeout": _BUSY},
    )
    sync = made.sync_engine
    sync.dialect.colspecs = {**sync.dialect.colspecs, **EXACT}

    @event.listens_for(sync, "connect")
    def connected(adapted: Any, record: Any) -> None:
        cursor = adapted.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", *(f"{name}={on:d}" for name, on in pragmas.items())):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        stopwatch = record.info["stopwatch"] = Stopwatch()
        await_(adapted.driver_connection.set_progress_handler(stopwatch, _STEPS))

    @event.listens_for(sync, "begin")
    def begin(connection: Connection) -> None:
        if writes:
            _begin_writing(connection, patience)
        else:
            connection.exec_driver_sql("BEGIN")

    @event.listens_for(sync, "before_cursor_execute")
    def about_to_execute(connection: Connection, *_: object) -> None:
        connection.info["stopwatch"].until = time.monotonic() + allowed(statement_timeout)

    @event.listens_for(sync, "commit")
    def about_to_commit(connection: Connection) -> None:
        connection.info["stopwatch"].until = float("inf")

    return made


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
