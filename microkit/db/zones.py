"""Times with and without a zone, kept apart on both databases."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def checked(value: Any, *, aware: bool) -> Any:
    """``value``, if it has a zone exactly where its column has one.

    Raises:
        ValueError: it has not.
    """
    if isinstance(value, datetime) and (value.tzinfo is not None) is not aware:
        raise ValueError(
            f"{value!r} has {'no' if aware else 'a'} time zone, and the column is DateTime(timezone={aware})"
        )
    return value
