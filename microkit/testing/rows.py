"""Rows for tables that are only known from the database itself, and what is in them."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

Given = Mapping[str, Callable[[int], Mapping[str, object]]]
"""By table: what a row holds in some of its columns, by the number of the row."""

_EPOCH: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Contents:
    """The rows of a table, each by column."""

    columns: frozenset[str]
    rows: list[dict[str, str]]

    def missing_from(self, other: Contents, but: Collection[str]) -> list[dict[str, str]]:
        """The rows that ``other`` has not, by the columns that both have, ``but`` for some."""
        shared = sorted((self.columns & other.columns) - set(but))
        there = Counter(tuple(row[column] for column in shared) for row in other.rows)
        lost = []
        for row in self.rows:
            key = tuple(row[column] for column in shared)
            if there[key] > 0:
                there[key] -= 1
            else:
                lost.append({column: row[column] for column in shared})
        return lost


def reflected(connection: sa.Connection, but: Collection[str]) -> sa.MetaData:
    """The tables that are there, ``but`` for some."""
    metadata = sa.MetaData()
    metadata.reflect(connection, only=lambda name, _: name not in but)
    return metadata


def contents(connection: sa.Connection, metadata: sa.MetaData) -> dict[str, Contents]:
    """All rows of the tables."""
    found = {}
    for table in metadata.sorted_tables:
        rows = connection.execute(sa.select(table)).mappings()
        columns = frozenset(column.name for column in table.columns)
        found[table.name] = Contents(columns, [{name: _written(row[name]) for name in columns} for row in rows])
    return found


def described(metadata: sa.MetaData) -> dict[str, list[str]]:
    """Each table's columns and indexes in words, to be compared."""
    return {
        table.name: sorted(
            [
                f"{column.name} {column.type!r} {'NULL' if column.nullable else 'NOT NULL'} {_default(column)}"
                f"{' key' if column.primary_key else ''}{sorted(key.target_fullname for key in column.foreign_keys)}"
                for column in table.columns
            ]
            + [f"{each.name} {each.unique} {[str(column) for column in each.expressions]}" for each in table.indexes]
        )
        for table in metadata.sorted_tables
    }


def fill(connection: sa.Connection, metadata: sa.MetaData, number: int, given: Given) -> None:
    """Writes a row into each table, with foreign keys that point at the others' rows of that number.

    Every second leaves out what may be left out.

    Raises:
        AssertionError: the database refuses it: ``given`` has to say what such a row may hold.
    """
    made: dict[str, dict[str, object]] = {}
    for table in metadata.sorted_tables:
        made_up = given.get(table.name)
        said = made_up(number) if made_up is not None else {}
        row = {column.name: _fitting(column, said[column.name]) for column in table.columns if column.name in said}
        for column in table.columns:
            if column.name not in row and not _left_out(column, number):
                row[column.name] = _value(column, number, made)
        try:
            key = connection.execute(sa.insert(table).values(row)).inserted_primary_key
        except (DBAPIError, sa.exc.StatementError) as error:
            raise AssertionError(
                f"{table.name} does not take a row that was made up for it: say in rows= what one may hold, as in "
                f"rows={{{table.name!r}: lambda n: {{…}}}}. {error.__cause__ or error}"
            ) from error
        made[table.name] = {**dict(zip([column.name for column in table.primary_key], key or (), strict=False)), **row}


def _fitting(column: sa.Column[Any], value: object) -> object:
    """SQLite keeps an instant without its zone, and the column then says that it has none."""
    if isinstance(value, dt.datetime) and isinstance(column.type, sa.DateTime) and not column.type.timezone:
        return value.astimezone(dt.UTC).replace(tzinfo=None)
    return value


def _left_out(column: sa.Column[Any], number: int) -> bool:
    if column.computed is not None or column.identity is not None or _counted(column):
        return True
    return bool(number % 2 == 0 and not column.primary_key and (column.nullable or column.server_default is not None))


def _counted(column: sa.Column[Any]) -> bool:
    """Whether the database numbers the rows itself."""
    default = getattr(column.server_default, "arg", None)
    return default is not None and "nextval(" in str(default)


def _value(column: sa.Column[Any], number: int, made: Mapping[str, Mapping[str, object]]) -> object:
    for key in column.foreign_keys:
        parent = made.get(key.column.table.name)
        if parent is not None and key.column.name in parent:
            return parent[key.column.name]
        if column.nullable:
            return None
    return _by_type(column.type, column.name, number)


def _by_type(kind: Any, name: str, number: int) -> object:  # noqa: C901, PLR0911, PLR0912  a table of types
    match kind:
        case sa.Boolean():
            return number % 2 == 0
        case sa.Integer():
            return number
        case sa.Float():
            return float(number)
        case sa.Numeric():
            return Decimal(number)
        case sa.DateTime():
            when = _EPOCH + dt.timedelta(minutes=number)
            return when if kind.timezone else when.replace(tzinfo=None)
        case sa.Date():
            return (_EPOCH + dt.timedelta(days=number)).date()
        case sa.Time():
            return (_EPOCH + dt.timedelta(seconds=number)).time()
        case sa.Interval():
            return dt.timedelta(seconds=number)
        case sa.Uuid():
            return uuid.UUID(int=number) if kind.as_uuid else str(uuid.UUID(int=number))
        case sa.LargeBinary():
            return b"%d" % number
        case sa.JSON():
            return {"number": number}
        case sa.Enum():
            return kind.enums[number % len(kind.enums)]
        case sa.ARRAY():
            return []
        case sa.String():
            return _text(kind, name, number)
    return number


def _text(kind: sa.String, name: str, number: int) -> str:
    if kind.length == 32:  # how SQLite keeps a UUID
        return uuid.UUID(int=number).hex
    text = f"{name} {number}"
    return text if kind.length is None or len(text) <= kind.length else str(number)


def _default(column: sa.Column[Any]) -> str:
    return str(getattr(column.server_default, "arg", ""))


def _written(value: object) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else str(value)
