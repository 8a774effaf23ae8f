"""PostgreSQL through asyncpg.

SQLAlchemy's dialect begins a transaction with the first statement. It is given a connection class of our own, whose
BEGIN carries the statement time-out along, so that this costs no round trip.
"""

from __future__ import annotations

from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import URL, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_

from microkit.db import jsontext
from microkit.db.failure import TransactionAborted
from microkit.db.limit import allowed

BEGIN = "BEGIN"
BEGIN_READ_ONLY = "BEGIN READ ONLY"

# A time-out is set again when the time left has fallen below this share of it.
_SHARE = 0.8
# Seconds for what SQLAlchemy asks a new connection, before the setting is known to it.
_FIRST_TIMEOUT = 10.0


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
        if not self._connection.is_closed():
            await self._connection.execute("ROLLBACK")


class PostgresConnection(asyncpg.Connection):  # type: ignore[misc]  # of no known type
    """``opening`` is the next BEGIN; ``statement_timeout`` the longest time-out, ``timeout_set`` the one in force, in
    seconds."""

    __slots__ = ("opening", "statement_timeout", "timeout_set")

    def __init__(self, *args: Any) -> None:  # asyncpg's own, of six parameters
        super().__init__(*args)
        self.opening = BEGIN
        self.statement_timeout = self.timeout_set = _FIRST_TIMEOUT

    def transaction(self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False) -> _Unit:
        return _Unit(self, isolation)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would mean no limit at all


def engine(url: URL, *, size: int, statement_timeout: float) -> AsyncEngine:
    made = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_use_lifo=True,
        hide_parameters=True,  # what people typed does not belong into logs
        json_serializer=jsontext.dumps,
        json_deserializer=jsontext.loads,
        connect_args={
            "connection_class": PostgresConnection,
            "timeout": 10,
            "server_settings": {"application_name": "microkit", "jit": "off", "timezone": "UTC"},
        },
    )
    sync = made.sync_engine

    @event.listens_for(sync, "connect")
    def connected(adapted: Any, record: object) -> None:
        driver = adapted.driver_connection
        driver.statement_timeout = driver.timeout_set = statement_timeout

    @event.listens_for(sync, "checkout")
    def checked_out(adapted: Any, record: object, proxy: object) -> None:
        # Known without a round trip: the loop has read the server's farewell, or the end of the socket.
        driver = adapted.driver_connection
        if driver.is_closed():
            raise InvalidatePoolError("the server closed the connection")
        driver.opening = BEGIN

    @event.listens_for(sync, "do_execute")
    @event.listens_for(sync, "do_executemany")
    @event.listens_for(sync, "do_execute_no_params")
    def about_to_execute(cursor: Any, *_: object) -> None:
        driver = cursor._connection  # noqa: SLF001  the event gives no other way to it
        seconds = allowed(statement_timeout)
        if seconds < driver.timeout_set * _SHARE and driver.is_in_transaction():
            await_(driver.execute(f"SET LOCAL statement_timeout={_milliseconds(seconds)}"))
            driver.timeout_set = seconds

    return made
