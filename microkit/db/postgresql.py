"""PostgreSQL through asyncpg.

SQLAlchemy's dialect begins a transaction with the first statement. It is given a connection class of our own, whose
BEGIN carries the statement time-out along, so that this costs no round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import URL, Connection, Dialect, ExceptionContext, event, types
from sqlalchemy.dialects.postgresql.asyncpg import AsyncpgDateTime
from sqlalchemy.exc import InvalidatePoolError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_

from microkit.db import jsontext
from microkit.db.disposal import close_what_comes_late
from microkit.db.failure import CommitUnknown, DatabaseUnavailable, TransactionAborted, wrapped
from microkit.db.limit import allowed
from microkit.db.one_trip import Held
from microkit.db.options import PoolOptions
from microkit.db.parameters import for_driver
from microkit.db.prepared import PreparedSelect
from microkit.db.zones import checked

_BEGIN = "BEGIN"
_BEGIN_READ_ONLY = "BEGIN READ ONLY"

# A time-out is set again when the time left has fallen below this share of it.
_SHARE = 0.8
# Seconds after which a server that should long have stopped the statement itself is taken for gone.
_SILENCE = 5.0
# Seconds to open a connection.
_CONNECT_TIMEOUT = 10.0
# Seconds for what SQLAlchemy asks a new connection, before the setting is known to it.
_FIRST_TIMEOUT = 10.0
_PARAMETERS = frozenset(signature(asyncpg.connect).parameters)


class _DateTime(AsyncpgDateTime):
    """asyncpg would take a time without a zone for one of the machine's zone."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        aware = self.timezone

        def check(value: Any) -> Any:
            return checked(value, aware=aware)

        return check


class _Unit:
    """What SQLAlchemy's dialect uses of asyncpg's ``Transaction``."""

    __slots__ = ("_connection", "_isolation")

    def __init__(self, connection: PostgresConnection, isolation: str | None) -> None:
        self._connection = connection
        self._isolation = isolation

    async def start(self) -> None:
        connection = self._connection
        seconds = allowed(connection.statement_timeout)
        begin = connection.opening
        if self._isolation:
            begin = f"{begin} ISOLATION LEVEL {self._isolation.replace('_', ' ')}"
        await connection.execute(f"{begin};SET LOCAL statement_timeout={_milliseconds(seconds)}")
        connection.timeout_set = seconds

    async def commit(self) -> None:
        if await self._connection.execute("COMMIT") == "ROLLBACK":
            raise TransactionAborted

    async def rollback(self) -> None:
        if self._connection.is_closed():
            return
        try:
            await self._connection.execute("ROLLBACK")
        except asyncpg.InternalClientError:
            # The server ended the session while a statement was being prepared, which asyncpg still waits for the end
            # of: nothing is left to roll back, and what ended the transaction says more.
            self._connection.terminate()


class PostgresConnection(asyncpg.Connection):  # type: ignore[misc]  # of no known type
    """``opening`` is the next BEGIN, ``held`` what waits for COMMIT. In seconds: ``statement_timeout`` is the longest
    time-out, ``timeout_set`` the one of the transaction, ``timeout_outside`` the one of statements outside of any."""

    __slots__ = ("held", "opening", "statement_timeout", "timeout_outside", "timeout_set")

    def __init__(self, *args: Any) -> None:  # asyncpg's own, of six parameters
        super().__init__(*args)
        self.opening = _BEGIN
        self.held: Held | None = None
        self.statement_timeout = self.timeout_set = self.timeout_outside = _FIRST_TIMEOUT

    def transaction(self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False) -> _Unit:
        return _Unit(self, isolation)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would mean no limit at all


async def _connect(*args: Any, longest: float, **options: Any) -> PostgresConnection:
    """What SQLAlchemy calls in the place of ``asyncpg.connect``, so that connecting respects the deadline, too."""
    timeout = allowed(longest)
    made: PostgresConnection = await asyncpg.connect(
        *args, connection_class=PostgresConnection, timeout=timeout, **options
    )
    return made


def engine(
    url: URL,
    *,
    size: int,
    overflow: int,
    statement_timeout: float,
    connect_timeout: float,
    application: str,
    options: PoolOptions,
) -> AsyncEngine:
    arguments: dict[str, Any] = {
        "async_creator_fn": partial(_connect, longest=connect_timeout),
        "command_timeout": statement_timeout + _SILENCE,
        "server_settings": _settings(application, statement_timeout),
    }
    if options.pgbouncer:
        # The next statement may be another server connection's, which knows neither our prepared statements nor our
        # settings; and pgbouncer refuses start-up parameters that it does not know.
        pool: dict[str, Any] = {"poolclass": NullPool}
        arguments |= {
            "server_settings": {"application_name": application, "timezone": "UTC"},
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,  # asyncpg's statements are then unnamed, and none is left behind
        }
    else:
        pool = {
            "pool_size": size - overflow,
            "max_overflow": overflow,
            "pool_use_lifo": True,
            "pool_recycle": options.recycle or -1,
            "pool_pre_ping": options.pre_ping,
        }
    made = create_async_engine(
        for_driver(url, _PARAMETERS),
        **pool,
        hide_parameters=True,  # what people typed does not belong into logs
        json_serializer=jsontext.dumps,
        json_deserializer=jsontext.loads,
        connect_args=arguments,
    )
    sync = made.sync_engine
    dialect: Any = sync.dialect
    dialect.colspecs = {**dialect.colspecs, types.DateTime: _DateTime}

    @event.listens_for(sync, "connect")
    def connected(adapted: Any, record: object) -> None:
        driver = adapted.driver_connection
        driver.statement_timeout = driver.timeout_set = driver.timeout_outside = statement_timeout

    @event.listens_for(sync, "checkout")
    def checked_out(adapted: Any, record: object, proxy: object) -> None:
        # Known without a round trip: the loop has read the server's farewell, or the end of the socket.
        driver = adapted.driver_connection
        if driver.is_closed():
            raise InvalidatePoolError("the server closed the connection")
        driver.opening = _BEGIN
        driver.held = None

    event.listen(sync, "do_execute", _about_to_execute)
    event.listen(sync, "do_executemany", _about_to_execute_others)
    event.listen(sync, "do_execute_no_params", _about_to_execute_others)
    event.listen(sync, "handle_error", _failed)
    close_what_comes_late(sync)
    return made


async def connect_alone(engine: AsyncEngine, application: str) -> Any:
    """A connection of asyncpg that is in no pool."""
    _, options = engine.dialect.create_connect_args(engine.url)
    for ours in ("prepared_statement_cache_size", "prepared_statement_name_func"):  # SQLAlchemy's, in the URL
        options.pop(ours, None)
    settings = {"application_name": application}
    return await asyncpg.connect(
        **options, timeout=_CONNECT_TIMEOUT, command_timeout=_CONNECT_TIMEOUT, server_settings=settings
    )


def _about_to_execute(cursor: Any, sql: str, arguments: tuple[Any, ...], context: object) -> bool:
    """Returns whether the statement is taken care of."""
    held = cursor._connection.held  # noqa: SLF001  the event gives no other way to it
    if held is not None and held.take_row(sql, arguments):
        return True
    _about_to_execute_others(cursor)
    return False


def _about_to_execute_others(cursor: Any, *_: object) -> None:
    driver = cursor._connection  # noqa: SLF001  as above
    if driver.held is not None:
        driver.held.release(cursor._adapt_connection)  # noqa: SLF001  as above
        driver.held = None
    seconds = allowed(driver.statement_timeout)
    if seconds < driver.timeout_set * _SHARE and driver.is_in_transaction():
        await_(driver.execute(f"SET LOCAL statement_timeout={_milliseconds(seconds)}"))
        driver.timeout_set = seconds


def _settings(application: str, statement_timeout: float) -> dict[str, str]:
    return {
        "application_name": application,
        "timezone": "UTC",
        "statement_timeout": str(_milliseconds(statement_timeout)),
        "jit": "off",  # it compiles for longer than the statements of a service run
        # The end of a transaction whose client vanished without a word.
        "idle_in_transaction_session_timeout": str(_milliseconds(2 * statement_timeout)),
    }


def _failed(failure: ExceptionContext) -> None:
    if isinstance(failure.original_exception, TimeoutError):
        failure.is_disconnect = True
        raise DatabaseUnavailable("The database does not answer") from failure.original_exception
    if type(failure.original_exception).__name__ == "InternalClientError":
        failure.is_disconnect = True  # see _Unit.rollback


class PostgresDriver:
    """How the pool treats asyncpg's connections."""

    holds = True

    def cut(self, driver: PostgresConnection) -> None:
        """Closes the socket. The server notices when it next writes to it, or at its own time-out."""
        driver.terminate()

    def lend(self, driver: PostgresConnection, *, read_only: bool, held: Held | None) -> None:
        driver.opening = _BEGIN_READ_ONLY if read_only else _BEGIN
        driver.held = held

    def send_held(self, connection: Connection, held: Held) -> None:
        """Raises what COMMIT would."""
        sql, arguments = held.as_one()
        connection.connection.driver_connection.held = None  # type: ignore[union-attr]  # it is ours
        with _outside(connection) as adapted:
            try:
                adapted.cursor().execute(sql, arguments)
            except Exception as error:
                raise wrapped(connection, sql, error) from error

    def fetch_alone(
        self, connection: Connection, statement: PreparedSelect, values: Mapping[str, Any]
    ) -> Sequence[Any]:
        with _outside(connection):
            return statement.fetch(connection, values)


class BouncerDriver(PostgresDriver):
    """Behind a pooler that lends connections by the transaction. Outside of a transaction no time limit can be set that
    others would not inherit: all is sent inside of one."""

    holds = False

    def fetch_alone(
        self, connection: Connection, statement: PreparedSelect, values: Mapping[str, Any]
    ) -> Sequence[Any]:
        return statement.fetch(connection, values)


@contextmanager
def _outside(connection: Connection) -> Iterator[Any]:
    """What is sent meanwhile is a transaction of its own, with the time-out that it may take.

    Raises:
        CommitUnknown: no answer came.
    """
    adapted: Any = connection.connection.dbapi_connection
    driver = adapted.driver_connection
    seconds = allowed(driver.statement_timeout)
    if not seconds * _SHARE <= driver.timeout_outside <= seconds / _SHARE:
        _set_outside(connection, driver, seconds)
    isolation, adapted.isolation_level = adapted.isolation_level, "autocommit"
    try:
        yield adapted
    except StatementError as error:
        if not isinstance(error.orig, OSError):  # TimeoutError is one, too
            raise
        connection.invalidate(error)
        raise CommitUnknown from error
    finally:
        adapted.isolation_level = isolation


def _set_outside(connection: Connection, driver: PostgresConnection, seconds: float) -> None:
    sql = f"SET statement_timeout={_milliseconds(seconds)}"
    try:
        await_(driver.execute(sql))
    except Exception as error:
        raise wrapped(connection, sql, error) from error
    driver.timeout_outside = seconds
