from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.sqlite import dialect

from microkit.db.sqlite_types import ExactNumeric


def there_and_back(value: Decimal, scale: int | None = None) -> Decimal | None:
    kind = ExactNumeric(None if scale is None else 15, scale)
    store, load = kind.bind_processor(dialect()), kind.result_processor(dialect(), None)
    assert load is not None
    found: Decimal | None = load(store(value))
    return found


@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(-20, 20))
def test_fifteen_digits_come_back_exactly_wherever_their_point_is(digits: int, exponent: int) -> None:
    value = Decimal(digits).scaleb(exponent)
    assert there_and_back(value) == value


@given(st.decimals(min_value=-(10**8) + 1, max_value=10**8 - 1, places=7))
def test_an_amount_of_seven_places_keeps_them(value: Decimal) -> None:
    found = there_and_back(value, 7)
    assert found == value
    assert found is not None
    assert found.as_tuple().exponent == -7


@pytest.mark.parametrize(
    "value", ["922337203685.4775807", "1234567890123456.5", "1e400", "1e-400", "NaN", "sNaN", "Infinity", "-Infinity"]
)
def test_what_would_be_changed_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"SQLite (keeps 15 digits|has no number)"):
        there_and_back(Decimal(value))


def test_a_value_is_rounded_to_the_scale_of_its_column_as_postgresql_does() -> None:
    assert there_and_back(Decimal("0.12345678"), 7) == Decimal("0.1234568")
    assert there_and_back(Decimal("0.25"), 1) == Decimal("0.3")
    assert there_and_back(Decimal("-0.25"), 1) == Decimal("-0.3")
    assert there_and_back(Decimal(12345678901234567890).scaleb(-13), 2) == Decimal("1234567.89")
