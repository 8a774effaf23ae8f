"""Statements that are sent all the time, made ready once and handed to the driver past most of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Select

from microkit.db.failure import wrapped
from microkit.db.one_trip import Held


@dataclass(frozen=True, slots=True)
class _Ready:
    """``parameters`` are a name and what to do with its value, or ``None`` and a value that is always the same."""

    sql: str
    parameters: tuple[tuple[str | None, Any], ...]

    def arguments(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            process if name is None else row[name] if process is None else process(row[name])
            for name, process in self.parameters
        )


class PreparedInsert:
    """``statement`` with values for ``columns``; the others get what the statement or the database says.

    For :meth:`Transaction.insert`. It costs a third of the same INSERT through the session. Defaults that SQLAlchemy
    would compute in Python are not computed, and nothing is returned.
    """

    def __init__(self, statement: Insert, columns: Sequence[str]) -> None:
        self._statement = statement.inline()
        self._columns = list(columns)
        self._ready: dict[str, _Ready] = {}

    def send_first(self, connection: Connection, row: Mapping[str, Any], held: Held | None) -> None:
        """Inserts the row before anything else, or leaves it with ``held``; called inside SQLAlchemy's greenlet."""
        ready = self._ready.get(connection.dialect.name) or self._make_ready(connection.dialect)
        if held is None or not held.take_row(ready.sql, ready.arguments(row)):
            self.send(connection, [row])

    def send(self, connection: Connection, rows: Sequence[Mapping[str, Any]], held: Held | None = None) -> None:
        """Inserts the rows, in their order, or leaves them with ``held``; called inside SQLAlchemy's greenlet.

        Raises:
            sqlalchemy.exc.DBAPIError: as ``Connection.execute`` would.
        """
        ready = self._ready.get(connection.dialect.name) or self._make_ready(connection.dialect)
        arguments = [ready.arguments(row) for row in rows]
        if held is not None and held.take_events(ready.sql, arguments):
            return
        cursor = connection.connection.cursor()
        try:
            if held is not None:
                held.release(connection.connection.dbapi_connection)
            if len(arguments) == 1:
                cursor.execute(ready.sql, arguments[0])
            else:
                cursor.executemany(ready.sql, arguments)
        except Exception as error:
            raise wrapped(connection, ready.sql, error) from error
        except BaseException as error:
            # Cancelled, its answer still to come. SQLite's statements queue in one thread: a rollback will do there.
            if connection.dialect.name != "sqlite":
                connection.invalidate(error)
            raise
        cursor.close()

    def _make_ready(self, dialect: Dialect) -> _Ready:
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
        parameters: list[tuple[str | None, Any]] = []
        for name in compiled.positiontup or ():
            bound = compiled.binds[name]
            process = bound.type.dialect_impl(dialect).bind_processor(dialect)
            if name in self._columns:
                parameters.append((name, process))
            else:
                value = bound.effective_value
                parameters.append((None, process(value) if process else value))
        ready = self._ready[dialect.name] = _Ready(str(compiled), tuple(parameters))
        return ready


class PreparedSelect:
    """``statement``, a SELECT whose rows are wanted as the driver gives them: for :meth:`Transaction.fetch`.

    On PostgreSQL they are asyncpg's records, at a third of the cost of SQLAlchemy's rows; JSON comes as text there.
    ``parameters`` are the names of its bound parameters, of types that the driver takes as they are.
    """

    def __init__(self, statement: Select[*tuple[Any, ...]], parameters: Sequence[str]) -> None:
        self._statement = statement
        self._parameters = frozenset(parameters)
        self._ready: tuple[str, tuple[tuple[str | None, Any], ...]] | None = None

    def fetch(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        """All rows; called inside SQLAlchemy's greenlet.

        Raises:
            sqlalchemy.exc.DBAPIError: as ``Connection.execute`` would.
        """
        if connection.dialect.name != "postgresql":
            return connection.execute(self._statement, values).all()
        sql, parameters = self._ready or self._make_ready(connection.dialect)
        arguments = [fixed if name is None else values[name] for name, fixed in parameters]
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, arguments)
            rows: Sequence[Any] = cursor.fetchall()
        except Exception as error:
            raise wrapped(connection, sql, error) from error
        except BaseException as error:
            connection.invalidate(error)
            raise
        cursor.close()
        return rows

    def sql(self, dialect: Dialect) -> str:
        """Its text on PostgreSQL."""
        return (self._ready or self._make_ready(dialect))[0]

    def _make_ready(self, dialect: Dialect) -> tuple[str, tuple[tuple[str | None, Any], ...]]:
        compiled: Any = self._statement.compile(dialect=dialect)
        names = [
            (name, None) if name in self._parameters else (None, compiled.binds[name].effective_value)
            for name in compiled.positiontup or ()
        ]
        self._ready = str(compiled), tuple(names)
        return self._ready
