"""A transaction that does nothing but insert a row and its events, sent as the one statement that it can be.

Most requests that write are of this kind. BEGIN, the row, its events and COMMIT are four round trips, during which the
connection is taken; a statement on its own is a transaction, too, and several INSERTs can be one statement
(`WITH … AS (INSERT …) INSERT …`, PostgreSQL manual, 7.8.4). So the INSERTs that the last flush sends are held back
until COMMIT. If anything comes between that cannot be held, all is sent as it would have been, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

_PARAMETER: Final = re.compile(r"\$(\d+)")
_SIMPLE: Final = re.compile(r"INSERT INTO [^(]+\([^()]*\) VALUES \(")
# Reading what another of them has inserted, deciding about it, or answering: that needs one after the other. And a
# quoted text could hold something that looks like a parameter.
_NOT_SIMPLE: Final = re.compile(r"\b(SELECT|RETURNING|ON CONFLICT)\b|'", re.IGNORECASE)
_NAME: Final = re.compile(r'"[^"]*"')

MOST: Final = 8
"""Events in one statement. More would gain little, and each number of them is one more statement to prepare."""


class Held:
    """The INSERTs of one transaction that has sent nothing yet: one row of the service's, and its events.

    No second row: a trigger of another table may want to see the first. The events are the rows of one INSERT, which
    are numbered in their order; PostgreSQL promises no order between the parts of a statement.
    """

    __slots__ = ("_events", "_events_sql", "_open", "_row", "_row_sql")

    def __init__(self) -> None:
        self._open = True
        self._row_sql = ""
        self._row: tuple[Any, ...] = ()
        self._events_sql = ""
        self._events: list[tuple[Any, ...]] = []

    def __bool__(self) -> bool:
        return bool(self._row_sql or self._events_sql)

    def take_row(self, sql: str, row: tuple[Any, ...]) -> bool:
        """Holds a row, or says that it cannot be held."""
        if not self._open or self or not can_be_held(sql):
            return False
        self._row_sql, self._row = sql, row
        return True

    def take_events(self, sql: str, events: Sequence[tuple[Any, ...]]) -> bool:
        """Holds the rows of a :class:`PreparedInsert`, or says that they cannot be held."""
        if not self._open or self._events_sql or len(events) > MOST or not can_be_held(sql):
            return False
        self._events_sql, self._events = sql, list(events)
        return True

    def release(self, adapted: Any) -> None:
        """Sends all one by one, after BEGIN, and holds no more; called inside SQLAlchemy's greenlet."""
        self._open = False
        if self._row_sql:
            adapted.cursor().execute(self._row_sql, self._row)
        for event in self._events:
            adapted.cursor().execute(self._events_sql, event)
        self._row_sql, self._events_sql, self._events = "", "", []

    def as_one(self) -> tuple[str, tuple[Any, ...]]:
        """All of it as one statement and its arguments."""
        sql = one_statement(self._row_sql, len(self._row), self._events_sql, len(self._events))
        return sql, (*self._row, *(value for event in self._events for value in event))


@lru_cache(maxsize=1024)
def can_be_held(sql: str) -> bool:
    """Whether it is a plain INSERT of values."""
    if _SIMPLE.match(sql) is None or _NOT_SIMPLE.search(sql) is not None:
        return False
    return not any("$" in name for name in _NAME.findall(sql))


@lru_cache(maxsize=1024)
def one_statement(row: str, parameters: int, events: str, number: int) -> str:
    """A row's INSERT with so many ``parameters``, and an INSERT of so many events, as one statement."""
    if not events:
        return row
    head, values = events.split(" VALUES ", 1)
    each = max((int(found[1]) for found in _PARAMETER.finditer(values)), default=0)
    rows = ", ".join(_numbered(values, parameters + each * index) for index in range(number))
    return f"WITH held AS ({row}) {head} VALUES {rows}" if row else f"{head} VALUES {rows}"


def _numbered(sql: str, first: int) -> str:
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + first}", sql)
