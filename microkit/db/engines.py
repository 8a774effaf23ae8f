"""From a URL to engines: which database, which driver, which pools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from microkit.db.options import DEFAULT, PoolOptions
from microkit.db.pool import Driver
from microkit.db.transaction import Dialect
from microkit.errors import ConfigurationError, MissingExtra
from microkit.redaction import redact_text

_EXAMPLES = "sqlite+aiosqlite:///billing.db or postgresql+asyncpg://user:password@host:5432/billing"


@dataclass(frozen=True, slots=True)
class Engines:
    """``write`` and ``read`` are one and the same where the database needs no two. ``writers`` may write at a time.

    ``where`` is the URL without its password, for messages. ``connect`` opens a connection of the driver's own, in no
    pool, to hear other processes on.
    """

    dialect: Dialect
    write: AsyncEngine
    read: AsyncEngine
    writers: int
    driver: Driver
    where: str
    file: Path | None = None
    connect: Callable[[], Awaitable[Any]] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """``size`` connections at most, of which PostgreSQL's ``overflow`` are closed again when the load is over; seconds
    for a statement, for SQLite's writer to wait for another process, and to open a connection to PostgreSQL."""

    size: int
    statement_timeout: float
    patience: float
    connect_timeout: float = 10.0
    overflow: int = 0


def make(
    url: str, limits: Limits, *, application: str, foreign_keys: bool = True, options: PoolOptions = DEFAULT
) -> Engines:
    """Makes the engines; nothing is opened yet. ``application`` is the name by which PostgreSQL's views know us.

    Raises:
        ConfigurationError: the URL names no database we know.
        MissingExtra: the driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL cannot be read; it looks like {_EXAMPLES}") from None
    match parsed.drivername:
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return _postgresql(parsed.set(drivername="postgresql+asyncpg"), limits, application, options)
        case "sqlite" | "sqlite+aiosqlite":
            return _sqlite(parsed.set(drivername="sqlite+aiosqlite"), limits, foreign_keys)
    raise ConfigurationError(f"no database is known as {parsed.drivername!r}; write {_EXAMPLES}")


def _postgresql(url: URL, limits: Limits, application: str, options: PoolOptions) -> Engines:
    try:
        from microkit.db import postgresql  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "asyncpg":
            raise MissingExtra("PostgreSQL", "postgres") from error
        raise
    engine = postgresql.engine(
        url,
        size=limits.size,
        overflow=limits.overflow,
        statement_timeout=limits.statement_timeout,
        connect_timeout=limits.connect_timeout,
        application=application,
        options=options,
    )
    if options.pgbouncer:  # it passes no notices on
        return Engines("postgresql", engine, engine, limits.size, postgresql.BouncerDriver(), _where(url))
    connect = partial(postgresql.connect_alone, engine, application)
    driver = postgresql.PostgresDriver()
    return Engines("postgresql", engine, engine, limits.size, driver, _where(url), connect=connect)


def _sqlite(url: URL, limits: Limits, foreign_keys: bool) -> Engines:
    from microkit.db import sqlite  # noqa: PLC0415  a driver that is not used is not loaded

    write = sqlite.engine(
        url,
        size=1,
        statement_timeout=limits.statement_timeout,
        patience=limits.patience,
        pragmas={"foreign_keys": foreign_keys},
    )
    if url.database in (None, "", ":memory:"):  # it lives inside its one connection
        return Engines("sqlite", write, write, 1, sqlite.SqliteDriver(), _where(url))
    read = sqlite.engine(
        url, size=limits.size, statement_timeout=limits.statement_timeout, patience=None, pragmas={"query_only": True}
    )
    return Engines("sqlite", write, read, 1, sqlite.SqliteDriver(), _where(url), file=Path(str(url.database)))


def _where(url: URL) -> str:
    return redact_text(url.render_as_string(hide_password=True))  # it may be in the query as well
