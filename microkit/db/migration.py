"""Bringing a database's tables to the state that the program needs.

A service carries Alembic scripts in ``migrations/versions/*.py`` and nothing else; the environment is microkit's. The
tables of microkit itself (outbox, inbox, sagas, idempotency keys) have scripts of their own, in ``framework/``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from microkit.db.database import Database
from microkit.db.failure import DEADLOCK_DETECTED, is_busy, is_kept_waiting, sqlstate
from microkit.db.scripts import MICROKIT, Scripts, of_service, sets
from microkit.db.standing import current_of, standing
from microkit.db.turn import PATIENCE, alone
from microkit.errors import ConfigurationError

_ENVIRONMENT: Final = Path(__file__).parent / "environment"

# Who waits for a table's lock makes all wait who come after: a short time, and then again.
# Less than PostgreSQL's deadlock_timeout of one second: whoever we stand in a circle with is spared, not ended.
_LOCK_TIMEOUT: Final = 900  # milliseconds
_PAUSE: Final = 2.0  # seconds at most, in which they go through

_THERE_ALREADY: Final = ("42P07", "42701")  # PostgreSQL's words for a table or an index, and for a column


async def pending(database: Database, scripts: Path | None) -> list[str]:
    """The migrations that the database has not seen, oldest first: those of microkit, then those in ``scripts``.

    A database that a newer version of the program has migrated misses none: an old instance may run on while its
    successors start.

    Raises:
        ConfigurationError: ``scripts`` holds no migrations.
    """
    return (await standing(database, scripts)).pending


async def migrate(
    database: Database,
    scripts: Path | None,
    *,
    target: str = "head",
    patience: float = PATIENCE,
    forwards: bool = False,
) -> list[str]:
    """Runs the migrations that are missing and returns them as :func:`pending` does.

    ``target`` is a revision in ``scripts``, ``head``, ``base``, or steps such as ``-1``; microkit's own always go to
    their head. With ``forwards`` a target that lies behind the database is refused. On PostgreSQL each script is a
    transaction; on SQLite all of them are one. Several processes may do this at a time: one does it, the others wait,
    for ``patience`` seconds. A script that does not get a table's lock on PostgreSQL within a second is taken back and
    tried again, so that those who use the table are not held up.

    Raises:
        ConfigurationError: the scripts cannot be read, ``target`` is unknown, a newer program has migrated before, or
            another process, or those who use a table, did not let it in time.
    """
    every = sets(scripts)
    if target == "head":
        stands = await standing(database, scripts)
        if not stands.pending and not stands.newer:
            return []  # without having loaded Alembic
        for each in every:
            each.check_end()
    moved: list[str] = []
    async with alone(database, patience) as engine:
        for each in every:
            moved += await _move(engine, each, "head" if each is MICROKIT else target, patience, forwards=forwards)
    return moved


async def prepare(database: Database, scripts: Path | None, *, service: str, run: bool, logger: logging.Logger) -> None:
    """What a service does about its tables before it starts: with ``run`` it migrates.

    A database that a newer version has migrated is used as it is, and a line of the log says so.

    Raises:
        ConfigurationError: something is missing, or a newer version took a step that this one does not survive.
    """
    stands = await standing(database, scripts)
    said = stands.said(service)
    if stands.broken:
        raise ConfigurationError(str(said))
    if said is not None:
        logger.warning("%s", said)
    if not stands.pending:
        return
    if not run or stands.newer:
        raise ConfigurationError(
            f"the database of {service} misses {len(stands.pending)} migrations (the next: {stands.pending[0]}); "
            f"run `microkit migrate {service}` first"
        )
    try:
        await migrate(database, scripts)
    except ConfigurationError:
        stands = await standing(database, scripts)
        if not stands.newer or stands.broken or stands.pending:
            raise
        logger.warning("%s", stands.said(service))  # a newer version was quicker


@asynccontextmanager
async def moving(database: Database, scripts: Scripts) -> AsyncIterator[Callable[[str], Awaitable[list[str]]]]:
    """:func:`migrate` to one target after the other, for one set of scripts (microkit's own, for instance)."""
    async with alone(database) as engine:
        yield lambda target: _move(engine, scripts, target, PATIENCE)


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

    async with alone(database) as engine, engine.connect() as connection:
        return await connection.run_sync(differences, [tables] if isinstance(tables, MetaData) else list(tables))


async def revise(database: Database, scripts: Path, tables: MetaData, message: str) -> Path:
    """Writes a new script into ``scripts`` that makes the tables in the database what ``tables`` says.

    It is a draft: read it, and see to the rows that are there.

    Raises:
        ConfigurationError: the database has not seen all scripts there are.
    """
    from microkit.db.alembic_calls import new_script  # noqa: PLC0415  as above

    (scripts / "versions").mkdir(parents=True, exist_ok=True)
    each = of_service(scripts)
    async with alone(database) as engine, engine.connect() as connection:
        return await connection.run_sync(new_script, _ENVIRONMENT, each, tables, message)


def sql(scripts: Path | None, dialect: str, current: dict[str, set[str]]) -> str:
    """What :func:`migrate` would do to a database at ``current`` (see :class:`Standing`), as SQL for another's hands.

    Raises:
        ConfigurationError: a script reads rows, or needs the tables, and cannot be written out.
    """
    from microkit.db.alembic_calls import written_out  # noqa: PLC0415  as above

    parts = []
    for each in sets(scripts):
        at = current.get(each.version_table, set())
        each.check_end()
        if each.missing(at):
            parts.append(f"-- {each.owner}\n\n{written_out(_ENVIRONMENT, each, dialect, at)}")
    return "\n".join(parts)


async def _move(
    engine: AsyncEngine, scripts: Scripts, target: str, patience: float, *, forwards: bool = False
) -> list[str]:
    async with engine.connect() as connection:
        try:
            current = (await connection.run_sync(current_of, [scripts]))[scripts.version_table]
        except DBAPIError as error:
            _refuse_busy(error, patience)
            raise
        if strangers := current - set(scripts.parents):
            raise ConfigurationError(
                f"the database is at {', '.join(sorted(strangers))}, which {scripts.owner} does not know: "
                "a newer version of the program has migrated it"
            )
        if forwards and scripts.behind(current, target):
            raise ConfigurationError(
                f"{target} is behind the database, which is at {', '.join(sorted(current)) or 'base'}: "
                f"`microkit migrate down {scripts.owner} --to {target}` says what going back there loses"
            )
        await connection.rollback()
        if connection.dialect.name == "sqlite":
            await _move_file(connection, scripts, current, target, patience)
        else:
            await _move_server(connection, scripts, scripts.resolved(current, target), patience)
        after = (await connection.run_sync(current_of, [scripts]))[scripts.version_table]
    before, now = scripts.reached(current), scripts.reached(after)
    ordered = scripts.missing(set())
    return [f"{scripts.owner} {revision}" for revision in ordered if revision in before ^ now]


async def _move_file(
    connection: AsyncConnection, scripts: Scripts, current: set[str], target: str, patience: float
) -> None:
    from microkit.db.alembic_calls import move as run  # noqa: PLC0415  as above

    try:
        async with connection.begin():
            await connection.run_sync(run, _ENVIRONMENT, scripts, current, target)
    except DBAPIError as error:
        _refuse_busy(error, patience)
        raise


def _refuse_busy(error: DBAPIError, patience: float) -> None:
    if is_busy(error):
        raise ConfigurationError(
            f"another process has been writing to this database file for {patience:.0f} s: see that it ends, or wait"
        ) from error


async def _move_server(connection: AsyncConnection, scripts: Scripts, target: str, patience: float) -> None:
    from microkit.db.alembic_calls import move as run  # noqa: PLC0415  as above

    if not isinstance(connection.engine.pool, NullPool):  # a pooler would pass it on to others
        await _end_with_us(connection)
    event.listen(connection.sync_connection, "begin", _bound_waits)
    ends = time.monotonic() + patience
    while True:
        current = (await connection.run_sync(current_of, [scripts]))[scripts.version_table]
        await connection.rollback()
        try:
            await connection.run_sync(run, _ENVIRONMENT, scripts, current, target)
        except DBAPIError as error:
            await connection.rollback()
            if sqlstate(error) in _THERE_ALREADY:
                raise ConfigurationError(
                    f"the migrations of {scripts.owner} make what is there already: {error.orig}. One that was broken "
                    "off outside of its transaction (autocommit_block) leaves what it had made, such as an index that "
                    "is INVALID: drop that, and migrate again"
                ) from error
            if not is_kept_waiting(error) and sqlstate(error) != DEADLOCK_DETECTED:
                raise
            if time.monotonic() > ends:
                raise ConfigurationError(
                    f"the migrations of {scripts.owner} did not get a table's lock in {patience:.0f} s: its users keep "
                    "it. See who does in pg_stat_activity or `microkit pool`. The script that waited is taken back"
                ) from error
        else:
            return
        await asyncio.sleep(random.uniform(0, _PAUSE))  # noqa: S311  no secret


def _bound_waits(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT}")


async def _end_with_us(connection: AsyncConnection) -> None:
    """Lets the server notice in the middle of a statement that this process was killed."""
    try:
        await connection.execute(text("SET client_connection_check_interval = '1s'"))
        await connection.commit()
    except DBAPIError:  # the server's system cannot tell; it then notices after the statement
        await connection.rollback()
