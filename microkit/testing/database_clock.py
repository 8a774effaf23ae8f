"""The clocks of SQLite and PostgreSQL in virtual time.

SQLite lets a connection give its functions of time another meaning. PostgreSQL looks its functions up along the search
path: a schema before ``pg_catalog`` offers a ``clock_timestamp()`` of its own, which adds a setting of the session.
Either way statements say what they say in production.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from unittest import mock

from sqlalchemy.util import await_

_SCHEMA: Final = "microkit_virtual_time"
_SKIPPED: Final = "microkit.skipped_seconds"

_FUNCTIONS: Final = ("strftime", "datetime", "date", "time", "julianday", "unixepoch")
# CURRENT_TIMESTAMP and its like are functions too, by these names, without arguments.
_CURRENT: Final = {"current_timestamp": "datetime", "current_date": "date", "current_time": "time"}

_POSTGRESQL: Final = f"""
DO $$ BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('{_SCHEMA}'));
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{_SCHEMA}') THEN
    CREATE SCHEMA {_SCHEMA};
    CREATE FUNCTION {_SCHEMA}.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
      'SELECT pg_catalog.clock_timestamp()
         + make_interval(secs => coalesce(current_setting(''{_SKIPPED}'', true), ''0'')::float)';
    CREATE FUNCTION {_SCHEMA}.now() RETURNS timestamptz LANGUAGE sql STABLE AS
      'SELECT pg_catalog.now()
         + make_interval(secs => coalesce(current_setting(''{_SKIPPED}'', true), ''0'')::float)';
  END IF;
END $$;
SET search_path = "$user", public, {_SCHEMA}, pg_catalog;
"""


def prepare(connection: Any) -> None:
    """Makes a new connection ask our clock; called inside SQLAlchemy's greenlet, as the event ``connect`` does."""
    if _is_sqlite(connection):
        _prepare_sqlite(connection)
    else:
        await_(connection.driver_connection.execute(_POSTGRESQL))


def bring_to(connection: Any, info: MutableMapping[Any, Any], skipped: float) -> None:
    """Tells a connection that is about to be used how many seconds were skipped; inside SQLAlchemy's greenlet."""
    if _is_sqlite(connection) or info.get(_SKIPPED, 0.0) == skipped:
        return  # SQLite's functions run in this process, and look for themselves
    await_(connection.driver_connection.execute(f"SET {_SKIPPED} = '{skipped!r}'"))
    info[_SKIPPED] = skipped


@contextmanager
def alone(begin: Callable[[object], None], end: Callable[[object], None]) -> Iterator[None]:
    """Tells of the work of asyncpg's connections that are in no pool: those that hear other processes."""
    try:
        import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415  an extra, of no known type
    except ImportError:
        yield
        return

    def told(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def _call(*arguments: Any, **options: Any) -> Any:
            worker = object()
            begin(worker)
            try:
                return await function(*arguments, **options)
            finally:
                end(worker)

        return _call

    with ExitStack() as stack:
        for owner, names in ((asyncpg, ["connect"]), (asyncpg.Connection, ["execute", "add_listener", "close"])):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, told(getattr(owner, name))))
        yield


def _is_sqlite(connection: Any) -> bool:
    return hasattr(connection, "create_function")


def _prepare_sqlite(connection: Any) -> None:
    for name in _FUNCTIONS:
        connection.create_function(name, -1, partial(_computed, name))
    for name, function in _CURRENT.items():
        connection.create_function(name, 0, partial(_computed, function))


def _computed(function: str, *arguments: Any) -> Any:
    head, rest = (arguments[:1], arguments[1:]) if function == "strftime" else ((), arguments)
    if not rest or (isinstance(rest[0], str) and rest[0].lower() == "now"):
        rest = (_now(), *rest[1:])
    places = ", ".join("?" * (len(head) + len(rest)))
    # Another connection computes, for there the functions still mean what they mean everywhere. It is closed at once:
    # nobody tells of the end of the one that asks, and Python 3.13 warns of those that are left open.
    with closing(sqlite3.connect(":memory:")) as real:
        return real.execute(f"SELECT {function}({places})", (*head, *rest)).fetchone()[0]


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
