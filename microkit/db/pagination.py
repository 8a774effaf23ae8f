"""Keyset pagination: the next page starts after the last row of this one, wherever rows came and went meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import BigInteger, Integer, Select, SmallInteger, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import QueryableAttribute

from microkit.errors import DefinitionError
from microkit.page import PageRequest, cursor_after, malformed_cursor

Value = TypeVar("Value")

_INT64: Final = range(-(2**63), 2**63)
_NARROW: Final = frozenset({Integer, SmallInteger})
"""Columns that a larger integer is compared with: SQLite's hold one, PostgreSQL's are below it."""


async def page(
    session: AsyncSession,
    statement: Select[Value],
    request: PageRequest,
    *,
    by: Sequence[QueryableAttribute[Any]],
    descending: bool,
) -> tuple[list[Value], str | None]:
    """See :meth:`microkit.db.Transaction.page`."""
    if not by or any(getattr(column, "nullable", False) for column in by):
        raise DefinitionError(
            "page(by=…) needs columns to sort by, none of them nullable: a NULL compares with nothing"
        )
    key: Any = tuple[tuple(column.type.python_type for column in by)]  # type: ignore[misc]  # made of values
    after = request.after(key)
    if after is not None:
        if not all(_holds(column.type, value) for value, column in zip(after, by, strict=True)):
            raise malformed_cursor()
        row = tuple_(*by)
        last = tuple_(
            *(
                literal(value, BigInteger() if type(column.type) in _NARROW else column.type)
                for value, column in zip(after, by, strict=True)
            )
        )
        statement = statement.where(row < last if descending else row > last)
    wider = statement.add_columns(*by).order_by(*(column.desc() if descending else column for column in by))
    rows = (await session.execute(wider.limit(request.limit + 1))).all()
    items = [row[0] for row in rows[: request.limit]]
    if len(rows) <= request.limit:
        return items, None
    return items, cursor_after(rows[request.limit - 1][1:])


def _holds(kind: Any, value: object) -> bool:
    """Whether a column of that type can hold the value: a cursor may have been written by anybody."""
    match value:
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case int():
            return value in _INT64
        case datetime():
            return (value.tzinfo is not None) is bool(kind.timezone) and _within_the_calendar(value)
    return True


def _within_the_calendar(moment: datetime) -> bool:
    try:
        return moment.tzinfo is None or moment.astimezone(UTC) is not None
    except OverflowError:
        return False
