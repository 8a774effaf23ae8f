"""A PostgreSQL server on which each service of a system has a database: for development, as ``microkit up`` does it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from microkit.db import engines
from microkit.db.opening import said_of_opening
from microkit.db.shield import finish
from microkit.errors import ConfigurationError
from microkit.redaction import redact_text

_EXAMPLE: Final = "postgresql://user:password@localhost:5432"
_LONGEST_NAME: Final = 63
_NOT_ALLOWED: Final = "42501"
_LIMITS: Final = engines.Limits(size=1, statement_timeout=60.0, patience=5.0)


class DatabaseServer:
    """A server by its URL. A database that the URL names is where one connects to make the others (``postgres``).

    Raises:
        ConfigurationError: the URL is not PostgreSQL's.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise ConfigurationError(f"the URL of the database server cannot be read: {_EXAMPLE}") from None
        if parsed.drivername not in {"postgresql", "postgres", "postgresql+asyncpg"}:
            raise ConfigurationError(
                f"a database for each service is made on PostgreSQL, not on {parsed.drivername!r}: {_EXAMPLE}. Files "
                "of SQLite lie in the folder without being asked for"
            )
        self._url = parsed.set(drivername="postgresql+asyncpg", database=parsed.database or "postgres")

    def url(self, *words: str) -> str:
        """Of the database named after ``words``: the system and the service, say.

        Raises:
            ConfigurationError: PostgreSQL would cut the name off.
        """
        name = "_".join(re.sub(r"[^a-z0-9]+", "_", word.lower()) for word in words)
        if len(name) > _LONGEST_NAME:
            raise ConfigurationError(f"the database {name} would have a longer name than PostgreSQL's 63 characters")
        return _plain(self._url.set(database=name))

    async def make(self, urls: Collection[str]) -> None:
        """Makes those of the databases at ``urls`` that are not there.

        Raises:
            ConfigurationError: the server cannot be reached, or lets us make none.
            MissingExtra: its driver is not installed.
        """
        engine = engines.make(_plain(self._url), _LIMITS, application="microkit").write
        try:
            async with engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                there = set(await connection.scalars(text("SELECT datname FROM pg_database")))
                for name in sorted({str(make_url(url).database) for url in urls} - there):
                    await _create(connection, name)
        except (DBAPIError, OSError) as error:
            raise ConfigurationError(
                f"no databases can be made at {redact_text(self._url.render_as_string())}: {_why(error)}"
            ) from error
        finally:
            await finish(engine.dispose())


def _why(error: DBAPIError | OSError) -> str:
    if getattr(getattr(error, "orig", None), "sqlstate", None) == _NOT_ALLOWED:
        return "this user may create none: grant it CREATEDB, or name another user in the URL"
    return said_of_opening(error)


async def _create(connection: AsyncConnection, name: str) -> None:
    try:
        await connection.execute(text(f'CREATE DATABASE "{name}"'))
    except DBAPIError as error:
        # Two that start at once both find it missing: unique_violation, duplicate_database.
        if getattr(error.orig, "sqlstate", None) not in {"23505", "42P04"}:
            raise


def _plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)
