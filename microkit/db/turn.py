"""One migrates at a time: in this process, and among all on one database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from microkit.db.database import Database
from microkit.errors import ConfigurationError

PATIENCE: Final = 300.0
"""Seconds to wait for another process that migrates, or for those who use a table that is to be changed."""

# Alembic's `op` and `context` are of the whole process, so two migrations in it take turns.
_ALEMBIC: Final = threading.Lock()

# The key of PostgreSQL's advisory lock: "microkit" as a number.
_ADVISORY: Final = int.from_bytes(b"microkit")
_POLL: Final = 0.1  # seconds between two looks
_IN_SESSION: Final = text("SELECT pg_try_advisory_lock(:key)")
# Idle in it for as long as the scripts take, whatever the server allows others; no snapshot is held.
_IN_TRANSACTION: Final = text(
    "SELECT pg_try_advisory_xact_lock(:key) FROM set_config('idle_in_transaction_session_timeout', '0', true)"
)


@asynccontextmanager
async def alone(database: Database, patience: float = PATIENCE) -> AsyncIterator[AsyncEngine]:
    """An engine without time limits, while no other process migrates and nobody else in this one does.

    A process that is killed gives its turn back: PostgreSQL ends the session that held the lock, and SQLite's lock is
    the transaction. So it is behind a pooler, where a session is lent to others who would keep the lock, or take it a
    second time: one server connection stays in that transaction meanwhile, and another one works.

    Raises:
        ConfigurationError: another went on migrating for ``patience`` seconds.
    """
    ends = time.monotonic() + patience
    while not _ALEMBIC.acquire(blocking=False):  # a lock of the process, not of one loop
        if time.monotonic() > ends:
            raise ConfigurationError(
                f"another migration in this process has been under way for {patience:.0f} s: look whether it is stuck"
            )
        await asyncio.sleep(_POLL)
    try:
        async with database.administration(patience) as engine:
            if database.dialect == "postgresql":
                async with engine.connect() as keeper:
                    if database.pooled:
                        await _take_turn(keeper, patience, _IN_TRANSACTION)
                    else:
                        await _take_turn(await keeper.execution_options(isolation_level="AUTOCOMMIT"), patience)
                    yield engine
            else:
                yield engine
    finally:
        _ALEMBIC.release()


async def _take_turn(keeper: AsyncConnection, patience: float, ask: TextClause = _IN_SESSION) -> None:
    # Asked for again and again instead of waited for: a waiting statement holds a snapshot, and CREATE INDEX
    # CONCURRENTLY in the script of the one who has the lock would wait for it for ever.
    ends = time.monotonic() + patience
    while not await keeper.scalar(ask, {"key": _ADVISORY}):
        if time.monotonic() > ends:
            raise ConfigurationError(
                f"another process has been migrating this database for {patience:.0f} s ({await _holder(keeper)}): "
                "wait until it has ended, and look whether it is stuck"
            )
        await keeper.rollback()  # which sends nothing where there is no transaction
        await asyncio.sleep(_POLL)


async def _holder(keeper: AsyncConnection) -> str:
    found = await keeper.execute(
        text(
            "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.classid = :high AND l.objid = :low "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"high": _ADVISORY >> 32, "low": _ADVISORY & 0xFFFFFFFF},
    )
    row = found.first()
    return (
        "it has just ended" if row is None else f"{row.application_name or 'unnamed'}, process {row.pid} of the server"
    )
