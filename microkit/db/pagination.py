"""Keyset pagination: the next page starts after the last row of this one, wherever rows came and went meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import QueryableAttribute

from microkit.errors import DefinitionError
from microkit.page import PageRequest, cursor_after

Value = TypeVar("Value")


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
        row = tuple_(*by)
        last = tuple_(*(literal(value, column.type) for value, column in zip(after, by, strict=True)))
        statement = statement.where(row < last if descending else row > last)
    wider = statement.add_columns(*by).order_by(*(column.desc() if descending else column for column in by))
    rows = (await session.execute(wider.limit(request.limit + 1))).all()
    items = [row[0] for row in rows[: request.limit]]
    if len(rows) <= request.limit:
        return items, None
    return items, cursor_after(rows[request.limit - 1][1:])
