"""Bringing a database's tables to the state that the program needs.

A service carries Alembic scripts in ``migrations/versions/*.py`` and nothing else; the environment is microkit's. The
tables of microkit itself (outbox, inbox, sagas, idempotency keys) have scripts of their own, in ``framework/``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from microkit.db.database import Database
from microkit.db.scripts import FRAMEWORK, Scripts
from microkit.errors import ConfigurationError

_ENVIRONMENT: Final = Path(__file__).parent / "environment"
_FRAMEWORK: Final = Scripts(FRAMEWORK, "microkit_version", "microkit")

# Alembic's `op` and `context` are of the whole process, so two migrations in it take turns.
_ALEMBIC: Final = threading.Lock()

# The key of PostgreSQL's advisory lock: "microkit" as a number.
_ADVISORY: Final = int.from_bytes(b"microkit")
# Seconds to wait for another process that migrates, and between two looks.
_PATIENCE: Final = 300.0
_POLL: Final = 0.1


async def pending(database: Database, scripts: Path | None) -> list[str]:
    """The migrations that the database has not seen, oldest first: those of microkit, then those in ``scripts``.

    A database that a newer version of the program has migrated misses none: an old instance may run on while its
    successors start.

    Raises:
        ConfigurationError: ``scripts`` holds no migrations.
    """
    missing, _ = await _compared(database, _sets(scripts))
    return missing


async def migrate(database: Database, scripts: Path | None, *, target: str = "head") -> list[str]:
    """Runs the migrations that are missing and returns them as :func:`pending` does.

    ``target`` is a revision in ``scripts``, ``head``, ``base``, or steps such as ``-1``; microkit's own always go to
    their head. On PostgreSQL each script is a transaction; on SQLite all of them are one. Several processes may do this
    at a time: one does it, the others wait.

    Raises:
        ConfigurationError: the scripts cannot be read, ``target`` is unknown, or a newer program has migrated before.
    """
    sets = _sets(scripts)
    if target == "head" and await _compared(database, sets) == ([], set()):
        return []  # without having loaded Alembic
    moved: list[str] = []
    async with _alone(database) as engine:
        for each in sets:
            moved += await _move(engine, each, "head" if each is _FRAMEWORK else target)
    return moved


async def create_tables(database: Database, tables: MetaData | Sequence[MetaData]) -> None:
    """Creates the tables that are missing; for tests, and for services in development that have no scripts yet.

    It never changes a table that exists.
    """
    async with database.engine.begin() as connection:
        for metadata in [tables] if isinstance(tables, MetaData) else tables:
            await connection.run_sync(metadata.create_all)


async def drift(database: Database, tables: MetaData | Sequence[MetaData]) -> list[str]:
    """How the tables in the database differ from ``tables``, a line each: what a new script would have to do.

    Tables that ``tables`` does not know are left out of account. For the test that each service should have.
    """
    from microkit.db.alembic_calls import differences  # noqa: PLC0415  Alembic takes longer to load than all of microkit

    async with _alone(database) as engine, engine.connect() as connection:
        return await connection.run_sync(differences, [tables] if isinstance(tables, MetaData) else list(tables))


async def revise(database: Database, scripts: Path, tables: MetaData, message: str) -> Path:
    """Writes a new script into ``scripts`` that makes the tables in the database what ``tables`` says.

    It is a draft: read it, and see to the rows that are there.

    Raises:
        ConfigurationError: the database has not seen all scripts there are.
    """
    from microkit.db.alembic_calls import new_script  # noqa: PLC0415  as above

    (scripts / "versions").mkdir(parents=True, exist_ok=True)
    each = _of_service(scripts)
    async with _alone(database) as engine, engine.connect() as connection:
        return await connection.run_sync(new_script, _ENVIRONMENT, each, tables, message)


def _of_service(scripts: Path) -> Scripts:
    return Scripts(scripts, "schema_version", scripts.resolve().parent.name)


def _sets(scripts: Path | None) -> list[Scripts]:
    return [_FRAMEWORK] if scripts is None else [_FRAMEWORK, _of_service(scripts)]


def _current(connection: Connection, sets: Sequence[Scripts]) -> dict[str, set[str]]:
    there = inspect(connection)
    return {
        each.version_table: set(connection.scalars(text(f"SELECT version_num FROM {each.version_table}")))  # noqa: S608  a name of ours
        if there.has_table(each.version_table)
        else set()
        for each in sets
    }


async def _compared(database: Database, sets: Sequence[Scripts]) -> tuple[list[str], set[str]]:
    """What the database has not seen, and what it has seen that we do not know."""
    async with database.engine.connect() as connection:
        current = await connection.run_sync(_current, sets)
    missing = [f"{each.owner} {revision}" for each in sets for revision in each.missing(current[each.version_table])]
    return missing, {revision for each in sets for revision in current[each.version_table] - set(each.parents)}


async def _move(engine: AsyncEngine, scripts: Scripts, target: str) -> list[str]:
    from microkit.db.alembic_calls import move  # noqa: PLC0415  as above

    async with engine.connect() as connection:
        current = (await connection.run_sync(_current, [scripts]))[scripts.version_table]
        if strangers := current - set(scripts.parents):
            raise ConfigurationError(
                f"the database is at {', '.join(sorted(strangers))}, which {scripts.owner} does not know: "
                "a newer version of the program has migrated it"
            )
        await connection.rollback()
        if connection.dialect.name == "sqlite":
            async with connection.begin():
                await connection.run_sync(move, _ENVIRONMENT, scripts, current, target)
        else:
            await connection.run_sync(move, _ENVIRONMENT, scripts, current, target)
        after = (await connection.run_sync(_current, [scripts]))[scripts.version_table]
    before, now = scripts.reached(current), scripts.reached(after)
    ordered = scripts.missing(set())
    return [f"{scripts.owner} {revision}" for revision in ordered if revision in before ^ now]


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[AsyncEngine]:
    """An engine without time limits, while no other process migrates and nobody else in this one does."""
    while not _ALEMBIC.acquire(blocking=False):  # noqa: ASYNC110  a lock of the process, not of one loop
        await asyncio.sleep(_POLL)
    try:
        async with database.administration(_PATIENCE) as engine:
            if database.dialect == "postgresql":
                async with engine.connect() as keeper:
                    await _take_turn(await keeper.execution_options(isolation_level="AUTOCOMMIT"))
                    yield engine
            else:
                yield engine
    finally:
        _ALEMBIC.release()


async def _take_turn(keeper: AsyncConnection) -> None:
    # Asked for again and again instead of waited for: a waiting statement holds a snapshot, and CREATE INDEX
    # CONCURRENTLY in the script of the one who has the lock would wait for it for ever.
    tries = int(_PATIENCE / _POLL)
    for _ in range(tries):
        if await keeper.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY}):
            return
        await asyncio.sleep(_POLL)
    raise ConfigurationError(f"another process has been migrating this database for {_PATIENCE:.0f} s")
