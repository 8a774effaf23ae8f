"""The database's clock, the one clock that all instances of a service share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, DateTime, Float, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _Now(FunctionElement[Any]):
    type = DateTime(timezone=True)
    inherit_cache = True
    name = "database_now"


def database_now(plus: float | ColumnElement[float] = 0.0) -> ColumnElement[Any]:
    """The time now, ``plus`` that many seconds, as an SQL expression of type ``DateTime(timezone=True)``.

    It moves on inside a transaction, as leases need it. Exact to microseconds on PostgreSQL, to milliseconds on SQLite.
    """
    if isinstance(plus, ColumnElement):
        return _Now(plus)
    return _Now(literal(float(plus), Float())) if plus else _Now()


@compiles(_Now, "postgresql")
def _postgresql(element: _Now, compiler: SQLCompiler, **options: Any) -> str:
    if not len(element.clauses):
        return "clock_timestamp()"
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(_Now, "sqlite")
def _sqlite(element: _Now, compiler: SQLCompiler, **options: Any) -> str:
    # The text that SQLAlchemy itself stores for a DateTime, so that the two compare rightly.
    if not len(element.clauses):
        return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds')"
