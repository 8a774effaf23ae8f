"""Column types whose values come back from SQLite as from PostgreSQL.

SQLite has neither decimals nor time zones. SQLAlchemy would pass a decimal through a float and drop a time zone without
a word; here a value is kept exactly, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Context, Decimal
from math import isfinite
from typing import Any

from sqlalchemy import Dialect, types
from sqlalchemy.dialects.sqlite import DATETIME

from microkit.db.zones import checked

# A binary double keeps every decimal of so many digits (IEEE 754, DBL_DIG).
_DIGITS = 15

# As PostgreSQL rounds a value to its column.
_HALF_UP = Context(prec=200, rounding=ROUND_HALF_UP)


def _rounded(value: Decimal, scale: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-scale), context=_HALF_UP)


def _exact(number: Any) -> Decimal:
    return Decimal(format(number, f".{_DIGITS}g") if isinstance(number, float) else number)


class ExactNumeric(types.Numeric[Any]):
    """``Numeric`` on SQLite: a number of up to 15 digits, so that comparing, sorting and summing work as numbers."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        scale = self.scale

        def to_number(value: Any) -> Any:
            if not isinstance(value, Decimal):
                return value
            if not value.is_finite():
                raise ValueError(f"SQLite has no number {value}")
            if scale is not None:
                value = _rounded(value, scale)
            number = float(value)
            if not isfinite(number) or _exact(number) != value:
                raise ValueError(
                    f"SQLite keeps {_DIGITS} digits and {value} has more; keep whole minor units in a BigInteger column"
                )
            return number

        return to_number

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        if not self.asdecimal:
            return None
        scale = self.scale

        def to_decimal(value: Any) -> Decimal | None:
            if value is None:
                return None
            exact = _exact(value)
            return exact if scale is None else _rounded(exact, scale)

        return to_decimal


class UtcDateTime(DATETIME):
    """``DateTime`` on SQLite. With ``timezone=True`` kept in UTC and returned so; aware and naive are not mixed up."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        store = super().bind_processor(dialect)
        aware = self.timezone

        def to_text(value: Any) -> Any:
            value = checked(value, aware=aware)
            if aware and isinstance(value, datetime):
                value = value.astimezone(UTC).replace(tzinfo=None)
            return store(value) if store else value

        return to_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        load = super().result_processor(dialect, coltype)
        if not self.timezone:
            return load

        def to_datetime(value: Any) -> Any:
            loaded = load(value) if load else value
            return loaded.replace(tzinfo=UTC) if isinstance(loaded, datetime) else loaded

        return to_datetime


EXACT: dict[type[types.TypeEngine[Any]], type[types.TypeEngine[Any]]] = {
    types.Numeric: ExactNumeric,
    types.DateTime: UtcDateTime,
}
