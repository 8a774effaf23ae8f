"""What can go wrong with a database, told apart: what to try again, what to give up, what nobody can know."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from microkit.errors import MicrokitError, Problem, Unavailable

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
QUERY_CANCELED = "57014"
LOCK_NOT_AVAILABLE = "55P03"

DISK_FULL = "53100"

# Class 53 but for the full disk: memory, connections, a configured limit; 58030 is an input or output error. The server
# is there, and cannot do it now (PostgreSQL manual, appendix A).
_OVERBURDENED = frozenset({"53000", "53200", "53300", "53400", "58030"})
_SQLITE_OVERBURDENED = frozenset({sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

# Class 08 and these: the server ended the connection, or takes no more (PostgreSQL manual, appendix A).
_SERVER_GONE = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "53300"})


class DatabaseUnavailable(Unavailable, status=503, title="The database is unavailable", type="database-unavailable"):
    """The database cannot be reached, or no connection became free in time."""


class PoolExhausted(DatabaseUnavailable, status=503, title="The database is unavailable", type="database-unavailable"):
    """All connections stayed in use for as long as one may wait. Trying again at once would add to the load."""


class StorageFull(Problem, status=507, title="There is no room left to store this", type="storage-full"):
    """The database's disk, or the size it may have, is full. What only reads goes on; nothing of the work stands."""


class CommitUnknown(MicrokitError):
    """The connection was lost while COMMIT was under way: the transaction may stand or not.

    It is not tried again, since that could do the work twice. Look for the work by its own key, or let the caller
    repeat the request with the same idempotency key.
    """

    def __init__(self) -> None:
        super().__init__("the connection was lost during COMMIT: the transaction may have been committed or not")


class TransactionAborted(MicrokitError):
    """An earlier statement had failed, its error was swallowed, and then the transaction was to be committed.

    PostgreSQL answers such a COMMIT with a quiet ROLLBACK. SQLite would commit the rest; here it does not.
    """

    def __init__(self) -> None:
        super().__init__(
            "nothing was committed: an earlier statement of this transaction failed and its error was swallowed. "
            "Let the error out, or put what may fail into `async with tx.session.begin_nested()`"
        )


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five-letter code, ``None`` where the error has none."""
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    return code if isinstance(code, str) else None


def is_disconnect(error: BaseException) -> bool:
    """Whether the connection was lost, so that all before COMMIT is rolled back and COMMIT itself is unknown."""
    if not isinstance(error, DBAPIError):
        return False
    code = sqlstate(error)
    return error.connection_invalidated or (code is not None and (code in _SERVER_GONE or code.startswith("08")))


def is_stale_plan(error: BaseException) -> bool:
    """Whether a table was changed since this connection prepared the statement, as when a neighbour migrates."""
    return type(getattr(error, "orig", None)).__name__ == "InvalidCachedStatementError"


def is_interrupted(error: BaseException) -> bool:
    """Whether the statement was stopped because it took too long."""
    if sqlstate(error) == QUERY_CANCELED:
        return "statement timeout" in str(error)  # and not "user request", which is an administrator's
    return _sqlite_code(error) == sqlite3.SQLITE_INTERRUPT


def is_busy(error: BaseException) -> bool:
    """Whether SQLite found the file locked by another process."""
    return _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_kept_waiting(error: BaseException) -> bool:
    """Whether PostgreSQL gave up waiting for a lock, as ``lock_timeout`` told it to."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE


def is_full(error: BaseException) -> bool:
    """Whether there was no room to write."""
    if _sqlite_code(error) == sqlite3.SQLITE_IOERR:  # there is no room for the write-ahead log's index
        return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    return sqlstate(error) == DISK_FULL or _sqlite_code(error) == sqlite3.SQLITE_FULL


def is_read_only(error: BaseException) -> bool:
    """Whether SQLite found that it may not write the file."""
    return _sqlite_code(error) == sqlite3.SQLITE_READONLY


def is_overburdened(error: BaseException) -> bool:
    """Whether the database lacks something else that it may have again later: memory, connections, a file."""
    return sqlstate(error) in _OVERBURDENED or _sqlite_code(error) in _SQLITE_OVERBURDENED


def _sqlite_code(error: BaseException) -> int:
    """SQLite's primary result code, 0 for an error that has none."""
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF


def is_transient(error: BaseException) -> bool:
    """Whether the whole transaction may succeed when it is tried again, and nothing of this try stands."""
    if isinstance(error, DatabaseUnavailable) or sqlstate(error) in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED):
        return True
    return is_disconnect(error) or is_busy(error) or is_stale_plan(error)


def wrapped(connection: Connection, sql: str, error: Exception) -> BaseException:
    """What SQLAlchemy would have raised, for a statement that went past it to the driver."""
    dialect = connection.dialect
    dbapi_error = dialect.loaded_dbapi.Error
    lost = isinstance(error, dbapi_error) and dialect.is_disconnect(error, connection.connection, None)
    if lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        sql, None, error, dbapi_error, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )
